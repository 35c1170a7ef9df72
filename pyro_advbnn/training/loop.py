"""The course of a training in its run folder: epochs, measurements, checkpoints, and what stops it before its end."""
import signal
from contextlib import nullcontext

import torch

from pyro_advbnn import datasets
from pyro_advbnn.cli import signals
from pyro_advbnn.evaluation.accuracy import count_correct
from pyro_advbnn.evaluation.weight_statistics import module_numbers
from pyro_advbnn.system import distributed
from pyro_advbnn.system.devices import is_nondeterministic, peak_memory_mib
from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.system.memory import is_out_of_memory
from pyro_advbnn.system.precision import autocast
from pyro_advbnn.system.random_streams import separate_randomness, undisturbed
from pyro_advbnn.training import checkpoints, metrics, run_folders
from pyro_advbnn.training.nonfinite import NotFinite
from pyro_advbnn.training.progress import Progress
from pyro_advbnn.training.recipes import build_attack

SECONDS_BETWEEN_CHECKPOINTS = 600


def run(folder, config, training, held_out, best, max_minutes, asked):
    """Train to the end, to max_minutes, until patience runs out or a signal asks; whether the run is finished.

    Whatever stops it, the way on is told.   asked: of `signals.asking`, and after it the number of the signal.
    """
    course = Course(folder, config, training, held_out, best, asked)
    course.progress.begin()
    shown = training.epochs_done if config["tensorboard"] else None
    try:
        with metrics.writer(folder, shown) if distributed.is_main() else nullcontext(lambda row: None) as write_row:
            return course.run(max_minutes, write_row)
    except Exception as error:
        if isinstance(error, NotFinite) and not distributed.is_main():
            distributed.leave()                          # rank 0 has the same sums and weights, and says it
        explained = _explanation(error, folder, config, training)
        if explained is None:
            raise
        raise InputError(explained) from None
    except KeyboardInterrupt as error:
        course.progress.close()
        if run_folders.is_finished(folder):              # a second signal, when all was written
            asked.number = asked.number or getattr(error, "number", signal.SIGINT)
            return True
        where = folder / "checkpoint.pt" if run_folders.has_checkpoint(folder) else "the beginning"
        print(f"go on with {run_folders.to_resume(folder)} from {where}", flush=True)
        raise
    finally:
        course.progress.close()


def _explanation(error, folder, config, training):
    """What stopped a training and how to go on, in one line; None for an error of the program's own."""
    if isinstance(error, InputError):                    # a loss that is not finite, a streamed image that is damaged
        last = f"the last good checkpoint is {folder / 'checkpoint.pt'}"
        return f"{error}; {last if run_folders.has_checkpoint(folder) else f'no checkpoint has been written to {folder} yet'}"
    if isinstance(error, OSError) and error.filename is not None:          # a full disk, a folder that is gone
        there = (folder / "config.json").exists()
        way_on = (f"when that is mended, go on with {run_folders.to_resume(folder)}" if there else
                  f"{folder} holds no run any more")
        return f"{error.filename}: {error.strerror}; {way_on}"
    if config["deterministic"] and is_nondeterministic(error):
        return f"--deterministic: {reason(error)}"
    if is_out_of_memory(error):
        tried = f"{training.images_at_a_time} images at a time{' in a process' if distributed.world_size() > 1 else ''}"
        together = distributed.world_size() > 1 and config["batch_norm"] == "sync"      # takes no micro-batches
        if training.take_gradients and not together:
            tried += " and CUDA graphs (--cuda_graphs off needs less)"
        if together or training.images_at_a_time == 1:
            return f"out of memory with {tried}; a new run with a smaller --batch_size, --width or --image_size may fit"
        return f"out of memory with {tried}; {run_folders.to_resume(folder)} with a smaller --micro_batch may fit"
    return None


