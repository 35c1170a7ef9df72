"""At what a data set is measured where no flag says it: the paper's radii, steps and fractions, and ours for digits."""
from pyro_advbnn.reporting import paper

FIGURE_5_STEPS = (3, 4, 6, 9, 13, 18, 26, 38, 55, 78, 112, 162, 234, 336, 483, 695, 1000)   # the authors' script
ENSEMBLE_DRAWS = (1, 2, 3, 5, 10, 20, 50)
PRUNED_FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)


def default_epsilons(dataset):
    """The radii at which a data set is evaluated: those of Table 1, for other images than the paper's those of CIFAR-10."""
    return (0.0, 0.1, 0.2, 0.3) if dataset == "digits" else paper.epsilons(dataset) or paper.epsilons("cifar10")


def figure_2_epsilons(dataset):
    """The radii of Fig. 2: [0 : 0.005 : 0.07] (ImageNet-143: [0 : 0.002 : 0.02])."""
    step, count = {"digits": (0.05, 7), "imagenet143": (0.002, 11)}.get(dataset, (0.005, 15))
    return tuple(round(step * i, 6) for i in range(count))


def default_transfer_epsilon(dataset):
    """The radius of the transfer attack, Fig. 3: 0.06 in the authors' script."""
    return {"digits": 0.2, "imagenet143": 0.02}.get(dataset, 0.06)


def default_ensemble_epsilons(dataset):
    """The radii of Fig. 5 (left)."""
    return (0.0, 0.1, 0.2) if dataset == "digits" else (0.0, 0.01, 0.02)
