"""The flags of reproduce, and what its four scales stand for."""
from pathlib import Path
from typing import Literal

from pyro_advbnn.cli import python_calls
from pyro_advbnn.cli.flag_types import BatchSize, Count, Epochs, ImageCount, Jobs, Minutes, Seed, Side, Width
from pyro_advbnn.cli.python_calls import flag
from pyro_advbnn.datasets.names import DATASETS
from pyro_advbnn.system.precision import PRECISIONS


@python_calls.flags
class Reproduction:
    """The flags that every piece takes."""

    dataset: Literal[DATASETS] = flag("digits comes with scikit-learn; the others read data_dir.", "digits")
    data_dir: Path | None = flag("folder of the data set, as in train.")
    image_size: Side | None = flag("as in train.")
    scale: Literal["smoke", "small", "medium", "paper"] = flag("smoke (minutes, with digits), small (a subset and a narrow "
        "network), medium (all images, VGG16 of 16 base channels or on stl10 model_a, in 30 epochs: hours on two cores), "
        "paper (all images and the paper's network, in 30 epochs of one cycle with batches of 256).", "smoke")
    recipe: Literal["paper", "authors", "ours"] | None = flag("as in train; default ours, at scale paper authors.")
    network: str | None = flag("as in train; default by data set and scale.")
    width: Width | None = flag("base number of channels.")
    epochs: Epochs | None = flag("passes over the training set.")
    batch_size: BatchSize | None = flag("images per training step.")
    num_train: ImageCount | None = flag("class-balanced subset of the training images.")
    num_test: ImageCount | None = flag("test images, each class by its share; what takes many passes may take fewer.")
    attack_samples: Count | None = flag("weight draws per gradient of the honest attack, which stands beside the paper's "
        "with one.")
    seed: Seed = flag("of all random streams.", 0)
    device: str = flag("auto (cuda if present), cpu, cuda or cuda:N.", "auto")
    precision: Literal[PRECISIONS] | None = flag("of the training: fp32, tf32 (GPUs only) or bf16; default fp32, at scales "
        "medium and paper as in train.")
    out: Path | None = flag("folder of the runs, csv files, figures, tables and the report; default "
        "runs/reproduce-<dataset>-<scale>.")
    max_minutes: Minutes | None = flag("stop a training after this time, or start no further step; the same command goes on.")
    jobs: Jobs = flag("trainings at once, each a process with its share of the cores, whose output goes to OUT/logs; "
        "evaluations run one at a time, in a job's place.", 1)
    dry_run: bool = flag("print the plan and stop.", False)


# Per scale: the flags of train and num_test, where nobody chose them; num_few is the number of test images for what takes
# many passes (1000 steps, pruning), num_many for many draws per gradient, num_honest for 1000 steps of them, which the other
# scales leave out, and num_worst for the ensemble of attacks.
_SCALES = {
    "smoke": {"recipe": "ours", "epochs": 8, "num_train": 600, "num_test": 100, "num_few": 100, "width": 8, "validation": 60,
              "attack_samples": 10},
    "small": {"recipe": "ours", "epochs": 16, "batch_size": 64, "num_train": 5000, "num_test": 1000, "num_few": 200,
              "width": 12, "validation": 500, "attack_samples": 10},
    "medium": {"recipe": "ours", "epochs": 30, "width": 16, "weight_averaging": 0.999, "num_test": 2000, "attack_samples": 20,
               "num_few": 500, "num_many": 500, "num_honest": 100, "trial_epochs": 5, "num_worst": 500},
    "paper": {"recipe": "authors", "epochs": 30, "schedule": "cosine", "batch_size": 256, "attack_samples": 20,
              "num_honest": 500, "trial_epochs": 10, "num_worst": 1000},
}
_CHOICES = ("recipe", "network", "width", "epochs", "batch_size", "num_train", "num_test", "attack_samples")
_SMALL_NETWORKS = {"cifar10": "vgg11", "imagenet143": "vgg11"}
# Where a data set is unlike the others: on digits all images and the convnet as it is are small enough for "smoke"; STL-10
# has few images, large ones, for which Model A is as the paper has it.
_OWN = {
    ("smoke", "digits"): {"num_train": None, "num_test": None, "width": None, "validation": None},
    ("medium", "stl10"): {"width": None, "weight_averaging": 0.995, "validation": 500, "num_test": 3000, "num_few": 200,
                          "num_honest": 50, "trial_epochs": 10, "num_worst": 200},
}


def of(wanted):
    """The name of the scale of a `Reproduction`; digits know nothing between "smoke" and all that there is."""
    return "smoke" if (wanted.scale, wanted.dataset) == ("medium", "digits") else wanted.scale


def settings(wanted, num_train, num_test):
    """The settings of a reproduction, its own flags over those of its scale, for splits of that many images."""
    scale = _SCALES[of(wanted)] | _OWN.get((of(wanted), wanted.dataset), {})
    own = {name: getattr(wanted, name) for name in _CHOICES if getattr(wanted, name) is not None}
    network = _SMALL_NETWORKS.get(wanted.dataset) if wanted.scale in ("smoke", "small") else None
    found = dict.fromkeys(_CHOICES) | {"network": network} | scale | own
    if found["recipe"] != "ours":                        # the others are what others did
        found.pop("weight_averaging", None)
    tested = min(found["num_test"] or num_test, num_test)
    found["num_few"] = tested if wanted.num_test else min(scale.get("num_few", tested), tested)
    if found.get("validation"):
        found["validation"] = min(found["validation"], min(found["num_train"] or num_train, num_train) // 5)
    if ":" in (wanted.network or "") and wanted.width is None:
        found["width"] = None                            # only our own networks have one
    return found
