"""White-box attacks on any module that maps images in [0, 1] to logits, random or not. Nothing here knows Bayes.

A random network draws anew in every forward call, so each gradient is a sample of the gradient of the expected loss
(Eq. 3); attack_samples draws are averaged for each. One draw per gradient, as in the paper, is a weak attack
(Zimmermann, arXiv 1907.00895).
"""
import math
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F

from pyro_advbnn.errors import InputError


@contextmanager
def eval_mode(classifier):
    """Every module in eval mode (BatchNorm still, no dropout) inside, each back in its own mode afterwards."""
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    try:
        yield classifier
    finally:
        for module, training in modes:
            module.training = training


def pgd(classifier, x, y, *, epsilon, step_size, num_steps, attack_samples=1, random_start=False, generator=None):
    """Projected gradient ascent on the cross-entropy in the l_inf ball around x (Eq. 2): the attacked images.

    x (B, C, H, W) in [0, 1], y (B,) true labels. Each of the num_steps >= 0 steps adds step_size * sign(gradient), goes
    back to the ball of radius epsilon in [0, 1], then to [0, 1]; step_size >= 0. Each gradient is the mean over
    attack_samples >= 1 forward calls. random_start: begin at a uniform point of the ball, drawn from `generator`.
    The classifier runs in eval mode; its buffers and parameters stay as they are and no parameter gets a gradient.

    Raises InputError for settings out of range.
    """
    iterates = pgd_iterates(classifier, x, y, epsilon=epsilon, step_size=step_size, num_steps=num_steps,
                            attack_samples=attack_samples, random_start=random_start, generator=generator)
    x_adv, = deque(iterates, maxlen=1)                   # only the last is kept
    return x_adv


def pgd_iterates(classifier, x, y, *, epsilon, step_size, num_steps, attack_samples=1, random_start=False, generator=None):
    """A generator of the attacked images (B, C, H, W) of `pgd` after 0, 1, ..., num_steps steps.

    Between two of them the classifier is in eval mode and its parameters require no gradient.
    """
    _check(epsilon=epsilon, step_size=step_size, num_steps=num_steps, attack_samples=attack_samples)
    low, high = (x - epsilon).clamp_(0, 1), (x + epsilon).clamp_(0, 1)
    x_adv = x.detach().clone()
    if random_start:
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x_adv = (x + epsilon * (2 * noise - 1)).clamp_(0, 1)
    yield x_adv
    with eval_mode(classifier), frozen(classifier):
        for _ in range(num_steps):
            if epsilon > 0:
                gradient = input_gradient(classifier, x_adv, y, attack_samples)
                x_adv = (x_adv + step_size * gradient.sign()).clamp_(low, high)
            yield x_adv


def fgsm(classifier, x, y, *, epsilon, attack_samples=1):
    """The fast gradient sign method (Goodfellow et al. 2015): `pgd` with one step of length epsilon."""
    return pgd(classifier, x, y, epsilon=epsilon, step_size=epsilon, num_steps=1, attack_samples=attack_samples)


@dataclass(frozen=True)
class PGD:
    """`pgd` with its settings, a callable (classifier, x, y) -> x_adv; evaluation puts the settings into its rows.

    step_size None takes 2.5 * epsilon / num_steps.
    """

    epsilon: float
    step_size: float | None = None
    num_steps: int = 20
    attack_samples: int = 1
    random_start: bool = False
    generator: torch.Generator | None = None

    name = "pgd"
    uses_gradient = True

    def __post_init__(self):
        if self.step_size is None:
            object.__setattr__(self, "step_size", auto_step_size(self.epsilon, self.num_steps))
        _check(epsilon=self.epsilon, step_size=self.step_size, num_steps=self.num_steps,
               attack_samples=self.attack_samples)

    @property
    def reaches_ball(self):
        """Whether num_steps steps can get from the centre to the border of the ball."""
        return self.num_steps * self.step_size >= self.epsilon * (1 - 1e-6)

    def __call__(self, classifier, x, y):
        return pgd(classifier, x, y, **self._settings)

    def iterates(self, classifier, x, y):
        """`pgd_iterates` with these settings."""
        return pgd_iterates(classifier, x, y, **self._settings)

    def with_num_steps(self, num_steps):
        """The same attack, its steps as long as before, but num_steps of them."""
        return replace(self, num_steps=num_steps)

    @property
    def _settings(self):
        return {field.name: getattr(self, field.name) for field in fields(self)}


def auto_step_size(epsilon, num_steps):
    """2.5 * epsilon / num_steps: enough to cross the ball and turn round (Madry et al. 2018)."""
    return 2.5 * epsilon / max(num_steps, 1)


@contextmanager
def frozen(classifier):
    """No parameter requires a gradient inside: the attack pays for the input's gradient alone."""
    trainable = [p for p in classifier.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


def input_gradient(classifier, x, y, attack_samples=1):
    """The sum over attack_samples draws of the gradient of the images' cross-entropies by x; (B, C, H, W)."""
    x = x.detach().requires_grad_()                      # cloned below: a first layer may work in place
    total = None
    for _ in range(attack_samples):
        with torch.enable_grad():
            loss = F.cross_entropy(classifier(x.clone()).float(), y, reduction="sum")
        gradient, = torch.autograd.grad(loss, x)
        total = gradient if total is None else total + gradient    # gradients may be expanded views
    return total


def _check(*, epsilon, step_size, num_steps, attack_samples):
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon must lie in [0, 1], the range of the images, got {epsilon}")
    if not 0 <= step_size < math.inf:
        raise InputError(f"step_size must be a number >= 0, got {step_size}")
    if num_steps < 0:
        raise InputError(f"num_steps must be at least 0, got {num_steps}")
    if attack_samples < 1:
        raise InputError(f"attack_samples must be at least 1, got {attack_samples}")
