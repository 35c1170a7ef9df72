"""The paper's networks, as plain modules from images in [0, 1] to logits.

Nothing here is Bayesian or adversarial. Inputs are not normalised, as in the authors' code; put a
normalisation layer in front where you want one.
"""
import importlib

from torch import fx, nn

from pyro_advbnn.system.errors import InputError


def vgg11(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """VGG11 with BatchNorm; see `vgg16`."""
    return _vgg((1, 1, 2, 2, 2), num_classes, in_channels, width)


def vgg13(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """VGG13 with BatchNorm; see `vgg16`."""
    return _vgg((2, 2, 2, 2, 2), num_classes, in_channels, width)


def vgg16(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """VGG16 with BatchNorm, global average pool and one linear layer: (B, in_channels, H, W) -> (B, num_classes).

    Five poolings: H and W at least 32. width is the number of channels of the first stage (the paper: 64).
    14,728,266 parameters for 10 classes, 14,796,495 for 143 (Adv-BNN, Section 3; Simonyan and Zisserman 2015).
    """
    return _vgg((2, 2, 3, 3, 3), num_classes, in_channels, width)


def vgg19(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """VGG19 with BatchNorm; see `vgg16`."""
    return _vgg((2, 2, 4, 4, 4), num_classes, in_channels, width)


def model_a(num_classes: int = 10, in_channels: int = 3, width: int = 32) -> nn.Module:
    """The paper's "Model A" for STL-10's 96x96 pixels: (B, in_channels, H, W) -> (B, num_classes); 2,166,282 parameters.

    H and W at least 80.
    """
    channels = [width, 2 * width, 4 * width, 8 * width]
    layers, previous = [], in_channels
    for c in channels:
        layers += [*_convolution(previous, c), nn.MaxPool2d(2)]
        previous = c
    layers += [*_convolution(previous, 8 * width, padding=0), *_convolution(8 * width, 16 * width, padding=0)]
    return _Network(layers, nn.Linear(16 * width, num_classes), min_side=80)


def convnet(num_classes: int = 10, in_channels: int = 1, width: int = 32) -> nn.Module:
    """A small network for images of 8x8 pixels and more: (B, in_channels, H, W) -> (B, num_classes).

    Two stages of two convolutions (width, then 2 x width channels), each stage with a 2x2 max-pool.
    """
    layers = [*_convolution(in_channels, width), *_convolution(width, width), nn.MaxPool2d(2),
              *_convolution(width, 2 * width), *_convolution(2 * width, 2 * width), nn.MaxPool2d(2)]
    return _Network(layers, nn.Linear(2 * width, num_classes), min_side=8)


NETWORKS = {
    "vgg11": vgg11, "vgg13": vgg13, "vgg16": vgg16, "vgg19": vgg19, "model_a": model_a, "convnet": convnet,
}


def build_network(name: str, num_classes: int, in_channels: int = 3, width: int | None = None) -> nn.Module:
    """The network called `name`.

    A name of NETWORKS, "torchvision:NAME" (any torchvision classification model, untrained), or
    "package.module:function" (called with num_classes alone; this imports the user's code).
    width: base number of channels, for NETWORKS only; None keeps the network's own.

    Raises InputError for an unknown name, for a width or channel number that the network cannot have, and where the user's
    function cannot be imported, fails or returns no nn.Module.
    """
    check_network(name, width)
    if name in NETWORKS:
        return NETWORKS[name](num_classes, in_channels, **({} if width is None else {"width": width}))
    package, _, function = name.partition(":")
    if package == "torchvision":
        return _torchvision(function, num_classes, in_channels)
    return _imported(package, function, num_classes)


def check_network(name: str, width: int | None = None) -> None:
    """Raises InputError for a name that `build_network` does not know, or that takes no width: no images are needed to tell."""
    if name in NETWORKS:
        return
    package, colon, function = name.partition(":")
    if not colon:
        raise InputError(f"network must be one of {', '.join(NETWORKS)}, torchvision:NAME or package.module:function, "
                         f"got {name!r}")
    if width is not None:
        raise InputError(f"width is only for {', '.join(NETWORKS)}; {name} has a fixed width")
    if package == "torchvision" and function not in _torchvision_names():
        raise InputError(f"network: torchvision has no classification model {function!r}; it has "
                         f"{', '.join(_torchvision_names())}")


def is_imported(name: str) -> bool:
    """True where building `name` runs code of the user's own, which a checkpoint must not bring about by itself."""
    return name not in NETWORKS and not name.startswith("torchvision:")


def _torchvision_names():
    from torchvision import models
    return models.list_models(module=models)


def _torchvision(name, num_classes, in_channels):
    from torchvision import models
    if in_channels != 3:
        raise InputError(f"torchvision:{name} takes 3 channels, the images have {in_channels}")
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=num_classes, **extra)


def _imported(package, function, num_classes):
    try:
        network = getattr(importlib.import_module(package), function)(num_classes)
    except Exception as error:                           # whatever the user's code does
        raise InputError(f"network {package}:{function} cannot be built by calling it with {num_classes}, the number of "
                         f"classes: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {package}:{function} must return an nn.Module, got {type(network).__name__}")
    return network


class _Network(nn.Module):
    def __init__(self, layers, classifier, min_side):
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier
        self.min_side = min_side

    def forward(self, x):
        _check_sides(x, self.min_side)
        return self.classifier(self.pool(self.features(x)).flatten(1))


@fx.wrap                                                 # a tracer need not look inside
def _check_sides(x, min_side):
    if min(x.shape[-2:]) < min_side:
        raise InputError(f"the network takes images of {min_side} or more pixels a side, got {x.shape[-2]}x{x.shape[-1]}")


def _vgg(convolutions_per_stage, num_classes, in_channels, width):
    layers, previous = [], in_channels
    for convolutions, factor in zip(convolutions_per_stage, (1, 2, 4, 8, 8), strict=True):
        for _ in range(convolutions):
            layers += _convolution(previous, factor * width)
            previous = factor * width
        layers.append(nn.MaxPool2d(2))
    return _Network(layers, nn.Linear(previous, num_classes), min_side=32)


def _convolution(in_channels, out_channels, padding=1):
    return [nn.Conv2d(in_channels, out_channels, 3, padding=padding), nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True)]
