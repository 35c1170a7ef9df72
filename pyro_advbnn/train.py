"""python -m pyro_advbnn.train: train one defence on one data set."""
import time
import warnings
from pathlib import Path
from typing import Annotated, Literal

from pyro_advbnn import checkpoints, cli, configuration, datasets, recipes, records, run_folders
from pyro_advbnn.cli import Range
from pyro_advbnn.defenses import DEFENSES
from pyro_advbnn.devices import peak_memory_mib
from pyro_advbnn.elbo import skip_validation
from pyro_advbnn.errors import InputError
from pyro_advbnn.priors import PRIORS
from pyro_advbnn.progress import Progress
from pyro_advbnn.training import accuracies, is_better

Positive = Annotated[float | None, Range(0, open_low=True)]
NotNegative = Annotated[float | None, Range(0)]
Count = Annotated[int | None, Range(1)]
CountOrNone = Annotated[int | None, Range(0)]
Std = Annotated[float, Range(0, open_low=True)] | str | None
SECONDS_BETWEEN_CHECKPOINTS = 600


def train(
    *,
    dataset: Literal[datasets.DATASETS] | None = None,
    data_dir: Path | None = None,
    defense: Literal[tuple(DEFENSES)] | None = None,
    network: str | None = None,
    recipe: Literal[tuple(recipes.RECIPES)] | None = None,
    epochs: Count = None,
    max_minutes: Positive = None,
    patience: Count = None,
    batch_size: Count = None,
    optimizer: Literal["adam", "sgd"] | None = None,
    learning_rate: Positive = None,
    weight_decay: NotNegative = None,
    schedule: Literal["stages", "cosine", "constant"] | None = None,
    alpha: NotNegative = None,
    prior: Literal[tuple(PRIORS)] | None = None,
    prior_std: Std = None,
    init_std: Std = None,
    kl_over: Literal["all", "last"] | None = None,
    kl_warmup: Annotated[float | None, Range(0, 1)] = None,
    init_from: Path | None = None,
    initialization: Literal["default", "authors"] | None = None,
    epsilon: Annotated[float | None, Range(0, 1)] = None,
    step_size: Annotated[float, Range(0, 1)] | Literal["auto"] | None = None,
    num_steps: CountOrNone = None,
    attack_samples: Count = None,
    num_samples: Count = None,
    augmentation: Literal[tuple(datasets.AUGMENTATIONS)] | None = None,
    num_train: Count = None,
    validation: CountOrNone = None,
    width: Count = None,
    image_size: Count = None,
    loading: Literal[datasets.LOADINGS] | None = None,
    workers: CountOrNone = None,
    seed: Annotated[int | None, Range(0, 2**31 - 1)] = None,
    device: str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    tensorboard: bool = False,
    dry_run: bool = False,
):
    """Train one defence on one data set into a run folder. What no flag says comes from the recipe.

    The test split is never opened. The batches' crops and flips, their order and the weights' draws each have a random
    stream of their own, so that a run that was interrupted and resumed ends with the same weights.

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
        batch_size: images per step.
        optimizer: adam, or sgd with momentum 0.9.
        learning_rate: its peak.
        weight_decay: L2 factor of the optimizer.
        schedule: stages (divided by 10 after each), cosine (one cycle) or constant.
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
        device: auto (cuda if present; the default), cpu, cuda or cuda:N.
        precision: fp32 (the default), or bf16: autocast, with losses in float32.
        out: the new run folder; default runs/<dataset>-<defense>-<time>.
        resume: run folder to go on with; epochs, max_minutes, patience, tensorboard, data_dir, device, network and
            workers may be given too. A run without a checkpoint yet starts from the beginning.
        tensorboard: also write the numbers of metrics.jsonl into a TensorBoard event file in the run folder, rounded to
            its single precision; needs the package tensorboard. A resumed run goes on doing so.
        dry_run: print the configuration and stop.
    """
    flags = {name: value for name, value in locals().items() if value is not None and value is not False}
    resumed, folder, dry = flags.pop("resume", None), flags.pop("out", None), flags.pop("dry_run", False)
    skip_validation()
    if resumed:
        config, training, held_out, best = configuration.resume(resumed, flags | ({"out": folder} if folder else {}))
        if run_folders.out_of_patience(best, training.epochs_done, config["patience"]):
            raise InputError(f"{resumed} has had no better held-out accuracy for {training.epochs_done - best['epoch']}"
                             f" epochs; a larger --patience goes on")
    else:
        if folder:
            run_folders.refuse_existing(folder)
        config, images, held_out = configuration.configure(flags)
        training, best = configuration.build(config, images), None
    if dry:
        return print(records.as_json(config))
    if resumed:
        run_folders.reopen(resumed, config, training.epochs_done)
        if not training.progress:
            print(f"{resumed} has no checkpoint yet and starts from the beginning")
    else:
        folder = run_folders.create(folder or _default_folder(config), config)
    _fit(resumed or folder, config, training, held_out, best, flags.get("max_minutes"))


