"""python -m pyro_advbnn.benchmark: what Adv-BNN costs beside the bare network and beside other ways to write it."""
from pathlib import Path
from typing import Annotated, Literal

from pyro_advbnn.cli import commands, python_calls
from pyro_advbnn.cli.flag_types import Count, CountOrNone, CudaGraphs, Range, Repeats, Side
from pyro_advbnn.cli.python_calls import flag
from pyro_advbnn.experiments.timings import CONTESTANTS
from pyro_advbnn.system.precision import PRECISIONS


@python_calls.flags
class Comparison:
    """What is compared, and how."""

    network: str = flag("as in train.", "vgg16")
    contestants: list[Literal[tuple(CONTESTANTS)]] = flag("adv-bnn, a training step; deterministic, the same step of the "
        "same network without Bayes: the floor of all steps; plain-pyro, Adv-BNN with a Pyro site per parameter; authors, "
        "Adv-BNN in the style of the authors' code, in fp32 alone; prediction, num_samples draws, beside as many forward "
        "passes and draws of normals.", ("adv-bnn", "deterministic", "plain-pyro", "authors", "prediction"))
    batch_sizes: list[Annotated[int, Range(1, 65_536)]] = flag("images per call.", (32, 128))
    precisions: list[Literal[PRECISIONS]] = flag("fp32, bf16 (autocast), tf32 (cuda).", ("fp32", "bf16"))
    image_size: Side = flag("side of the images in pixels.", 32)
    num_steps: CountOrNone = flag("PGD steps of a training step, before its update.", 10)
    num_samples: Count = flag("draws averaged in predictions.", 20)
    repeats: Repeats = flag("repetitions of each measurement, after one that is not counted.", 3)
    device: str = flag("auto (cuda if present), cpu, cuda or cuda:N.", "auto")
    cuda_graphs: CudaGraphs = flag("attacks and gradients of adv-bnn and deterministic as CUDA graphs; auto = on cuda.", "auto")
    compile: bool = flag("the networks of adv-bnn and deterministic through torch.compile.", False)
    out: Path | None = flag("a new folder for benchmark.csv and benchmark.json, brought up to date after every batch size.")


@python_calls.from_python
def benchmark(*, of: Comparison):
    """Time training steps and predictions of Adv-BNN, of the same network without Bayes, and of Adv-BNN written otherwise.

    Prints medians over interleaved repetitions in wall and in CPU time, ratios to the floor of the same batch size and
    precision, the speed of the network's own arithmetic beside that of a large matrix product on this device, the most
    memory that tensors took, and how the time of a step splits into attack, update and optimizer. Images are random.
    """
    from pyro_advbnn.experiments import comparison  # here, as torch takes seconds that --help need not wait for

    comparison.run(of)


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `commands.run`."""
    commands.run(benchmark, argv, under=under, way_on="what was measured is above, and the same command begins anew")


if __name__ == "__main__":
    main()
