"""A classifier as one file of arithmetic, for programs that have neither this package nor, with ONNX, PyTorch."""
import io
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from pyro_advbnn.attacks.attack import check_images
from pyro_advbnn.attacks.modes import draws_anew
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.bayes.mixture import Mixture
from pyro_advbnn.bayes.rse import AdditiveNoise
from pyro_advbnn.evaluation.inputs import check_classifier
from pyro_advbnn.system.errors import InputError, check_at_least, reason
from pyro_advbnn.system.files import file_to_write, replacing


def export(classifier: Classifier | Mixture, path: str | Path, x: torch.Tensor, *, draws: int = 0) -> None:
    """Write a program from images (B, C, H, W), of any B, to class probabilities (B, classes) to `path`, in one step.

    path: its ending says what is written, ".onnx" (ONNX; needs the extra `export`) or ".pt2" (for `torch.export.load`).
    x: a batch in [0, 1] of the classifier's dtype and device, whose C, H, W and dtype the program will have.
    draws: 0 for the network at the posterior mean, 1 for one draw, K for the mean of the probabilities of K draws, which are
    made here, by torch's global generator, and lie in the file: its answers are not random.

    Raises InputError for another ending, a package that is missing, images and classifiers that are not fit, a noisy network
    (RSE) without draws, which has no mean, and a network that torch.export cannot follow; OSError as `save`.
    """
    target = file_to_write(path)
    if target.suffix not in _CONTENT_OF:
        raise InputError(f"path must end in {' or '.join(_CONTENT_OF)}, got {target}")
    missing = [name for name in ("onnx", "onnxscript") if target.suffix == ".onnx" and not find_spec(name)]
    if missing:
        raise InputError(f"{target} needs the package {missing[0]}: pip install onnx onnxscript")
    check_at_least("draws", draws, 0)
    if not isinstance(classifier, Classifier | Mixture):
        raise InputError(f"classifier must be one of this package's classifiers, got a {type(classifier).__name__}")
    check_images(x)
    like = next(classifier.parameters(), x)
    if (x.dtype, x.device) != (like.dtype, like.device):
        raise InputError(f"x must be {like.dtype} on {like.device}, as the classifier is, got {x.dtype} on {x.device}")
    check_classifier(classifier, x)
    if not draws and any(isinstance(module, AdditiveNoise) for module in classifier.modules()):
        raise InputError("draws must be at least 1 for a classifier with noise (RSE): it has no mean network")
    networks = [classifier.draw() for _ in range(draws)] or [classifier.mean_network()]
    program = _Probabilities(networks).cpu().eval().requires_grad_(False)
    x = x.detach().cpu()
    if draws_anew(program, x):
        raise InputError("the network draws random numbers of its own, which no draw can fix: its file would answer at random")
    x = torch.cat([x, x])                                # of a single image torch.export would take the 1 for a constant
    try:
        with torch.no_grad():
            program(x)                                   # fixed noise is drawn in the first call
            content = _CONTENT_OF[target.suffix](program, x)
    except Exception as error:                           # torch.export refuses in many ways what it cannot follow
        raise InputError(f"the network cannot be exported: {reason(error.__cause__ or error)}") from None
    with replacing(target) as file:
        file.write(content)


class _Probabilities(nn.Module):
    """(B, C, H, W) -> (B, classes): the mean softmax of fixed networks."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x):
        return torch.stack([network(x.clone()).float().softmax(-1) for network in self.networks]).mean(0)


def _onnx(program, x):
    return torch.onnx.export(program, (x,), dynamic_shapes=_ANY_NUMBER, input_names=["images"], output_names=["probabilities"],
                             dynamo=True, verbose=False).model_proto.SerializeToString()


def _pt2(program, x):
    content = io.BytesIO()
    torch.export.save(torch.export.export(program, (x,), dynamic_shapes=_ANY_NUMBER), content)
    return content.getvalue()


_ANY_NUMBER = ({0: torch.export.Dim("batch")},)          # of images
_CONTENT_OF = {".onnx": _onnx, ".pt2": _pt2}
