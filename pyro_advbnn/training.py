"""Algorithm 1: attack the batch under guide samples, take one step on the ELBO; and the loop that can stop anywhere."""
from contextlib import nullcontext

import torch

from pyro_advbnn import datasets, distributed
from pyro_advbnn.attacks import PGD
from pyro_advbnn.elbo import objective
from pyro_advbnn.errors import InputError
from pyro_advbnn.evaluation import accuracy_fields, count_correct, separate_randomness
from pyro_advbnn.recipes import learning_rate_factor


def train_step(classifier, optimizer, x, y, *, attack=None, kl_weight=0.0, share=None):
    """One step of Algorithm 1; returns its `elbo.Objective` on the attacked batch.

    attack: a callable (classifier, x, y) -> x_adv, None for clean training. Gradients, optimizer state, parameters and
    BatchNorm statistics change; the statistics see the attacked batch only.
    share: where x, y are this process's part of a batch, their share of its images. The losses of the processes are then
    weighted by it and their gradients summed, which counts the KL, that every process has in full, once.
    """
    x_adv = x if attack is None else attack(classifier, x, y)
    parts = objective(classifier, x_adv, y, kl_weight=kl_weight)
    optimizer.zero_grad()
    (parts.loss if share is None else parts.loss * share).backward()
    if share is not None:
        distributed.sum_gradients_(optimizer)
    optimizer.step()
    classifier.constrain_()
    return parts


