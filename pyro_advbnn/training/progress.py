"""What `train` prints: one line at the start, a bar (or nothing, where no terminal listens), one line per epoch."""
import math
import sys
import time

from tqdm import tqdm

from pyro_advbnn.system import distributed
from pyro_advbnn.training import run_folders

_SECONDS_BETWEEN_REFRESHES = 0.5
_TOO_FAR_APART = 0.25                # accuracy on batches, attacked, above that of predictions, on clean images
_COLLAPSING = 0.5      # an snr: 5,000 images of CIFAR-10 train well at 0.9, digits at alpha 1/10 have lost a sixth at 0.4
_WIDE = 10               # an snr above which draws are too narrow to upset running statistics
_OF_CHANCE = 0.99      # a share of the nll at chance: a network that is stuck


class Progress:
    """The voice of one training; every method prints, none changes the training."""

    def __init__(self, config, training, folder):
        self.config, self.training, self.folder = config, training, folder
        self._began = self._refreshed = time.monotonic()
        self._progress_at_start = training.progress
        self._epoch_began, self._epoch_images = time.monotonic(), 0
        self._bar, self._noted, self._row = None, set(), None

    def begin(self):
        config, settings = self.config, self.config["settings"]
        print(f"{config['defense']} on {config['dataset']}: {config['network']} with {config['num_weights']:,} weights, N = "
              f"{config['num_train']:,} training images ({config['num_held_out']:,} held out), device {config['device']}"
              f"{self._processes()}{self._computing()}")
        print(f"recipe {config['recipe']}: {settings['epochs']} epochs of batch {settings['batch_size']}, "
              f"{settings['optimizer']} {settings['learning_rate']:g} {settings['schedule']}{self._averaging()}"
              f"{self._classifier()}{self._kl()}{self._attack()}")
        attack = self.training.attack
        if attack and not attack.reaches_ball:
            print(f"note: {attack.num_steps} steps of {attack.step_size:g} cannot reach the border of the ball of "
                  f"radius {attack.epsilon:g}")
        self._note_classes()
        if config["init_from"] and not self.training.progress:
            print(f"the weights start at {run_folders.chosen(config['init_from'])}")
        if self.training.progress:
            print(f"going on after epoch {self.training.epochs_done}, step {self.training.steps_done}")
        if self.training.streams_left_by != distributed.world_size():
            print(f"note: the checkpoint is of {self.training.streams_left_by} processes, not {distributed.world_size()}: "
                  f"the streams of weights and augmentation begin anew")
        print(f"writing {self.folder}", flush=True)

    def _note_classes(self):
        names = self.config["class_names"]
        counts = self.training.images.labels.bincount(minlength=len(names)).tolist()
        counted = list(zip(counts, names, strict=True))
        (fewest, rare), (most, common) = min(counted), max(counted)
        if most > 2 * fewest:
            meaning = ("; held-out accuracy is not balanced but weighs them so, as test accuracy does where the test images "
                       "have the same shares" if self.config["num_held_out"] and not self.config["settings"]["class_weights"]
                       else "")
            print(f"note: the classes have from {fewest:,} ({rare}) to {most:,} ({common}) training images{meaning}")

    def _processes(self):
        processes, norm = self.config["world_size"], self.config["batch_norm"]
        return f", {processes} processes, BatchNorm {norm}" if processes > 1 else ""

    def _computing(self):
        precision, micro_batch = self.config["precision"], self.config["micro_batch"]
        return (f", {precision}" if precision != "fp32" else "") + (f", {micro_batch} images at a time" if micro_batch else "")

    def _kl(self):
        settings, classifier = self.config["settings"], self.config["classifier"]
        if classifier["kind"] != "bayesian":
            return ""
        warmup = f" from 0 over the first {100 * settings['kl_warmup']:g} %" if settings["kl_warmup"] else ""
        std = f" ({classifier['prior_std']:.2g})" if settings["prior_std"] == "auto" else ""
        return (f", KL of {settings['kl_over']} weights ({classifier['kl']}) x alpha {settings['alpha']:.2g} / N"
                f"{warmup}, BatchNorm by the {settings['batch_statistics']}'s statistics, {settings['prior']} prior_std "
                f"{settings['prior_std']}{std}, init_std {settings['init_std']}")

    def _classifier(self):
        noise, weights = self.config["classifier"].get("noise_before", {}), self.config["settings"]["class_weights"]
        return "".join(f", noise before {number} {kind}" for kind, number in noise.items()) + (
            f", class weights {weights}" if weights else "")

    def _averaging(self):
        settings = self.config["settings"]
        decay = settings["weight_averaging"]
        return (f", weights averaged with decay {decay:g}" if decay else "") + (
            f", weights perturbed by {settings['awp']:g} from {100 * settings['awp_start']:g} % on" if settings["awp"] else "")

    def _attack(self):
        attack = self.training.attack
        if attack is None:
            return ""
        draws = "draw" if attack.attack_samples == 1 else "draws"
        return (f", PGD epsilon {attack.epsilon:g}, {attack.num_steps} steps of {attack.step_size:g}, "
                f"{attack.attack_samples} {draws} per gradient")

    def step(self, num_images):
        self._epoch_images += num_images
        if not distributed.is_main() or not sys.stderr.isatty():
            return
        if self._bar is None:
            epoch = f"epoch {self.training.epochs_done + 1}/{self.config['settings']['epochs']}"
            self._bar = tqdm(total=len(self.training.batches), initial=max(0, self.training.steps_done - 1), desc=epoch,
                             leave=False, bar_format="{desc} {bar} {n_fmt}/{total_fmt}{postfix}")
        self._bar.update(1)
        if time.monotonic() - self._refreshed > _SECONDS_BETWEEN_REFRESHES:
            self._refreshed = time.monotonic()
            now = self.training.averages()
            accuracy = "PGD" if self.training.attack else "clean"
            self._bar.set_postfix_str(f"nll {now['nll']:.3f}, kl {now['loss'] - now['nll']:.3g}, "
                                      f"{accuracy} {100 * now['batch_accuracy']:.1f} %, "
                                      f"{self.images_per_second():.0f} images/s, {self._time_left()} left")

    def images_per_second(self):
        """Images trained on per second in this epoch, evaluation not counted."""
        return round(self._epoch_images / max(time.monotonic() - self._epoch_began, 1e-9), 1)

    def _time_left(self):
        done = self.training.progress - self._progress_at_start
        left = (time.monotonic() - self._began) * (1 - self.training.progress) / max(done, 1e-9)
        return tqdm.format_interval(left)

    def epoch(self, row):
        self.close()
        held_out = "" if row["held_out_accuracy"] is None else (
            f"  held out {100 * row['held_out_accuracy']:5.1f} / {100 * row['held_out_robust_accuracy']:4.1f} %")
        kl = f"  kl {row['kl_per_image']:.3g} per image  snr {row['snr']:.3g}" if "snr" in row else ""
        print(f"epoch {row['epoch']:3d}/{self.config['settings']['epochs']}  nll {row['nll']:.3f}{kl}  "
              f"train {100 * row['train_accuracy']:5.1f} / {100 * row['train_robust_accuracy']:4.1f} %{held_out} "
              f"(clean / PGD)  {row['images_per_second']:.0f} images/s  {self._time_left()} left", flush=True)
        self._note_statistics(row)
        if row.get("snr", 1) < _COLLAPSING:
            self.note(f"note: the weights hold much more noise than signal, at a signal-to-noise (snr) of {row['snr']:.2g}, as "
                      f"where a posterior collapses to its prior; a smaller --alpha helps", about="collapse")
        self._row = row
        self._epoch_began, self._epoch_images = time.monotonic(), 0

    def _note_statistics(self, row):
        """Once, where batches normalised by a draw's own statistics fare much better than predictions by the running ones."""
        in_training, predicted = row["batch_accuracy"], row["train_accuracy"]
        by_draw = self.config["classifier"].get("batch_statistics") == "draw"      # no such entry without a posterior
        if by_draw and in_training - predicted > _TOO_FAR_APART:
            kind = "attacked batches" if self.training.attack else "batches"
            why = ("do not fit draws this wide; fewer --epochs or a smaller --alpha keep the posterior narrower, and with "
                   "--batch_statistics mean training and prediction are one function" if row["snr"] < _WIDE else
                   "lag behind after so few steps; more --epochs or a smaller --batch_size help")
            self.note(f"note: {100 * in_training:.0f} % right on {kind} in training, but {100 * predicted:.0f} % in "
                      f"predictions on clean training images: BatchNorm's running statistics {why}", about="statistics")

    def stopped(self, why):
        self.close()
        print(f"stopped in epoch {self.training.epochs_done + 1} after step {self.training.steps_done}: {why}; "
              f"go on with {run_folders.to_resume(self.folder)}")

    def note(self, line, about):
        """Print the line, if none about this has been printed yet."""
        if about not in self._noted:
            self.close()
            print(line, flush=True)
            self._noted.add(about)

    def close(self):
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def finished(self, best):
        text = "" if best is None else (f"; best on the held-out images: epoch {best['epoch']}, clean "
                                        f"{100 * best['accuracy']:.1f} %, PGD {100 * best['robust_accuracy']:.1f} %")
        print(f"done: {self.training.epochs_done} epochs{text}")
        if self._row:                                    # else the run was over before
            self._note_chance(self._row, self.config["num_classes"])

    def _note_chance(self, last, classes):
        """Where a network was stuck to the end, and not by a posterior that collapsed; one epoch is too short to tell."""
        stuck = last["nll"] >= _OF_CHANCE * math.log(classes) and last["train_accuracy"] <= 2 / classes
        if stuck and last["epoch"] > 1 and last.get("snr", 1) > _COLLAPSING:
            print(f"note: the loss ends at that of chance, ln {classes} = {math.log(classes):.3f}; a --learning_rate below "
                  f"{self.config['settings']['learning_rate']:g} may help, or more epochs")
