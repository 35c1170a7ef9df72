"""Flags of `train` over a recipe: what is tried to make the KL of all weights train, and to stand above adversarial training.

Nothing here is a result: `reproduce kl` and `reproduce beyond` train and measure all of it, failures too.
"""

# Adv-BNN with the KL of all weights, Eq. (10), from Table 2 as it is printed on; in each other line one thing is changed over
# "ours"; the std of its prior goes with alpha.
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
# What Adv-BNN and its control, adversarial training, both get, so that the posterior alone is between them: averaged weights
# with all that the paper's baseline should have had (decay, one cycle, a higher peak; best.pt is chosen by held-out robust
# accuracy); adversarial weight perturbation beside it; and the tuned baseline as a start, from which both train as long once
# more.
_TUNED = {"recipe": "ours", "weight_averaging": 0.999}
PAIRS = {
    "tuned": _TUNED,
    "perturbed": _TUNED | {"awp": 0.005},
    "longer": _TUNED | {"init_from": "adv-tuned", "learning_rate": 0.01},
}
MIXTURES = {"tuned": 2}                                  # pairs of which a mixture is made too: its number of components
