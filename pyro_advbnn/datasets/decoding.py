"""Image files: one as pixels, many decoded at once."""
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pyro_advbnn.system.errors import InputError, check_at_least, reason

warnings.filterwarnings("ignore", "(Possibly c|C)orrupt EXIF data|Metadata Warning", module="PIL")      # nobody reads these

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # not EPS: Pillow opens it by running Ghostscript


def decode(paths, image_size=None):
    """All images as one uint8 array (N, 3, H, W) in memory.

    image_size: the shorter side is scaled to it and the centre is cut out; without it all images must be of one size.
    Raises InputError for unreadable images and for images of different sizes.
    """
    shape = (3, image_size, image_size) if image_size else read_image(paths[0]).shape
    images = np.empty((len(paths), *shape), dtype=np.uint8)
    decode_to(images.__setitem__, paths, image_size, shape)
    return images


def decode_to(store, paths, image_size, shape):
    """Calls store(i, pixels) for every image, from several threads in any order.   Raises InputError as `decode` does.

    shape: (3, H, W), which all must have.
    """

    def fill(i):
        pixels = read_image(paths[i], image_size)
        if pixels.shape != shape:
            (_, height, width), (_, other_height, other_width) = shape, pixels.shape
            raise InputError(f"{paths[0]} is {width}x{height} but {paths[i]} is {other_width}x{other_height}; "
                             "--image_size brings all to one size")
        store(i, pixels)

    with ThreadPoolExecutor() as pool:  # threads, as Pillow releases the interpreter lock while it decodes
        done = pool.map(fill, range(len(paths)))
        for _ in tqdm(done, desc="decoding images", total=len(paths), disable=None, leave=False):
            pass


def read_image(path: str | Path, image_size: int | None = None) -> np.ndarray:
    """The pixels of an image file as `train --dataset folder` sees them: RGB, uint8 (3, H, W).

    image_size: >= 1, to which the shorter side is scaled, bicubically, and the centre is cut out; None leaves the size.
    Raises InputError where it cannot be read.
    """
    if image_size is not None:
        check_at_least("image_size", image_size, 1)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            rgb = _as_rgb(image)
            pixels = np.asarray(_centre_square(rgb, image_size) if image_size else rgb)
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error for damaged files
        raise InputError(f"{path}: not a readable image ({reason(error)})") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _as_rgb(image):
    """The Pillow image in RGB.   Raises ValueError for more than 8 bits per channel."""
    if image.mode.startswith(("I", "F")):  # convert() would silently clip them to white
        raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
    if image.mode == "P" and "transparency" in image.info:         # which convert() to RGB would warn of
        image = image.convert("RGBA")
    return image.convert("RGB")


def _centre_square(image, size):
    """What Resize(size, BICUBIC) and CenterCrop(size) give, without making the pixels that the crop drops."""
    (width, height), shorter = image.size, min(image.size)
    scaled_width, scaled_height = size * width // shorter, size * height // shorter
    left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    box = (left * width / scaled_width, top * height / scaled_height,
           (left + size) * width / scaled_width, (top + size) * height / scaled_height)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
