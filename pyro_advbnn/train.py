"""python -m pyro_advbnn.train: train one defence on one data set."""
if __name__ == "__main__":                               # before torch is imported, which takes seconds
    from pyro_advbnn.cli import signals

    signals.end_at_once()

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

from pyro_advbnn import datasets
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.bayes.settings import PRIORS
from pyro_advbnn.cli import commands, signals
from pyro_advbnn.cli.choices import BatchNorm, CudaGraphs, Initialization, KLOver, Optimizer, Schedule
from pyro_advbnn.cli.commands import Range
from pyro_advbnn.cli.limits import (
    BatchSize,
    Count,
    CountOrNone,
    Epochs,
    Images,
    ImagesOrNone,
    Minutes,
    Seed,
    Side,
    Width,
    Workers,
)
from pyro_advbnn.system import distributed, json_files, locks
from pyro_advbnn.system.devices import describe_device, only_deterministic
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import PRECISIONS, float32_products
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.training import configuration, contradictions, loop, recipes, run_folders
from pyro_advbnn.training.progress import tell_source

Positive = Annotated[float | None, Range(0, open_low=True)]
NotNegative = Annotated[float | None, Range(0)]
Std = Annotated[float, Range(0, open_low=True)] | str | None


@commands.checked(lambda flags: contradictions.check_meaning((configuration.DEFAULTS | flags)["defense"], flags))
def train(
    *,
    dataset: Literal[datasets.DATASETS] | None = None,
    data_dir: Path | None = None,
    defense: Literal[tuple(DEFENSES)] | None = None,
    network: str | None = None,
    recipe: Literal[tuple(recipes.RECIPES)] | None = None,
    epochs: Epochs | None = None,
    max_minutes: Minutes | None = None,
    patience: Epochs | None = None,
    batch_size: BatchSize | None = None,
    optimizer: Optimizer | None = None,
    learning_rate: Positive = None,
    weight_decay: NotNegative = None,
    schedule: Schedule | None = None,
    weight_averaging: Annotated[float | None, Range(0, 1, open_high=True)] = None,
    running_statistics: Annotated[float | None, Range(0, 1)] = None,
    alpha: NotNegative = None,
    prior: Literal[PRIORS] | None = None,
    prior_std: Std = None,
    init_std: Std = None,
    kl_over: KLOver | None = None,
    kl_warmup: Annotated[float | None, Range(0, 1)] = None,
    init_from: Path | None = None,
    initialization: Initialization | None = None,
    epsilon: Annotated[float | None, Range(0, 1)] = None,
    step_size: Annotated[float, Range(0, 1)] | Literal["auto"] | None = None,
    num_steps: CountOrNone | None = None,
    attack_samples: Count | None = None,
    num_samples: Count | None = None,
    augmentation: Literal[datasets.AUGMENTATIONS] | None = None,
    num_train: Images | None = None,
    validation: ImagesOrNone | None = None,
    width: Width | None = None,
    image_size: Side | None = None,
    loading: Literal[datasets.LOADINGS] | None = None,
    workers: Workers | None = None,
    seed: Seed | None = None,
    device: str | None = None,
    precision: Literal[PRECISIONS] | None = None,
    compile: bool | None = None,
    cuda_graphs: CudaGraphs | None = None,
    micro_batch: BatchSize | None = None,
    batch_norm: BatchNorm | None = None,
    deterministic: bool | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    tensorboard: bool = False,
    dry_run: bool = False,
):
    """Train one defence on one data set into a run folder. What no flag says comes from the recipe.

    The test split is never opened. The batches' crops and flips, their order and the weights' draws each have a random
    stream of their own, so that a run that was interrupted and resumed ends with the same weights.

    Under torchrun several processes train one classifier: each draws its own weights and takes its part of every batch.

    Args:
        dataset: the images, default digits; cifar10, stl10, imagenet143, folder and npz read data_dir.
        data_dir: folder of the data set (npz: the file); default data/ for cifar10 and stl10.
        defense: none, adv (PGD training), rse (noise), bnn (Bayesian), advbnn (Bayesian and PGD training; the default),
            advrse (noise and PGD training).
        network: vgg11, vgg13, vgg16, vgg19, model_a, convnet, torchvision:NAME or package.module:function.
        recipe: paper (Table 2, KL of all weights), authors (what their code did), ours (the default; KL of all weights,
            made to train).
        epochs: passes over the training set.
        max_minutes: stop after this time, resumable.
        patience: stop after this many epochs without a better held-out accuracy.
        batch_size: images per step, of all processes together.
        optimizer: adam, or sgd with momentum 0.9.
        learning_rate: its peak.
        weight_decay: L2 factor of the optimizer.
        schedule: stages (divided by 10 after each), cosine (one cycle) or constant.
        weight_averaging: decay by step of an exponential moving average of the weights and BatchNorm's statistics, which is
            then what is measured and kept; less at the beginning; default 0, none.
        running_statistics: share of the training after which BatchNorm normalises batches by its running statistics, as
            attacks and predictions do; default 1, never: by the batch's own.
        alpha: factor of the KL in Eq. (10).
        prior: normal, or scale_mixture or spike_and_slab: these need a number as prior_std, and their KL is a
            Monte-Carlo estimate.
        prior_std: std of the prior, a number, fan_in = sqrt(2 / fan-in), or a multiple such as fan_in/2.
        init_std: std that the posterior starts with, likewise.
        kl_over: KL of all weights, or of the last layer as in the authors' code.
        kl_warmup: share of the training over which alpha rises from 0.
        init_from: run folder whose trained network the posterior mean starts at.
        initialization: PyTorch's own, or the authors' (BatchNorm scale uniform in [0, 1]).
        epsilon: l_inf radius of the attack in training.
        step_size: PGD step; auto = 2.5 epsilon / num_steps; default 0.007 on cifar10, stl10 and imagenet143, else auto.
        num_steps: PGD steps in training.
        attack_samples: draws, of the weights or of the noise, averaged in each attack gradient.
        num_samples: draws averaged in held-out predictions.
        augmentation: none, crop_flip or resized_crop; default by data set.
        num_train: use a class-balanced subset of this size, from which the held-out images are then split off.
        validation: number of held-out images, by default 1000 (digits 150) but at most a fifth; best.pt and patience read
            only these.
        width: base number of channels of our networks.
        image_size: side in pixels that the images of dataset folder are brought to.
        loading: of dataset folder: memory, stream (read the files as they are needed; needs image_size), or auto (the
            default: stream where the images do not fit).
        workers: processes that read streamed images; default as many as there are cores, at most 8; 0 reads them in the
            training's own.
        seed: of all random streams, default 0.
        device: auto (cuda if present; the default), cpu, cuda or cuda:N; under torchrun cuda is one GPU per process.
        precision: fp32 (the default on a CPU), tf32 (GPUs only) or bf16 (the default on a GPU): autocast; weights, losses and
            the optimizer stay in float32.
        compile: translate the network with torch.compile; where that fails, a line says why.
        cuda_graphs: capture the attack as one CUDA graph; auto = on a GPU. Where that fails, a line says why.
        micro_batch: the most images in the network at a time, for a batch that does not fit into memory: the same draws and
            the same gradient, but for BatchNorm, which then normalises each part by itself.
        batch_norm: of several processes: sync (statistics of the joined batch; the default), or broadcast (of each
            process's own part; the running statistics are those of rank 0).
        deterministic: only algorithms that give the same bits each time on one machine; slower on a GPU. An operation that has
            none stops the training.
        out: the new run folder; default runs/<dataset>-<defense>-<time>; to be given under torchrun, which goes on with it
            when it starts the processes anew.
        resume: run folder to go on with; epochs, max_minutes, patience, tensorboard, data_dir, device, network, workers,
            precision, compile, cuda_graphs and micro_batch may be given too. A run without a checkpoint yet
            starts from the beginning.
        tensorboard: also write the numbers of metrics.jsonl into a TensorBoard event file in the run folder, rounded to
            its single precision; needs the package tensorboard. A resumed run goes on doing so.
        dry_run: print the configuration and stop.
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    flags = {name: value for name, value in flags.items() if value or name not in ("tensorboard", "dry_run")}
    distributed.run(_train, flags)


@process_settings()
def _train(flags):
    """Check and prepare all, then write the run folder and train."""
    dry, max_minutes = flags.pop("dry_run", False), flags.get("max_minutes")
    with ExitStack() as locked:
        interrupted = _train_locked(flags, dry, max_minutes, locked)
    if interrupted:
        raise interrupted


def _train_locked(flags, dry, max_minutes, locked):
    """`_train`, whose lock of the run folder goes into the stack `locked`; the `Interrupted` to raise, if a signal came."""
    with distributed.together():
        resumed, folder = flags.pop("resume", None), flags.pop("out", None)
        if folder and _is_this_jobs(folder, flags):
            if run_folders.is_finished(folder):
                return print(f"{folder} is finished")
            flags = {name: value for name, value in flags.items() if name in configuration.MAY_CHANGE_ON_RESUME}
            resumed, folder = folder, None
        if resumed and not dry and distributed.is_main():
            _lock(resumed, locked)
    with distributed.together():                         # apart, as loading has the others wait for the first process
        config, training, held_out, best = _resume(resumed, folder, flags) if resumed else _begin(folder, flags)
    distributed.require_same(
        [config["images_sha256"], str(resumed), training.epochs_done, training.steps_done],
        "the machines do not see the same images and the same run folder; both must lie where all of them can read")
    if dry:
        return print(json_files.as_json(config))
    folder = resumed or folder or _default_folder(config)
    _open(folder, config, training, resumed, locked)
    for classifier in dict.fromkeys([training.classifier, training.result]):
        distributed.broadcast_([*classifier.parameters(), *classifier.buffers()])
    with only_deterministic(config["deterministic"]), float32_products(config["precision"]), signals.asking() as asked:
        for note in configuration.accelerate(training, config):
            print(note)
        finished = loop.fit(folder, config, training, held_out, best, max_minutes, asked)
    return signals.Interrupted(asked.number, f"{folder} is finished" if finished else "") if asked.number else None


def _is_this_jobs(folder, flags):
    """Whether the run in `folder` is the one that these flags began, and torchrun has started its processes anew."""
    if not distributed.launched() or not (folder / "config.json").exists():
        return False
    config = run_folders.read_config(folder)
    return distributed.is_this_job(config.get("job")) and configuration.is_run_of(config, flags)


def _lock(folder, locked):
    """Take the lock of a run that is to go on, before its checkpoint is read."""
    run_folders.read_config(folder)                      # no lock is left in a folder that is no run
    locked.enter_context(locks.locked(folder))


def _resume(resumed, folder, flags):
    config, training, held_out, best = configuration.resume(resumed, flags | ({"out": folder} if folder else {}))
    if run_folders.out_of_patience(best, training.epochs_done, config["patience"]):
        raise InputError(f"{resumed} has had no better held-out accuracy for {training.epochs_done - best['epoch']}"
                         f" epochs; a larger --patience goes on")
    return config, training, held_out, best


def _begin(folder, flags):
    if folder:
        run_folders.refuse_existing(folder)
        run_folders.check_writable(folder)
    elif distributed.launched():
        raise InputError("under torchrun --out or --resume must be given: the processes share a folder, also when started anew")
    config, images, held_out = configuration.configure(flags)
    return config, configuration.build(config, images), held_out, None


def _open(folder, config, training, resumed, locked):
    """Make the run folder, or write the config of a run that goes on."""
    if not distributed.is_main():
        return
    if not resumed:
        locked.enter_context(locks.locked(folder))
        run_folders.create(folder, config)
        return tell_source(config["init_from"]) if config["init_from"] else None
    run_folders.reopen(folder, config, training.epochs_done)
    now, then = describe_device(training.device), config["environment"].get("device")
    if config["deterministic"] and now != then:
        print(f"note: the run began on {then}, this is {now}: its end will not have the same bits")
    if not training.progress:
        print(f"{folder} has trained nothing yet and starts from the beginning")


def _default_folder(config):
    return Path("runs") / f"{config['dataset']}-{config['defense']}-{time.strftime('%Y%m%d-%H%M%S')}"


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `cli.run`."""
    commands.run(train, argv, processes=True, under=under)


if __name__ == "__main__":
    main()
