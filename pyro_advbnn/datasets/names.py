"""The names of data sets, splits, ways of loading and augmentations, in a file without torch."""

DEFAULT_AUGMENTATION = {
    "digits": "none",
    "cifar10": "crop_flip",
    "stl10": "crop_flip",
    "imagenet143": "resized_crop",
    "folder": "none",
    "npz": "none",
}
DATASETS = tuple(DEFAULT_AUGMENTATION)
SPLITS = ("train", "test")
LOADINGS = ("auto", "memory", "stream")
AUGMENTATIONS = ("none", "crop_flip", "resized_crop")
