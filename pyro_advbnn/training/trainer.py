"""A training at some point of its course: steps, epochs, and all that it takes to stop anywhere and go on."""
import torch

from pyro_advbnn import datasets
from pyro_advbnn.bayes.parameters import state_tensors
from pyro_advbnn.system import distributed
from pyro_advbnn.system.precision import autocast
from pyro_advbnn.training.algorithm1 import step
from pyro_advbnn.training.ema import MovingAverage
from pyro_advbnn.training.nonfinite import NotFinite, Watch, largest
from pyro_advbnn.training.recipes import build_attack, build_optimizer, learning_rate_factor


class Training:
    """A training at some point of its course: classifier, optimizer, random streams and position.

    `epoch()` yields after every step; leaving it there, `state_dict()` and, in another process, `load_state_dict()`
    goes on as if nothing had happened, bit for bit on a CPU. Batch order and augmentation own their random streams; the
    weights are drawn from torch's global one.

    Under torchrun each process takes its part of every batch. All draw the same order; augmentation and weights are drawn
    from streams of each process's own (`distributed.own_seed`).

    settings: a resolved recipe; with weight_averaging it also holds a moving average of the weights, which changes no step.
    adversarial: whether batches are attacked. images: the training set, on the device.
    batch_norm: "broadcast" brings rank 0's running statistics to all processes after each step. micro_batch: see
    `train_step`.

    A step whose loss or gradient is not finite (`nonfinite.Watch`) ends the training there or, on a GPU, where no step waits
    for the device, at the next `check`; no checkpoint is written after it.
    """

    def __init__(self, classifier, images, settings, *, adversarial, augmentation="none", seed=0, precision="fp32",
                 batch_norm="sync", micro_batch=None):
        self.classifier, self.settings, self.precision = classifier, settings, precision
        self.batch_norm, self.micro_batch = batch_norm, micro_batch
        self.device = images.device
        self.attack, self.take_gradients = build_attack(settings) if adversarial else None, None
        self.optimizer = build_optimizer(classifier, settings, len(images))
        decay = settings["weight_averaging"]
        self._average = MovingAverage(classifier, decay) if decay else None
        self._order = torch.Generator().manual_seed(seed)
        self._augment = torch.Generator(self.device).manual_seed(distributed.own_seed(seed + 1))
        self._order_at_start = self._order.get_state()
        self.batches = datasets.batches(images, settings["batch_size"], shuffle_with=self._order,
                                        augmentation=augmentation, augment_with=self._augment,
                                        shard=distributed.shard())
        self.images, self.seed = images, seed
        self.streams_left_by = distributed.world_size()
        self.epochs_done = self.steps_done = 0
        self.restart_averages()
        self._finite = [name for name, value in state_tensors(classifier.state_dict()).items()
                        if value.isfinite().all()]       # an attention's mask is not
        self._watch = Watch(self.device)
        self._check_every_step = self.device.type == "cpu"
        self.last_learning_rate = self.last_kl_weight = None

    @property
    def result(self):
        """The classifier that is measured and kept: the one that is trained, or the moving average of its weights."""
        return self._average.classifier if self._average else self.classifier

    @property
    def progress(self):
        """The share of all steps that is done, in [0, 1]."""
        return (self.epochs_done + self.steps_done / len(self.batches)) / self.settings["epochs"]

    @property
    def finished(self):
        return self.epochs_done >= self.settings["epochs"]

    @property
    def learning_rate(self):
        """The learning rate of the next step: the schedule's at its middle, so that neither end of a short training is 0."""
        middle = self.progress + 0.5 / (len(self.batches) * self.settings["epochs"])
        factor = learning_rate_factor(self.settings["schedule"], self.settings["stages"], middle)
        return self.settings["learning_rate"] * factor

    @property
    def kl_weight(self):
        """alpha / N, times the warm-up's share: from 0 up to 1 over the first kl_warmup of the training."""
        warmup = self.settings["kl_warmup"]
        share = min(1.0, self.progress / warmup) if warmup else 1.0
        return share * self.settings["alpha"] / len(self.images)

    def epoch(self):
        """The rest of the current epoch, a generator that yields after every step the number of images in its batch.

        Raises NotFinite at the first step whose numbers go wrong, and where the epoch ends with weights that are not finite.
        """
        self.classifier.train()
        self._order.set_state(self._order_at_start)
        for x, y in self.batches.from_batch(self.steps_done):
            num_images = self._num_images()
            self._step(x, y)
            self.steps_done += 1
            yield num_images
        self.check()
        self.epochs_done += 1
        self.steps_done = 0
        self._order_at_start = self._order.get_state()

    def _num_images(self):
        """The size of the next batch, of which x and y are this process's part."""
        return min(self.settings["batch_size"], len(self.images) - self.steps_done * self.settings["batch_size"])

    def _step(self, x, y):
        self.last_learning_rate, self.last_kl_weight = self.learning_rate, self.kl_weight
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_learning_rate
        share = None if distributed.world_size() == 1 else len(y) / self._num_images()
        with autocast(self.device, self.precision):
            parts = step(self.classifier, self.optimizer, x, y, attack=self.attack, kl_weight=self.last_kl_weight,
                         micro_batch=self.micro_batch, share=share, take_gradients=self.take_gradients,
                         awp=self.settings["awp"] if self.progress >= self.settings["awp_start"] else 0.0)
        self._note(parts, y)
        if self.batch_norm == "broadcast":
            distributed.broadcast_([b for b in self.classifier.network.buffers() if b.is_floating_point()])
        if self._average:
            self._average.update(self.classifier, self.epochs_done * len(self.batches) + self.steps_done)
        if self._check_every_step:
            self._watch.check(self.epochs_done + 1)

    def _note(self, parts, y):
        """Add a step's numbers, those of all processes, to the sums of the epoch, and look whether they are finite."""
        correct, weights = parts.logits.argmax(-1) == y, self.classifier.class_weights
        correct = (correct if weights is None else correct * weights[y.long()]).sum()
        sums = [value.detach().double() * len(y) for value in (parts.loss, parts.nll, parts.kl)]
        loss, nll, kl, correct = distributed.sum_(torch.stack([*sums, correct.double()]))
        num_images = torch.full_like(nll, self._num_images())
        self._sums += torch.stack([nll, kl, correct, num_images, loss])
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._watch.judge(self.steps_done + 1, nll / num_images, kl / num_images, loss / num_images, largest(gradients),
                          self.classifier.exploded())

    def check(self):
        """Raises NotFinite, in all processes, where a step of this epoch went wrong, or a weight was finite and is not."""
        self._watch.check(self.epochs_done + 1)
        for name, tensor in state_tensors(self.classifier.state_dict()).items():
            if name in self._finite and not tensor.isfinite().all():
                raise NotFinite(f"{name} is not finite after step {self.steps_done} of epoch {self.epochs_done + 1}")

    @property
    def images_at_a_time(self):
        """How many images are in this process's network together, at most."""
        part = -(-min(len(self.images), self.settings["batch_size"]) // distributed.world_size())
        return min(self.micro_batch or part, part)

    def averages(self):
        """nll, kl, loss (Eq. 10) and one-draw accuracy on the batches as they were trained on, means of the epoch so far.

        class_weights, where there are some, weight nll and accuracy, whose mean is exact at the epoch's end.
        """
        nll, kl, correct, count, loss = self._sums.tolist()
        sums = {"nll": nll, "kl": kl, "batch_accuracy": correct, "loss": loss}
        return {name: total / max(count, 1) for name, total in sums.items()}

    def restart_averages(self):
        self._sums = torch.zeros(5, dtype=torch.float64, device=self.device)

    def state_dict(self):
        """Everything but `result`: optimizer, position and random streams; tensors and plain values.

        Collective: on rank 0 it holds the streams of all processes.
        """
        rng = {"global": torch.get_rng_state(), "order": self._order_at_start, "device_type": self.device.type,
               "augment": self._augment.get_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        rng, *others = distributed.gather(rng)
        trained = {"trained": self.classifier.state_dict()} if self._average else {}
        return {**trained, "optimizer": self.optimizer.state_dict(), "epochs_done": self.epochs_done,
                "steps_done": self.steps_done, "sums": self._sums, "rng": rng, "rng_of_others": others}

    def load_state_dict(self, state):
        """Go on from `state_dict()` when `result` has its state again; the global random streams are set too.

        On another type of device (cuda, cpu) its own streams cannot go on and begin anew; so do all but the order in another
        number of processes, from the seed and the position. `streams_left_by` tells how many processes left them.
        """
        if self._average:
            self.classifier.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs_done, self.steps_done = state["epochs_done"], state["steps_done"]
        self._sums.copy_(state["sums"])
        rngs = [state["rng"], *state["rng_of_others"]]
        self._order_at_start, self.streams_left_by = rngs[0]["order"], len(rngs)
        if len(rngs) == distributed.world_size():
            self._set_streams(rngs[distributed.rank()])
        else:
            position = self.epochs_done, self.steps_done
            torch.manual_seed(distributed.own_seed(self.seed, *position))
            self._augment.manual_seed(distributed.own_seed(self.seed + 1, *position))

    def _set_streams(self, rng):
        torch.set_rng_state(rng["global"])
        if rng["device_type"] == self.device.type:
            self._augment.set_state(rng["augment"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.device)
