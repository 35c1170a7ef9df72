"""Algorithm 1: attack the batch under guide samples, take one step on the ELBO; and the loop that can stop anywhere."""
from contextlib import nullcontext

import torch

from pyro_advbnn import datasets
from pyro_advbnn.attacks import PGD
from pyro_advbnn.elbo import objective
from pyro_advbnn.errors import InputError
from pyro_advbnn.evaluation import robust_accuracy, separate_randomness
from pyro_advbnn.recipes import learning_rate_factor


def train_step(classifier, optimizer, x, y, *, attack=None, kl_weight=0.0):
    """One step of Algorithm 1; returns its `elbo.Objective` on the attacked batch.

    attack: a callable (classifier, x, y) -> x_adv, None for clean training. Gradients, optimizer state, parameters and
    BatchNorm statistics change; the statistics see the attacked batch only.
    """
    x_adv = x if attack is None else attack(classifier, x, y)
    parts = objective(classifier, x_adv, y, kl_weight=kl_weight)
    optimizer.zero_grad()
    parts.loss.backward()
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

    settings: a resolved recipe. adversarial: whether batches are attacked. images: the training set, on the device.
    """

    def __init__(self, classifier, images, settings, *, adversarial, augmentation="none", seed=0, precision="fp32"):
        self.classifier, self.settings, self.precision = classifier, settings, precision
        self.device = images.device
        self.attack = build_attack(settings) if adversarial else None
        self.optimizer = build_optimizer(classifier, settings)
        self._order = torch.Generator().manual_seed(seed)
        self._augment = torch.Generator(self.device).manual_seed(seed + 1)
        self._order_at_start = self._order.get_state()
        self.batches = datasets.batches(images, settings["batch_size"], shuffle_with=self._order,
                                        augmentation=augmentation, augment_with=self._augment)
        self.images = images
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
        """The rest of the current epoch, a generator that yields after every step the number of images in it.

        Raises NotFinite at the first loss that is not finite, and where the epoch ends with weights that are not.
        """
        self.classifier.train()
        self._order.set_state(self._order_at_start)
        for x, y in self.batches.from_batch(self.steps_done):
            self._step(x, y)
            self.steps_done += 1
            yield len(y)
        self.check_weights()
        self.epochs_done += 1
        self.steps_done = 0
        self._order_at_start = self._order.get_state()

    def _step(self, x, y):
        self.last_learning_rate, self.last_kl_weight = self.learning_rate, self.kl_weight
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_learning_rate
        with autocast(self.device, self.precision):
            parts = train_step(self.classifier, self.optimizer, x, y, attack=self.attack,
                               kl_weight=self.last_kl_weight)
        if not torch.isfinite(parts.loss):
            raise NotFinite(f"the loss is {parts.loss.item()} (nll {parts.nll.item():g}, kl {parts.kl.item():g}) at "
                            f"step {self.steps_done + 1} of epoch {self.epochs_done + 1}")
        correct = (parts.logits.argmax(-1) == y).sum()
        values = torch.stack([v.double() for v in (parts.nll * len(y), parts.kl.to(self.device) * len(y), correct)])
        self._sums += torch.cat([values, values.new_tensor([len(y)])])

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
        """Everything but the classifier: optimizer, position and random streams; tensors and plain values."""
        rng = {"global": torch.get_rng_state(), "order": self._order_at_start, "device_type": self.device.type,
               "augment": self._augment.get_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"optimizer": self.optimizer.state_dict(), "epochs_done": self.epochs_done,
                "steps_done": self.steps_done, "sums": self._sums, "rng": rng}

    def load_state_dict(self, state):
        """Go on from `state_dict()`; the global random streams are set too.

        On another type of device (cuda, cpu) its own streams cannot go on and begin anew.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs_done, self.steps_done = state["epochs_done"], state["steps_done"]
        self._sums = state["sums"].to(self.device)
        rng = state["rng"]
        torch.set_rng_state(rng["global"])
        self._order_at_start = rng["order"]
        if rng["device_type"] == self.device.type:
            self._augment.set_state(rng["augment"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.device)


def accuracies(classifier, images, settings, *, seed):
    """(clean, robust): accuracy of averaged predictions on `images`, clean and under the training's own PGD.

    Draws from streams of its own, so that measuring changes no training.
    """
    batches = datasets.batches(images, settings["batch_size"])
    with separate_randomness(seed):
        clean = robust_accuracy(classifier, batches, num_samples=settings["num_samples"])
        robust = robust_accuracy(classifier, batches, build_attack(settings), num_samples=settings["num_samples"])
    return clean["accuracy"], robust["accuracy"]


def autocast(device, precision):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def is_better(clean, robust, best, *, adversarial):
    """Whether a held-out (clean, robust) pair beats `best`: by the robust one if adversarial, else by the clean one."""
    key = (robust, clean) if adversarial else (clean, robust)
    return best is None or key > ((best[1], best[0]) if adversarial else (best[0], best[1]))
