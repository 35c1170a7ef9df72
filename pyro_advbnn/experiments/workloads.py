"""What is compared in a benchmark: each row makes a call, to be timed, from one network and one workload."""
import copy
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from pyro_advbnn.attacks.attack import unchecked
from pyro_advbnn.attacks.modes import frozen
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.evaluation.accuracy import predict
from pyro_advbnn.experiments.baselines import AuthorsStyle, PlainPyro
from pyro_advbnn.experiments.timings import PARTS
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import arithmetic
from pyro_advbnn.training import recipes
from pyro_advbnn.training.algorithm1 import step
from pyro_advbnn.training.cuda_graphs import GraphedAttack, GraphedGradients, compile_network
from pyro_advbnn.training.recipes import build_optimizer

_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
PRIOR_STD, INIT_STD, LEARNING_RATE, KL_WEIGHT = 0.05, 0.01, 1e-3, 1 / 50_000


@dataclass(frozen=True)
class Workload:
    """What all do alike: the images x (B, C, H, W) in [0, 1] and labels y (B,), PGD steps, draws averaged, precision.

    cuda_graphs, compiled: for our own two training steps.
    """

    x: torch.Tensor
    y: torch.Tensor
    num_steps: int
    num_samples: int
    precision: str = "fp32"
    cuda_graphs: bool = False
    compiled: bool = False

    def attack(self):
        return PGD(8 / 256, 0.007, self.num_steps)

    def arithmetic(self):
        return arithmetic(self.x.device, self.precision)


def random_workload(batch_size, image_size, num_steps, num_samples, device):
    x = torch.rand(batch_size, 3, image_size, image_size, device=device)
    return Workload(x, torch.randint(10, (batch_size,), device=device), num_steps, num_samples)


def wait(device):
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Cuts the time of one step on `device` into named parts.   seconds: {name: seconds}."""

    def __init__(self, device):
        self.device, self.seconds = device, {}
        self._last = time.perf_counter()

    def lap(self, name):
        """What has passed since the last lap, or the start, belongs to `name`."""
        wait(self.device)
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


class TrainingStep:
    """One step of Algorithm 1 by `algorithm1.step`, whose time is cut into `timings.PARTS`."""

    def __init__(self, classifier, work):
        self.classifier, self.work = classifier.train(), work
        defense = "advbnn" if isinstance(classifier, BayesianClassifier) else "adv"
        settings = recipes.ours("cifar10", defense) | {"learning_rate": LEARNING_RATE, "weight_decay": 0.0, "alpha": 1.0}
        self.optimizer, self.stopwatches = build_optimizer(classifier, settings, round(1 / KL_WEIGHT)), []
        self.optimizer.register_step_pre_hook(lambda *_: self.stopwatches[-1].lap("update"))    # the gradients are there
        self._pgd, self._take_gradients = unchecked(work.attack()), None
        if work.cuda_graphs:
            self._pgd, self._take_gradients = GraphedAttack(self._pgd), GraphedGradients()
        if work.compiled:
            with work.arithmetic():
                failure = compile_network(classifier, work.x, work.y)
            if failure:
                raise InputError(f"--compile: {failure}")
        if work.cuda_graphs:                             # which are captured when a call comes a second time
            self()
            self.stopwatches.clear()

    def __call__(self):
        self.stopwatches.append(Stopwatch(self.work.x.device))
        with self.work.arithmetic():
            step(self.classifier, self.optimizer, self.work.x, self.work.y, attack=self._attack, kl_weight=KL_WEIGHT,
                 take_gradients=self._take_gradients)
        for function in (self._pgd, self._take_gradients):
            if failure := getattr(function, "failure", None):
                raise InputError(f"no CUDA graph, which --cuda_graphs off does without: {failure}")
        self.stopwatches[-1].lap("optimizer")            # its step and what is clamped after it

    def parts(self):
        """{part: median seconds} over all calls but the first."""
        return {part: statistics.median(stopwatch.seconds[part] for stopwatch in self.stopwatches[1:]) for part in PARTS}

    def _attack(self, classifier, x, y):
        x_adv = self._pgd(classifier, x, y)
        self.stopwatches[-1].lap("attack")
        return x_adv


def _baseline_step(build, network, work, **adam):
    baseline = build(network, PRIOR_STD, INIT_STD).train()
    optimizer = torch.optim.Adam(baseline.parameters(), lr=LEARNING_RATE, **adam)

    def step():
        with work.arithmetic():
            baseline.train_step(optimizer, work.x, work.y, attack=work.attack(), kl_weight=KL_WEIGHT)
    return step


def prediction(network, work):
    classifier = BayesianClassifier(network, PRIOR_STD, INIT_STD).eval()

    def call():
        with work.arithmetic():
            predict(classifier, work.x, num_samples=work.num_samples)
    return call


def bare_forwards(network, work):
    """As many forward calls of the network as `prediction` makes, with all that our own classifiers get, too."""
    classifier = Classifier(copy.deepcopy(network)).eval()

    def call():
        with work.arithmetic(), frozen(classifier), torch.no_grad():
            for _ in range(work.num_samples):
                classifier(work.x)
    return call


def normals(network, work):
    """As many draws of the network's number of normals as `prediction` makes, by torch's own randn into kept memory.

    They are float32 in every precision, as the posterior's parameters are.
    """
    kept = torch.empty(sum(p.numel() for p in network.parameters()), device=work.x.device)

    def call():
        for _ in range(work.num_samples):
            torch.randn(kept.shape, out=kept)
    return call


def matmul(network, work):
    """A product of two large square matrices: what the device reaches where nothing else is to be done."""
    dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
    a, b, out = (torch.randn(2 * (_MATRIX_SIDE[work.x.device.type],), device=work.x.device).to(dtype) for _ in range(3))

    def call():
        with work.arithmetic():
            torch.mm(a, b, out=out)
    return call


def necessary_flops(network, work):
    """{row: floating-point operations of one call}, a multiply-add as two; those of the network alone, without draws or KL.

    A step attacks by num_steps gradients of the images alone and updates by one gradient of all parameters.
    """
    def count(make, **changed):
        call = make(network, replace(work, num_samples=1, cuda_graphs=False, compiled=False, **changed))
        call()                                           # the first compares folded with plain calls
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    forward, update = count(bare_forwards), count(MAKERS["deterministic"], num_steps=0)
    step = update + work.num_steps * (count(MAKERS["deterministic"], num_steps=1) - update)
    return (dict.fromkeys(("adv-bnn", "deterministic", "plain-pyro", "authors"), step)
            | dict.fromkeys(("prediction", "bare forwards"), work.num_samples * forward)
            | {"matmul": 2 * _MATRIX_SIDE[work.x.device.type] ** 3})


MAKERS = {
    "adv-bnn": lambda network, work: TrainingStep(BayesianClassifier(network, PRIOR_STD, INIT_STD), work),
    "deterministic": lambda network, work: TrainingStep(Classifier(copy.deepcopy(network)), work),
    "plain-pyro": partial(_baseline_step, PlainPyro),
    "authors": partial(_baseline_step, AuthorsStyle, foreach=False, fused=False),     # Adam as it was then
    "prediction": prediction, "bare forwards": bare_forwards, "normals": normals, "matmul": matmul,
}
