"""Images: what the other rooms and `ab.datasets` may use, each imported when it is first asked for."""
from importlib import import_module

_HOMES = {
    "augmentation": ("augment", "unit_range"),
    "batching": ("batches",),
    "decoding": ("read_image",),
    "image_sets": ("Images",),
    "loading": ("from_arrays", "load"),
    "names": ("AUGMENTATIONS", "DATASETS", "DEFAULT_AUGMENTATION", "SPLITS"),
    "streaming": ("StreamedImages",),
    "subsets": ("balanced_subset", "hold_out", "most_held_out", "stratified_subset"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["AUGMENTATIONS", "Images", "augment", "balanced_subset", "batches", "from_arrays", "hold_out", "load",
           "read_image", "stratified_subset"]


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