class Course:
    """The epochs of one training in its run folder; best: the epoch that did best so far and its accuracies, or None."""

    def __init__(self, folder, config, training, held_out, best, asked):
        self.folder, self.config, self.training = folder, config, training
        self.held_out, self.best, self.asked = held_out, best, asked
        self.progress = Progress(config, training, folder)

    def run(self, max_minutes, write_row):
        """Train until it is over, or something asks to stop; whether it is over."""
        saved, _ = distributed.clock()
        deadline = saved + 60 * max_minutes if max_minutes else float("inf")
        while not self._is_over():
            for num_images in self.training.epoch():
                self._show(num_images)
                if self.training.steps_done == len(self.training.batches):
                    continue                             # the epoch is about to be finished and saved
                now, stop = self._agree()
                if stop or now > deadline:
                    self._save()
                    return self._stopped(stop, max_minutes)
                if now - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self._save()
                    saved = now
            self.finish_epoch(write_row)
            now, stop = self._agree()
            if not self._is_over() and (stop or now > deadline):
                return self._stopped(stop, max_minutes)
        self.progress.finished(self.best)
        return True

    def _show(self, num_images):
        self.progress.step(num_images)
        for part, function in (("attack", self.training.attack), ("gradients", self.training.take_gradients)):
            if failure := getattr(function, "failure", None):
                self.progress.note(f"--cuda_graphs: none of the {part}: {failure}", about=f"cuda_graphs {part}")

    def _is_over(self):
        done, patience = self.training.epochs_done, self.config["patience"]
        return self.training.finished or run_folders.out_of_patience(self.best, done, patience)

    def _agree(self):
        """Collective: (rank 0's time, the signal that asks to stop or 0); a signal that comes now is for the next time."""
        now, number = distributed.clock(self.asked.number)
        if number:                                       # else what `asked` holds now must not be lost
            self.asked.number = number
        return now, number

    def _stopped(self, number, max_minutes):
        self.progress.stopped(signals.name_of(number) if number else f"--max_minutes {max_minutes:g} are over")
        return False

    def _save(self):
        run_folders.save_position(self.folder, self.training, self.config, self.best)

    def finish_epoch(self, write_row):
        """Measure, write the row, best.pt and checkpoint.pt.

        The row comes before the checkpoint: after a crash in between, the epoch is done again and the row replaced.
        """
        row = self._measure()
        clean, robust = row["held_out_accuracy"], row["held_out_robust_accuracy"]
        if self.held_out and self._is_better(clean, robust):
            self.best = {"epoch": row["epoch"], "accuracy": clean, "robust_accuracy": robust}
            if distributed.is_main():
                checkpoints.save(self.folder / "best.pt", self.training.result, self.config, best=self.best)
        write_row(row)
        self._save()
        self.progress.epoch(row)

    def _is_better(self, clean, robust):
        """Whether held-out accuracies beat the best: by the robust one if the training is adversarial, else the clean one."""
        if self.best is None:
            return True
        if self.training.attack:
            return (robust, clean) > (self.best["robust_accuracy"], self.best["accuracy"])
        return (clean, robust) > (self.best["accuracy"], self.best["robust_accuracy"])

    def _measure(self):
        """The row of metrics.jsonl of the epoch that has just been trained."""
        training, num_held_out = self.training, self.config["num_held_out"]
        row = {"epoch": training.epochs_done, **training.averages(), "kl_weight": training.last_kl_weight}
        if self.config["classifier"]["kind"] == "bayesian":
            row["kl_per_image"] = row["loss"] - row["nll"]
            with undisturbed():
                row |= module_numbers(training.result, training.last_kl_weight)
        speed = self.progress.images_per_second()
        training.restart_averages()
        num_measured = min(len(training.images), num_held_out or 1000)
        sample = datasets.stratified_subset(training.images, num_measured, self.config["seed"])
        clean, robust = self._accuracies(sample)
        held_out = self._accuracies(self.held_out) if self.held_out else (None, None)
        return row | {
            "train_accuracy": clean, "train_robust_accuracy": robust, "held_out_accuracy": held_out[0],
            "held_out_robust_accuracy": held_out[1], "learning_rate": training.last_learning_rate, "images_per_second": speed,
            "peak_memory_mib": peak_memory_mib(training.device)}

    def _accuracies(self, images):
        training = self.training
        return accuracies(training.result, images, training.settings, seed=self.config["seed"] + training.epochs_done,
                          batch_size=training.images_at_a_time if training.micro_batch else None,
                          precision=training.precision)


def accuracies(classifier, images, settings, *, seed, batch_size=None, precision="fp32"):
    """(clean, robust): accuracy of averaged predictions on `images`, clean and under the training's own PGD.

    An image counts by the weight of its class, where the classifier has class_weights. Collective: each process measures its
    part of the images. Draws from streams of its own, so that measuring changes no training. batch_size: None is that of the
    training. precision: see `precision.autocast`.
    """
    batches = datasets.batches(images, batch_size or settings["batch_size"], shard=distributed.shard())
    with separate_randomness(distributed.own_seed(seed)), autocast(images.device, precision):
        counts = [count_correct(classifier, batches, attack, num_samples=settings["num_samples"],
                                class_weights=classifier.class_weights) for attack in (None, build_attack(settings))]
    sums = distributed.sum_(torch.tensor(counts, dtype=torch.float64))
    return tuple((sums[:, 0] / sums[:, 1]).tolist())
