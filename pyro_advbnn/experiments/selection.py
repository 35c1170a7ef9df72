"""Which trained runs an evaluation is about, and on which images: flags that every verb of evaluate takes."""
from pathlib import Path
from typing import Literal

from pyro_advbnn.cli import python_calls
from pyro_advbnn.cli.flag_types import BatchSize, ImageCount, Seed
from pyro_advbnn.cli.python_calls import flag


@python_calls.flags
class Selection:
    """The runs that are evaluated."""

    run: Path | None = flag("run folder of a training.", first=True)
    runs: list[Path] | None = flag("several of them, as A,B,C; all of one data set.", first=True)
    mixture: list[Path] | None = flag("several runs, as A,B,C, as one (not of posterior and gradients): a mixture whose calls "
        "visit each in turn, in random order.")
    out: Path | None = flag("folder that takes evaluation/ and figures/; default the run itself, or the folder in which all "
        "the runs lie.")
    split: Literal["test", "held_out"] = flag("test, or held_out: the images that the run split off its training set, for "
        "choosing hyper-parameters.", "test")
    num_test: ImageCount | None = flag("use a subset of the split with its share of each class, chosen by seed.")
    batch_size: BatchSize = flag("images attacked at once; they share the draws of a random network.", 500)
    checkpoint: Literal["best", "last"] = flag("best (by held-out accuracy, under attack where the training attacked; "
        "the last, where nothing was held out) or last.", "best")
    data_dir: Path | None = flag("folder of the data set, where it has moved since the training.")
    network: str | None = flag("package.module:function once more, for runs that trained a network of your own.")
    seed: Seed = flag("of the weight draws and of the subset.", 0)
    device: str = flag("auto (cuda if present), cpu, cuda or cuda:N.", "auto")
    precision: Literal["fp32", "tf32", "bf16"] = flag("in which networks compute: fp32, tf32 (GPUs only) or bf16; rows of "
        "another than fp32 name it beside the network.", "fp32")
