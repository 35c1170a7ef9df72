"""Image files: one as pixels, many decoded at once, and what fits in the memory."""
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.system.memory import available_memory

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # not EPS: Pillow opens it by running Ghostscript


def decode(paths, image_size=None):
    """All images as one uint8 array (N, 3, H, W) in memory.

    image_size: the shorter side is scaled to it and the centre is cut out; without it all images must be of one size.
    Raises InputError for unreadable images, images of different sizes and more than fits in the memory.
    """
    with no_bombs():
        width, height = (image_size, image_size) if image_size else read(paths[0], lambda image: image.size)
    _refuse_too_large(len(paths), height, width, Path(paths[0]).parent.parent)
    images = np.empty((len(paths), 3, height, width), dtype=np.uint8)
    decode_to(images.__setitem__, paths, image_size, (width, height))
    return images


def decode_to(store, paths, image_size, size):
    """Calls store(i, pixels (3, H, W)) for every image, from several threads in any order.

    size: (width, height) that all must have. Raises InputError as `decode` does.
    """

    def fill(i):
        pixels = read(paths[i], lambda image: _pixels(image, image_size))
        if pixels.shape[1::-1] != size:
            other = f"{paths[i]} is {pixels.shape[1]}x{pixels.shape[0]}"
            raise InputError(f"{paths[0]} is {size[0]}x{size[1]} but {other}; --image_size brings all to one size")
        store(i, pixels.transpose(2, 0, 1))

    with no_bombs(), ThreadPoolExecutor() as pool:  # threads, as Pillow releases the interpreter lock while it decodes
        done = pool.map(fill, range(len(paths)))
        for _ in tqdm(done, desc="decoding images", total=len(paths), disable=None, leave=False):
            pass


@contextmanager
def no_bombs():
    """Inside, images that Pillow warns of as decompression bombs are unreadable; the filters belong to the process.

    Its other warnings, of metadata that nobody reads and of transparency that is left out, are not shown.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read(path, use):
    """What `use` makes of the opened image.   Raises InputError where anything goes wrong with it."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return use(image)
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error for damaged files
        raise InputError(f"{path}: not a readable image ({reason(error)})") from error


def _pixels(image, image_size):
    return np.asarray(centre_square(as_rgb(image), image_size) if image_size else as_rgb(image))


def as_rgb(image):
    """The Pillow image in RGB.   Raises ValueError for more than 8 bits per channel."""
    if image.mode.startswith(("I", "F")):  # convert() would silently clip them to white
        raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
    return image.convert("RGB")


def centre_square(image, size):
    """What Resize(size, BICUBIC) and CenterCrop(size) give, without making the pixels that the crop drops.

    So a file of 1x60000 pixels cannot fill the memory.
    """
    scaled = [size * side // min(image.size) for side in image.size]
    starts = [round((length - size) / 2) for length in scaled]
    box = [edge[i] * image.size[i] / scaled[i] for edge in (starts, [start + size for start in starts]) for i in (0, 1)]
    return image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box))


def _refuse_too_large(num, height, width, folder):
    needed, available = num * 3 * height * width, available_memory()
    if needed > available:
        gib = 2**30
        raise InputError(f"{folder}: {num} images of {width}x{height} need {needed / gib:.2f} GiB of memory, "
                         f"but {available / gib:.2f} GiB are available; a folder's images can be streamed "
                         f"(--loading stream --image_size N)")
