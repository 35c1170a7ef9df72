"""The course of a training in its run folder: epochs, measurements, checkpoints, and what stops it before its end."""
from contextlib import nullcontext

import torch

from pyro_advbnn import datasets
from pyro_advbnn.cli import signals
from pyro_advbnn.evaluation.accuracy import accuracy_fields, count_correct
from pyro_advbnn.system import distributed
from pyro_advbnn.system.devices import is_nondeterministic, peak_memory_mib
from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.system.memory import is_out_of_memory
from pyro_advbnn.system.precision import autocast, batch_format
from pyro_advbnn.system.random_streams import separate_randomness
from pyro_advbnn.training import checkpoints, metrics, run_folders
from pyro_advbnn.training.algorithm1 import build_attack
from pyro_advbnn.training.nonfinite import NotFinite
from pyro_advbnn.training.progress import Progress

SECONDS_BETWEEN_CHECKPOINTS = 600


def fit(folder, config, training, held_out, best, max_minutes, asked):
    """Train to the end, to max_minutes, until patience runs out or a signal asks; whether the run is finished.

    Whatever stops it, the way on is told.   asked: of `signals.asking`, and after it the number of the signal.
    """
    progress = Progress(config, training, folder)
    progress.begin()
    shown = training.epochs_done if config["tensorboard"] else None
    try:
        with metrics.writer(folder, shown) if distributed.is_main() else nullcontext(_write_nothing) as write_row:
            return _fit_epochs(folder, config, training, held_out, best, max_minutes, progress, write_row, asked)
    except Exception as error:
        if isinstance(error, NotFinite) and not distributed.is_main():
            distributed.leave()                          # rank 0 has the same sums and weights, and says it
        explained = _explanation(error, folder, config, training)
        if explained is None:
            raise
        raise InputError(explained) from None
    except KeyboardInterrupt:
        progress.close()
        where = folder / "checkpoint.pt" if run_folders.has_checkpoint(folder) else "the beginning"
        print(f"go on with --resume {folder} from {where}", flush=True)
        raise
    finally:
        progress.close()


def _write_nothing(row):
    """Of several processes rank 0 alone writes."""


def _explanation(error, folder, config, training):
    """What stopped a training and how to go on, in one line; None for an error of the program's own."""
    if isinstance(error, InputError):                    # a loss that is not finite, a streamed image that is damaged
        last = f"the last good checkpoint is {folder / 'checkpoint.pt'}"
        return f"{error}; {last if run_folders.has_checkpoint(folder) else f'no checkpoint has been written to {folder} yet'}"
    if isinstance(error, OSError) and error.filename is not None:          # a full disk, a folder that is gone
        there = (folder / "config.json").exists()
        way_on = f"when that is mended, go on with --resume {folder}" if there else f"{folder} holds no run any more"
        return f"{error.filename}: {error.strerror}; {way_on}"
    if config["deterministic"] and is_nondeterministic(error):
        return f"--deterministic: {reason(error)}"
    if is_out_of_memory(error):
        tried = f"{training.images_at_a_time} images at a time{' in a process' if distributed.world_size() > 1 else ''}"
        return f"out of memory with {tried}; --resume {folder} with a smaller --micro_batch may fit"
    return None


def _fit_epochs(folder, config, training, held_out, best, max_minutes, progress, write_row, asked):
    saved, _ = distributed.clock()
    deadline = saved + 60 * max_minutes if max_minutes else float("inf")
    while not _is_over(training, best, config):
        for num_images in training.epoch():
            progress.step(num_images)
            if getattr(training.attack, "failure", None):
                progress.note(f"--cuda_graphs: none: {training.attack.failure}")
            if training.steps_done == len(training.batches):
                continue                                 # the epoch is about to be finished and saved
            now, stop = _agree(asked)
            if stop or now > deadline:
                run_folders.save_position(folder, training, config, best)
                progress.stopped(_why(stop, max_minutes))
                return False
            if now - saved > SECONDS_BETWEEN_CHECKPOINTS:
                run_folders.save_position(folder, training, config, best)
                saved = now
        best = _finish_epoch(folder, config, training, held_out, best, progress, write_row)
        now, stop = _agree(asked)
        if not _is_over(training, best, config) and (stop or now > deadline):
            progress.stopped(_why(stop, max_minutes))
            return False
    progress.finished(best)
    return True


def _is_over(training, best, config):
    return training.finished or run_folders.out_of_patience(best, training.epochs_done, config["patience"])


def _agree(asked):
    """Collective: (rank 0's time, the signal that asks to stop or 0); a signal that comes meanwhile is for the next time."""
    now, number = distributed.clock(asked.number)
    if number:                                           # else what `asked` holds now must not be lost
        asked.number = number
    return now, number


def _why(number, max_minutes):
    return signals.name_of(number) if number else f"--max_minutes {max_minutes:g} are over"


def _finish_epoch(folder, config, training, held_out, best, progress, write_row):
    """Measure, write the row, best.pt and checkpoint.pt; the best so far.

    The row comes before the checkpoint: after a crash in between, the epoch is done again and the row replaced.
    """
    row = _metrics(training, held_out, config, progress)
    measured = (row["held_out_accuracy"], row["held_out_robust_accuracy"])
    adversarial = training.attack is not None
    if held_out and _is_better(*measured, best and (best["accuracy"], best["robust_accuracy"]), adversarial=adversarial):
        best = {"epoch": training.epochs_done, "accuracy": measured[0], "robust_accuracy": measured[1]}
        if distributed.is_main():
            checkpoints.save(folder / "best.pt", training.result, config, best=best)
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
    how = {"seed": seed + epoch, "precision": training.precision,
           "batch_size": training.images_at_a_time if training.micro_batch else None}
    clean, robust = accuracies(training.result, sample, settings, **how)
    held = accuracies(training.result, held_out, settings, **how) if held_out else (None, None)
    return {"epoch": epoch, **averages, "kl_weight": kl_weight, "train_accuracy": clean, "train_robust_accuracy": robust,
            "held_out_accuracy": held[0], "held_out_robust_accuracy": held[1], "learning_rate": rate,
            "images_per_second": speed,
            "peak_memory_mib": peak_memory_mib(training.device)}


def accuracies(classifier, images, settings, *, seed, batch_size=None, precision="fp32"):
    """(clean, robust): accuracy of averaged predictions on `images`, clean and under the training's own PGD.

    Collective: each process measures its part of the images. Draws from streams of its own, so that measuring changes no
    training. batch_size: None is that of the training. precision: see `precision.autocast`.
    """
    batches = datasets.batches(images, batch_size or settings["batch_size"], shard=distributed.shard())
    with separate_randomness(distributed.own_seed(seed)), autocast(images.device, precision):
        counts = [count_correct(classifier, ((batch_format(x, precision), y) for x, y in batches), attack,
                                num_samples=settings["num_samples"]) for attack in (None, build_attack(settings))]
    return tuple(accuracy_fields(*count)["accuracy"] for count in distributed.sum_(torch.tensor(counts)).tolist())


def _is_better(clean, robust, best, *, adversarial):
    """Whether a held-out (clean, robust) pair beats `best`: by the robust one if adversarial, else by the clean one."""
    key = (robust, clean) if adversarial else (clean, robust)
    return best is None or key > ((best[1], best[0]) if adversarial else (best[0], best[1]))
