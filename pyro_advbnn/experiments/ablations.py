"""Flags of `train` over a recipe: what is tried to make the KL of all weights train, and to stand above a tuned baseline.

Nothing here is a result: `reproduce kl` and `reproduce beyond` train and measure all of it, failures too.
"""

# Adv-BNN with the KL of all weights, Eq. (10), from Table 2 as it is printed on; in each other line one thing is changed over
# "ours".
KL_OF_ALL_WEIGHTS = {
    "as-printed": {"recipe": "paper"},
    "wide-start": {"recipe": "ours", "init_std": "fan_in"},
    "adam": {"recipe": "ours", "optimizer": "adam"},
    "draw-statistics": {"recipe": "ours", "batch_statistics": "draw"},
    "ours": {"recipe": "ours"},
    "alpha-1": {"recipe": "ours", "alpha": 1.0},
    "alpha-1-50": {"recipe": "ours", "alpha": 1 / 50},
    "warm-start": {"recipe": "ours", "init_from": "adv"},
}
# The baseline that the paper's should have been (decay, one cycle, a higher peak, averaged weights; best.pt is chosen by
# held-out robust accuracy); the same trained for as long once more, because what starts from it is trained twice as long too;
# and Adv-BNNs that start from it: under the one-draw attack, with averaged weights, and with these under an attack of draws
# that are averaged.
_BASELINE = {"recipe": "ours", "weight_averaging": 0.999}
BASELINES = {
    "adv-tuned": _BASELINE,
    "adv-longer": _BASELINE | {"init_from": "adv-tuned", "learning_rate": 0.01},
}
_FROM_BASELINE = {"recipe": "ours", "init_from": "adv-tuned", "optimizer": "adam", "learning_rate": 1e-3, "alpha": 1 / 50}
CONTENDERS = {
    "from-baseline": _FROM_BASELINE,
    "averaged": _FROM_BASELINE | {"weight_averaging": 0.999},
    "many-draws": _FROM_BASELINE | {"weight_averaging": 0.999, "attack_samples": 4},
}
