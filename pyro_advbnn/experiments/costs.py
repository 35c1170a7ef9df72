"""What the commands of a plan cost: how often an image passes through the network, and how long a pass takes here."""
import time
from dataclasses import dataclass

from pyro_advbnn.attacks.pgd import pgd
from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.evaluation.accuracy import predict
from pyro_advbnn.system.random_streams import separate_randomness
from pyro_advbnn.training import recipes

ATTACK_STEPS = 20          # PGD steps and draws of a prediction: the defaults of evaluate
PREDICTION_DRAWS = 20
UPDATE = 1.5               # gradients by the image: an update's is by the weights too, three products a layer instead of two
MEASURED_SETS = 2          # after each epoch: the held-out images and as many of the training's, clean and attacked
ROBUST_ATTACKS = 3         # of the default ensemble of `robust`: PGD and two APGD on the averaged gradient, the longest parts
ROBUST_STEPS = 40
ROBUST_QUERIES = 1000
REPORTED_EXAMPLES = 6      # images of each run in the report
TIMED_CALLS = 3            # passes of a batch that are timed together


@dataclass(frozen=True)
class Passes:
    """Passes of one image through the network.   gradients: with its gradient by the image; forwards: without."""

    gradients: float = 0.0
    forwards: float = 0.0

    def __add__(self, other):
        return Passes(self.gradients + other.gradients, self.forwards + other.forwards)

    def __mul__(self, number):
        return Passes(number * self.gradients, number * self.forwards)

    def seconds(self, per_gradient, per_forward):
        return self.gradients * per_gradient + self.forwards * per_forward


def attack(draws=1, steps=ATTACK_STEPS):
    """Of PGD: a gradient per step and draw."""
    return Passes(gradients=steps * draws)


def prediction(draws=PREDICTION_DRAWS):
    """Of the average over draws."""
    return Passes(forwards=draws)


def num_draws(defense, count):
    """The draws that are worth a pass of their own where `count` are asked for: a deterministic network's are all the same."""
    return count if DEFENSES[defense].random else 1


def white_box(defense, epsilons, attack_samples):
    """Of one run's accuracy at all radii, with each number of draws per gradient."""
    counts = {num_draws(defense, count) for count in attack_samples}
    attacks = attack(sum(counts)) * sum(epsilon > 0 for epsilon in epsilons)
    return attacks + prediction(num_draws(defense, PREDICTION_DRAWS)) * (len(epsilons) * len(counts))


def worst_case(defense, attack_samples):
    """Of the ensemble of attacks of `robust`."""
    draws = num_draws(defense, attack_samples)
    return attack(draws, ROBUST_STEPS) * ROBUST_ATTACKS + prediction(draws) * ROBUST_QUERIES


def example():
    """Of an adversarial example in the report: attacked, and predicted before and after."""
    return attack() + prediction() * 2


def training(flags, num_train):
    """Of a whole training with these flags of `train` on num_train images."""
    defense = flags["defense"]
    settings = recipes.RECIPES[flags["recipe"]](flags["dataset"], defense)
    settings |= {name: flags[name] for name in settings if flags.get(name) is not None}
    attacked = attack(settings["attack_samples"], settings["num_steps"])
    step = Passes(gradients=UPDATE) + attacked * DEFENSES[defense].adversarial
    measured = (attacked + prediction(settings["num_samples"]) * 2) * MEASURED_SETS
    return (step * num_train + measured * settings["validation"]) * settings["epochs"]


def seconds_per_pass(network, images):
    """(with a gradient by the image, without) seconds, measured with some of `images` on the network's device, as Adv-BNN."""
    classifier = BayesianClassifier(network, 0.05, 0.01)
    some = images.take(range(min(100, len(images)))).in_memory().to(classifier.mean.device)
    x, y = some.images.float() / 255, some.labels
    with separate_randomness(0):
        pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=1).cpu()      # warms up; .cpu() waits for a GPU
        times = [time.perf_counter()]
        pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=TIMED_CALLS).cpu()
        times.append(time.perf_counter())
        predict(classifier, x, num_samples=TIMED_CALLS).cpu()
        times.append(time.perf_counter())
    return [(end - start) / (TIMED_CALLS * len(x)) for start, end in zip(times, times[1:], strict=False)]