def _default_folder(config):
    return Path("runs") / f"{config['dataset']}-{config['defense']}-{time.strftime('%Y%m%d-%H%M%S')}"


def _fit(folder, config, training, held_out, best, max_minutes):
    """Train to the end, to max_minutes or until patience runs out; whatever else stops it, the way on is told."""
    progress = Progress(config, training, folder)
    progress.begin()
    try:
        with run_folders.metrics_writer(folder, config) as write_row, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN")     # Pyro's; the training stops with a line of ours
            _fit_epochs(folder, config, training, held_out, best, max_minutes, progress, write_row)
    except InputError as error:                          # a loss that is not finite, a streamed image that is damaged
        progress.close()
        last = f"the last good checkpoint is {folder / 'checkpoint.pt'}"
        none = f"no checkpoint has been written to {folder} yet"
        raise InputError(f"{error}; {last if run_folders.has_position(folder) else none}") from None
    except KeyboardInterrupt:
        progress.close()
        where = folder / "checkpoint.pt" if run_folders.has_position(folder) else "the beginning: it has no checkpoint yet"
        print(f"go on with --resume {folder} from {where}", flush=True)
        raise


def _fit_epochs(folder, config, training, held_out, best, max_minutes, progress, write_row):
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
    saved = time.monotonic()
    while not training.finished and not run_folders.out_of_patience(best, training.epochs_done, config["patience"]):
        for num_images in training.epoch():
            progress.step(num_images)
            if training.steps_done == len(training.batches):
                continue                                 # the epoch is about to be finished and saved
            if time.monotonic() > deadline:
                run_folders.save_position(folder, training, config, best)
                return progress.stopped(f"--max_minutes {max_minutes:g} are over")
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                run_folders.save_position(folder, training, config, best)
                saved = time.monotonic()
        best = _finish_epoch(folder, config, training, held_out, best, progress, write_row)
        if time.monotonic() > deadline and not training.finished:
            return progress.stopped(f"--max_minutes {max_minutes:g} are over")
    progress.finished(best)


def _finish_epoch(folder, config, training, held_out, best, progress, write_row):
    """Measure, write the row, best.pt and checkpoint.pt; the best so far.

    The row comes before the checkpoint: after a crash in between, the epoch is done again and the row replaced.
    """
    row = _metrics(training, held_out, config, progress)
    measured = (row["held_out_accuracy"], row["held_out_robust_accuracy"])
    adversarial = training.attack is not None
    if held_out and is_better(*measured, best and (best["accuracy"], best["robust_accuracy"]), adversarial=adversarial):
        best = {"epoch": training.epochs_done, "accuracy": measured[0], "robust_accuracy": measured[1]}
        checkpoints.save(folder / "best.pt", training.classifier, config, best=best)
    write_row(row)
    run_folders.save_position(folder, training, config, best)
    progress.epoch(row)
    return best


def _metrics(training, held_out, config, progress):
    settings, seed, epoch = training.settings, config["seed"], training.epochs_done
    rate, kl_weight = training.last_learning_rate, training.last_kl_weight
    averages, speed = training.averages(), progress.images_per_second()
    training.restart_averages()
    sample = datasets.balanced_subset(training.images, min(len(training.images), config["num_held_out"] or 1000), seed)
    clean, robust = accuracies(training.classifier, sample, settings, seed=seed + epoch)
    held = accuracies(training.classifier, held_out, settings, seed=seed + epoch) if held_out else (None, None)
    return {"epoch": epoch, **averages, "kl_weight": kl_weight, "loss": averages["nll"] + kl_weight * averages["kl"],
            "train_accuracy": clean, "train_robust_accuracy": robust, "held_out_accuracy": held[0],
            "held_out_robust_accuracy": held[1], "learning_rate": rate, "images_per_second": speed,
            "peak_memory_mib": peak_memory_mib(training.device)}


if __name__ == "__main__":
    cli.run(train)