def build_optimizer(classifier, settings):
    """Fused Adam, or SGD with momentum 0.9, by settings' optimizer, learning_rate and weight_decay."""
    choice = {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"], "fused": True}
    if settings["optimizer"] == "adam":
        return torch.optim.Adam(classifier.parameters(), **choice)
    return torch.optim.SGD(classifier.parameters(), momentum=0.9, **choice)


def build_attack(settings):
    """The PGD attack of `settings`: epsilon, step_size, num_steps and attack_samples."""
    return PGD(**{name: settings[name] for name in ("epsilon", "step_size", "num_steps", "attack_samples")})


class NotFinite(InputError):
    """A loss or a weight is no finite number any more, so there is nothing to go on with."""


class Training:
    """A training at some point of its course: classifier, optimizer, random streams and position.

    `epoch()` yields after every step; leaving it there, `state_dict()` and, in another process, `load_state_dict()`
    goes on as if nothing had happened, bit for bit on a CPU. Batch order and augmentation own their random streams; the
    weights are drawn from torch's global one.

    Under torchrun each process takes its part of every batch. All draw the same order; augmentation and weights are drawn
    from streams of each process's own (`distributed.own_seed`).

    settings: a resolved recipe. adversarial: whether batches are attacked. images: the training set, on the device.
    batch_norm: "broadcast" brings rank 0's running statistics to all processes after each step.
    """

    def __init__(self, classifier, images, settings, *, adversarial, augmentation="none", seed=0, precision="fp32",
                 batch_norm="sync"):
        self.classifier, self.settings, self.precision, self.batch_norm = classifier, settings, precision, batch_norm
        self.device = images.images.device
        self.attack = build_attack(settings) if adversarial else None
        self.optimizer = build_optimizer(classifier, settings)
        self._order = torch.Generator().manual_seed(seed)
        self._augment = torch.Generator(self.device).manual_seed(distributed.own_seed(seed + 1))
        self._order_at_start = self._order.get_state()
        self.batches = datasets.batches(images, settings["batch_size"], shuffle_with=self._order,
                                        augmentation=augmentation, augment_with=self._augment,
                                        shard=distributed.shard())
        self.images, self.seed = images, seed
        self.streams_left_by = distributed.world_size()
        self.epochs_done = self.steps_done = 0
        self._sums = self._zero_sums()
        self.last_learning_rate = self.last_kl_weight = None

    @property
    def progress(self):
        """The share of all steps that is done, in [0, 1]."""
        return (self.epochs_done + self.steps_done / len(self.batches)) / self.settings["epochs"]

    @property
    def finished(self):
        return self.epochs_done >= self.settings["epochs"]

    @property
    def learning_rate(self):
        """The learning rate of the next step."""
        factor = learning_rate_factor(self.settings["schedule"], self.settings["stages"], self.progress)
        return self.settings["learning_rate"] * factor

    @property
    def kl_weight(self):
        """alpha / N, times the warm-up's share: from 0 up to 1 over the first kl_warmup of the training."""
        warmup = self.settings["kl_warmup"]
        share = min(1.0, self.progress / warmup) if warmup else 1.0
        return share * self.settings["alpha"] / len(self.images)

    def epoch(self):
        """The rest of the current epoch, a generator that yields after every step the number of images in its batch.

        Raises NotFinite at the first loss that is not finite, and where the epoch ends with weights that are not.
        """
        self.classifier.train()
        self._order.set_state(self._order_at_start)
        for x, y in self.batches.from_batch(self.steps_done):
            num_images = self._num_images()
            self._step(x, y)
            self.steps_done += 1
            yield num_images
        self.check_weights()
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
            parts = train_step(self.classifier, self.optimizer, x, y, attack=self.attack,
                               kl_weight=self.last_kl_weight, share=share)
        if self.batch_norm == "broadcast":
            distributed.broadcast_([b for b in self.classifier.network.buffers() if b.is_floating_point()])
        self._add_up(parts, y)

    def _add_up(self, parts, y):
        """Add the step to the sums of all processes.   Raises NotFinite, in all of them, where the loss is not finite."""
        num_images, correct = self._num_images(), (parts.logits.argmax(-1) == y).sum()
        loss, nll, kl = (value.detach().to(self.device) * len(y) for value in (parts.loss, parts.nll, parts.kl))
        values = distributed.sum_(torch.stack([value.double() for value in (loss, nll, kl, correct)]))
        if not torch.isfinite(values[0]):
            loss, nll, kl, _ = (values / num_images).tolist()
            raise NotFinite(f"the loss is {loss} (nll {nll:g}, kl {kl:g}) at step {self.steps_done + 1} of epoch "
                            f"{self.epochs_done + 1}")
        self._sums += torch.cat([values[1:], values.new_tensor([num_images])])

    def check_weights(self):
        """Raises NotFinite where the classifier's state holds a number that is not finite."""
        for name, tensor in self.classifier.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise NotFinite(f"{name} is not finite after step {self.steps_done} of epoch {self.epochs_done + 1}")

    def averages(self):
        """nll, kl and one-draw accuracy on the batches as they were trained on, averaged over the epoch so far."""
        *sums, count = self._sums.tolist()
        return {name: total / max(count, 1) for name, total in zip(("nll", "kl", "batch_accuracy"), sums, strict=True)}

    def restart_averages(self):
        self._sums = self._zero_sums()

    def _zero_sums(self):
        return torch.zeros(4, dtype=torch.float64, device=self.device)

    def state_dict(self):
        """Everything but the classifier: optimizer, position and random streams; tensors and plain values.

        Collective: on rank 0 it holds the streams of all processes.
        """
        rng = {"global": torch.get_rng_state(), "order": self._order_at_start, "device_type": self.device.type,
               "augment": self._augment.get_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        rng, *others = distributed.gather(rng)
        return {"optimizer": self.optimizer.state_dict(), "epochs_done": self.epochs_done,
                "steps_done": self.steps_done, "sums": self._sums, "rng": rng, "rng_of_others": others}

    def load_state_dict(self, state):
        """Go on from `state_dict()`; the global random streams are set too.

        On another type of device (cuda, cpu) its own streams cannot go on and begin anew; so do all but the order in another
        number of processes, from the seed and the position. `streams_left_by` tells how many processes left them.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs_done, self.steps_done = state["epochs_done"], state["steps_done"]
        self._sums = state["sums"].to(self.device)
        rngs = [state["rng"], *state.get("rng_of_others", [])]      # older checkpoints do not know others
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


def accuracies(classifier, images, settings, *, seed):
    """(clean, robust): accuracy of averaged predictions on `images`, clean and under the training's own PGD.

    Collective: each process measures its part of the images. Draws from streams of its own, so that measuring changes no
    training.
    """
    batches = datasets.batches(images, settings["batch_size"], shard=distributed.shard())
    with separate_randomness(distributed.own_seed(seed)):
        counts = [count_correct(classifier, batches, attack, num_samples=settings["num_samples"])
                  for attack in (None, build_attack(settings))]
    return tuple(accuracy_fields(*count)["accuracy"] for count in distributed.sum_(torch.tensor(counts)).tolist())


def autocast(device, precision):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def is_better(clean, robust, best, *, adversarial):
    """Whether a held-out (clean, robust) pair beats `best`: by the robust one if adversarial, else by the clean one."""
    key = (robust, clean) if adversarial else (clean, robust)
    return best is None or key > ((best[1], best[0]) if adversarial else (best[0], best[1]))
