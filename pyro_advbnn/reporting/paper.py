"""What the paper (ICLR 2019) and its follow-ups published, as data, to stand beside our numbers. Accuracies from 0 to 1."""
TABLE_1 = "paper, Table 1"
MANY_DRAWS_TABLE = "arXiv 2212.02003, Table 2"

DATASET_NAMES = {"cifar10": "CIFAR-10", "stl10": "STL-10", "imagenet143": "ImageNet-143"}
DEFENSE_NAMES = {"none": "no defence", "adv": "adversarial training", "rse": "RSE", "bnn": "BNN", "advbnn": "Adv-BNN",
                 "advrse": "adversarial RSE"}

_RADII = {"cifar10": (0.0, 0.015, 0.035, 0.055, 0.07), "stl10": (0.0, 0.015, 0.035, 0.055, 0.07),
          "imagenet143": (0.0, 0.004, 0.01, 0.016, 0.02)}
_ONE_DRAW = {                                            # Table 1: white-box PGD of 20 steps, one draw per gradient
    ("cifar10", "adv"): (0.803, 0.583, 0.311, 0.155, 0.103),
    ("cifar10", "advbnn"): (0.797, 0.687, 0.454, 0.269, 0.186),
    ("stl10", "adv"): (0.632, 0.467, 0.274, 0.128, 0.070),
    ("stl10", "advbnn"): (0.599, 0.518, 0.376, 0.272, 0.211),
    ("imagenet143", "adv"): (0.487, 0.376, 0.230, 0.124, 0.075),
    ("imagenet143", "advbnn"): (0.473, 0.438, 0.393, 0.302, 0.246),
}
_MANY_DRAWS = {                                          # arXiv 2212.02003: PGD whose gradients average many draws
    ("cifar10", "advbnn"): (0.797, 0.642, 0.377, 0.163, 0.081),
    ("stl10", "advbnn"): (0.599, 0.479, 0.314, 0.167, 0.091),
}
_ALIKE = ({"none", "bnn"}, (0.85, 0.85))
_ROBUST = ({"rse", "adv", "advbnn"}, (0.5, 0.6))


ENOUGH_DRAWS = (10, 20)                                  # of a prediction, Fig. 5 left
ENOUGH_STEPS = 20                                        # of PGD, Fig. 5 right
CLAIMS = {                                               # (what the paper says in words, where)
    "ensemble": ("10 to 20 draws per prediction suffice, whatever the radius", "section 3.4, Fig. 5 left"),
    "steps": ("the accuracy does not change from 20 to 1000 PGD steps", "section 3.4, Fig. 5 right"),
    "transfer": ("rho is about 0.85 between no defence and BNN, both ways, and 0.5 to 0.6 among RSE, Adv-BNN and "
                 "adversarial training", "section 3.2, Fig. 3"),
    "layers": ("the density of the log standard deviations has two modes", "section 3.3, Fig. 4"),
    "pruning": ("weights of large standard deviation can be pruned (not tested there)", "section 3.3"),
    "alpha": ("a smaller alpha buys back clean accuracy (not tested there)", "caption of Table 1"),
    "prior_std": ("the prior's standard deviation is not sensitive (not tested there)", "Table 2"),
    "gradients": ("adversarial training keeps the gradient small on the training set, while it stays large on the test "
                  "set (no numbers there)", "section 2, Eq. 11 to 13"),
}


def defense_name(record):
    """The defence of a row, or of a run's config, as readers know it."""
    return DEFENSE_NAMES.get(record["defense"], record["defense"])


def dataset_name(record):
    """The data set of a row, or of a run's config, as readers know it."""
    return DATASET_NAMES.get(record["dataset"], record["dataset"])


def epsilons(dataset):
    """The radii of Table 1 for a data set, () for one that is not the paper's."""
    return _RADII.get(dataset, ())


def accuracy(dataset, defense, epsilon, many_draws=False):
    """The published accuracy, 0 to 1, under white-box PGD of radius epsilon, or None where there is none.

    One draw per gradient: Table 1. many_draws: gradients averaged over many draws, as arXiv 2212.02003 measured them.
    """
    values = (_MANY_DRAWS if many_draws else _ONE_DRAW).get((dataset, defense), ())
    return next((value for radius, value in zip(epsilons(dataset), values) if abs(radius - epsilon) < 1e-6), None)


def correlation(source, target):
    """(low, high) of rho(source -> target), Eq. (14), two defences, as section 3.2 states it; None where it does not.

    The figures are approximate there; one number stands as low == high.
    """
    if source == target:
        return None                                      # rho(A -> A) is 1 by definition
    return next((bounds for group, bounds in (_ALIKE, _ROBUST) if {source, target} <= group), None)


def span(bounds):
    """(low, high) of `correlation` as text: "0.85" or "0.5–0.6"."""
    low, high = bounds
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
