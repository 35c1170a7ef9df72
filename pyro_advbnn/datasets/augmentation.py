"""Augmentation: random crops and flips of a batch at once, on its device."""
import torch
import torch.nn.functional as F

from pyro_advbnn.datasets.names import AUGMENTATIONS
from pyro_advbnn.system.errors import InputError


def crop_flip(x, generator=None):
    """Zero-pads each image by 4 pixels, crops it at random back to its size and, half of the time, mirrors it."""
    batch, channels, height, width = x.shape
    top, left = torch.randint(0, 9, (2, batch, 1), generator=generator, device=x.device)
    flip = torch.rand(batch, 1, generator=generator, device=x.device) < 0.5
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    columns = torch.where(flip, columns.flip(1), columns)
    image = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return F.pad(x, (4, 4, 4, 4))[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def resized_crop(x, generator=None):
    """Cuts a random square of 0.8 to 0.9 of each image's area, scales it back and, half of the time, mirrors it.

    The same as torchvision's RandomResizedCrop(size, scale=(0.8, 0.9), ratio=(1, 1)), bilinear, and
    RandomHorizontalFlip, with each image's own parameters. Returns floats in [0, 1].

    Raises InputError for images that are not square.
    """
    if x.shape[2] != x.shape[3]:
        raise InputError(f"augmentation resized_crop needs square images, got {x.shape[3]}x{x.shape[2]}")
    x, size = unit_range(x), x.shape[3]
    area, place_x, place_y, flip = torch.rand(4, len(x), generator=generator, device=x.device)
    side = torch.round(size * (0.8 + 0.1 * area).sqrt())
    left, top = ((place * (size - side + 1)).floor() for place in (place_x, place_y))
    scale, zero = side / size, torch.zeros_like(side)
    centre_x, centre_y = ((2 * start + side) / size - 1 for start in (left, top))
    mirror = torch.where(flip < 0.5, -scale, scale)
    theta = torch.stack([mirror, zero, centre_x, zero, scale, centre_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    # Like a crop that is cut out first: nothing beyond its outermost pixels may mix in.
    centre, reach = torch.stack([centre_x, centre_y], 1)[:, None, None], ((side - 1) / size)[:, None, None, None]
    grid = torch.maximum(torch.minimum(grid, centre + reach), centre - reach)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)


_BY_NAME = {"none": lambda x, generator=None: x, "crop_flip": crop_flip, "resized_crop": resized_crop}


def augment(x: torch.Tensor, kind: str, generator: torch.Generator | None = None) -> torch.Tensor:
    """`x` (B, C, H, W), uint8 or float in [0, 1], with the augmentation `kind`, drawn anew for each image.

    kind: one of AUGMENTATIONS. All draws come from `generator`, a torch.Generator on the device of x; None is torch's
    global one. The shape stays; the type stays too, except that resized_crop returns floats in [0, 1].

    Raises InputError for an unknown kind.
    """
    check_augmentation(kind)
    return _BY_NAME[kind](x, generator)


def check_augmentation(kind):
    """Raises InputError for a kind that is none of AUGMENTATIONS."""
    if kind not in AUGMENTATIONS:
        raise InputError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {kind!r}")


def unit_range(x):
    """`x` as floats in [0, 1], where uint8 255 is 1."""
    return x if x.is_floating_point() else x.float().div_(255)
