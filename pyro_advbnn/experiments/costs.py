"""What the commands of a plan cost, in gradients: how often the loss of one image is differentiated by the image.

Such a gradient takes two products in each layer, forward and by its input; other passes are counted by their products.
"""
import time

from pyro_advbnn.attacks.catalogue import RANKS
from pyro_advbnn.attacks.pgd import pgd
from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier, statistics_stride
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.datasets.augmentation import unit_range
from pyro_advbnn.system.precision import arithmetic
from pyro_advbnn.system.random_streams import separate_randomness
from pyro_advbnn.training import recipes

FORWARD = 1 / 2            # gradients: one product in each layer
UPDATE = 3 / 2             # gradients: the third product is by the weights
ATTACK_STEPS = 20          # the defaults of evaluate: PGD steps, draws of a prediction
PREDICTION_DRAWS = 20
MEASURED_SETS = 2          # after each epoch: the held-out images and as many of the training's, clean and attacked
ROBUST_ATTACKS = 3         # of the default ensemble of `robust`: PGD and two APGD on the averaged gradient, the longest parts
ROBUST_STEPS = 40
ROBUST_QUERIES = 1000
REPORTED_EXAMPLES = 6      # images of each run in the report
TIMED_STEPS = 3            # of the attack that is timed


def attack(draws=1, steps=ATTACK_STEPS):
    """Of PGD on one image."""
    return steps * draws


def prediction(draws=PREDICTION_DRAWS):
    """Of the average over draws for one image."""
    return FORWARD * draws


def num_draws(defense, count):
    """The draws that are worth a pass of their own where `count` are asked for: a deterministic network's are all the same."""
    return count if DEFENSES[defense].random else 1


def white_box(defense, epsilons, attack_samples):
    """Of one image for a run's accuracy at all radii, with each number of draws per gradient."""
    counts = {num_draws(defense, count) for count in attack_samples}
    predicted = len(epsilons) * len(counts) * prediction(num_draws(defense, PREDICTION_DRAWS))
    return sum(epsilon > 0 for epsilon in epsilons) * attack(sum(counts)) + predicted


def worst_case(defense, attack_samples):
    """Of one image in the ensemble of attacks of `robust`; the targeted ones are made at a posterior's mean."""
    draws = num_draws(defense, attack_samples)
    targeted = len(RANKS) * (1 if DEFENSES[defense].kind == "bayesian" else draws)
    return attack(ROBUST_ATTACKS * draws + targeted, ROBUST_STEPS) + ROBUST_QUERIES * prediction(draws)


def training(flags, num_train):
    """Of a whole training with these flags of `train` on num_train images."""
    defense = flags["defense"]
    settings = recipes.resolve(flags["recipe"], flags["dataset"], defense, flags)
    attacked = attack(settings["attack_samples"], settings["num_steps"])
    by_the_mean = DEFENSES[defense].kind == "bayesian" and settings["batch_statistics"] == "mean"
    statistics = UPDATE / statistics_stride(settings["batch_size"]) if by_the_mean else 0
    trained = num_train * (UPDATE + statistics + attacked * DEFENSES[defense].adversarial)
    measured = MEASURED_SETS * settings["validation"] * (attacked + 2 * prediction(settings["num_samples"]))
    return settings["epochs"] * (trained + measured)


def seconds_per_gradient(network, images, precision="fp32"):
    """Measured with some of `images` on the network's device, as Adv-BNN."""
    classifier = BayesianClassifier(network, 0.05, 0.01)
    some = images.take(range(min(100, len(images)))).in_memory().to(classifier.mean.device)
    x, y = unit_range(some.images), some.labels
    with separate_randomness(0), arithmetic(x.device, precision):
        pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=1).cpu()      # warms up; .cpu() waits for a GPU
        began = time.perf_counter()
        pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=TIMED_STEPS).cpu()
    return (time.perf_counter() - began) / (TIMED_STEPS * len(x))
