"""The only home of hyper-parameters: what the paper says, what the authors' code did, and what we found to work.

RECIPES[name] is a function of the data set, the defence and, where it is not the recipe's own, the optimizer, which has a
learning rate of its own. `resolve` puts single flags over it.
"""
import math

import torch
from torch import nn

from pyro_advbnn.attacks.pgd import PGD, auto_step_size
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.system.errors import check_at_least, check_number
from pyro_advbnn.training.natural_gradient import NaturalGradient

KL_BUDGET, LARGEST_SHARE, BUDGETED_SNR = 500, 0.2, 20    # of `auto_alpha`: nats in all and at most per image; at what SNR
DECAY = 5e-4                                             # the L2 factor of SGD, and of the prior by `auto_prior_std`

# Per data set: network, radius, PGD step (None: 2.5 epsilon / num_steps), epochs of each learning-rate stage. Paper,
# Table 2 and the authors' code for the paper's three; the others are ours.
_DATA = {
    "digits": {"network": "convnet", "epsilon": 0.2, "step_size": None, "stages": (8, 6, 4, 2), "validation": 150},
    "cifar10": {"network": "vgg16", "epsilon": 8 / 256, "step_size": 0.007, "stages": (80, 60, 40, 20)},
    "stl10": {"network": "model_a", "epsilon": 8 / 256, "step_size": 0.007, "stages": (60, 40, 20)},
    "imagenet143": {"network": "vgg16", "epsilon": 0.01, "step_size": 0.007, "stages": (30, 20, 20, 10)},
    "folder": {"network": None, "epsilon": 8 / 256, "step_size": None, "stages": (80, 60, 40, 20)},
    "npz": {"network": None, "epsilon": 8 / 256, "step_size": None, "stages": (80, 60, 40, 20)},
}
_COMMON = {"width": None, "batch_size": 128, "validation": 1000, "num_steps": 10, "attack_samples": 1, "num_samples": 10,
           "weight_averaging": 0.0, "batch_statistics": "draw", "class_weights": None, "prior": "normal",
           "awp": 0.0, "awp_start": 0.1, "kl_warmup": 0.0, "kl_over": "all", "initialization": "default", "schedule": "stages"}
_RATES = {"adam": 2e-3, "sgd": 0.1, "natural": 0.1}     # the peak of the learning rate, by optimizer


def paper(dataset, defense, optimizer=None):
    """Table 2 of the paper, with the KL of all weights as in Eq. (10)."""
    cifar10 = dataset == "cifar10"
    optimizer = optimizer or ("adam" if DEFENSES[defense].kind == "bayesian" else "sgd")
    settings = {**_COMMON, **_DATA[dataset], **_of_optimizer(optimizer, defense, _RATES | {"adam": 0.01, "sgd": 0.01}),
                "initialization": "authors",
                "prior_std": 0.05 if cifar10 else 0.15, "init_std": 0.05 if cifar10 else 0.15,
                "alpha": _authors_alpha(defense, 1.0 if cifar10 else 1 / 50)}
    return settings | {"epochs": sum(settings["stages"])} | _draws(defense)


def authors(dataset, defense, optimizer=None):
    """Close to the authors' code: the KL of the last layer only, of Model A that of all; on ImageNet-143 alpha never reached
    the loss."""
    settings = paper(dataset, defense, optimizer) | {"kl_over": None}    # by the network
    return settings | ({"alpha": _authors_alpha(defense, 1.0)} if dataset == "imagenet143" else {})


def ours(dataset, defense, optimizer=None):
    """The KL of all weights, made to train: a budget of nats, the natural gradient of log std, BatchNorm as one
    function, a prior that decays as SGD does, small initial std. One-cycle cosine, and SGD where there is no posterior."""
    bayesian = DEFENSES[defense].kind == "bayesian"
    optimizer = optimizer or ("natural" if bayesian else "sgd")
    settings = {**_COMMON, **_DATA[dataset], **_of_optimizer(optimizer, defense, _RATES | _OUR_RATES.get(dataset, {})),
                "schedule": "cosine", "prior_std": "auto", "init_std": "fan_in/30", "batch_statistics": "mean",
                "alpha": "auto" if bayesian else 0.0}
    settings |= {"epochs": math.ceil(sum(settings["stages"]) / 4)} | _OURS.get(dataset, {})
    return settings | _draws(defense)


def _draws(defense):
    """One draw for what draws nothing."""
    return {} if DEFENSES[defense].random else {"attack_samples": 1, "num_samples": 1}


# Chosen on held-out images of digits (docs/defaults.md); KL_BUDGET on those of CIFAR-10 and STL-10, LARGEST_SHARE on digits.
_OURS = {"digits": {"epochs": 16, "batch_size": 64}}
_OUR_RATES = {"digits": {"adam": 5e-3}}
RECIPES = {"paper": paper, "authors": authors, "ours": ours}


def resolve(recipe, dataset, defense, flags):
    """The recipe's settings with every flag that is not None put over them; step_size a number."""
    settings = RECIPES[recipe](dataset, defense, flags.get("optimizer"))
    settings |= {name: value for name, value in flags.items() if name in settings and value is not None}
    if settings["kl_over"] is None:
        settings["kl_over"] = "all" if settings["network"] == "model_a" else "last"
    if settings["step_size"] in (None, "auto"):
        settings["step_size"] = auto_step_size(settings["epsilon"], settings["num_steps"])
    return settings


def auto_alpha(num_train: int, num_weights: int) -> float:
    """alpha of Eq. (10) by a budget: alpha times the KL is KL_BUDGET nats, at most LARGEST_SHARE per image, at BUDGETED_SNR.

    Where a prior is scaled to its weights, the KL of num_weights of them is num_weights / 2 ln(1 + SNR), with a signal-to-noise
    ratio SNR = mean(mean^2) / mean(std^2). At most 1, the ELBO itself.

    Raises InputError for a num_train or num_weights below 1.
    """
    check_at_least("num_train", num_train, 1)
    check_at_least("num_weights", num_weights, 1)
    kl = num_weights / 2 * math.log1p(BUDGETED_SNR)
    return min(1.0, min(KL_BUDGET, LARGEST_SHARE * num_train) / kl)


def auto_prior_std(alpha: float, num_train: int) -> float:
    """The std sqrt(alpha / (DECAY N)) of the prior for all weights, by which the KL decays their means as SGD's L2 factor does.

    The posterior is then a cold one, of temperature alpha, under the prior N(0, 1 / (DECAY N)) (Wenzel et al. 2020, arXiv
    2002.02405): an alpha below 1 cools the noise and leaves the decay. Where alpha is 0 it is that prior's own std.

    Raises InputError for an alpha below 0 or a num_train below 1.
    """
    check_number("alpha", alpha)
    check_at_least("num_train", num_train, 1)
    return math.sqrt((alpha or 1.0) / (DECAY * num_train))


def default_step_size(dataset):
    """The PGD step of a data set, None where it is 2.5 epsilon / num_steps."""
    return _DATA[dataset]["step_size"]


def training_epsilon(dataset):
    """The radius that the paper trains with on a data set, and at which one radius is reported."""
    return _DATA[dataset]["epsilon"]


def default_network(side):
    """The network for images of `side` pixels where the data set does not name one."""
    return "vgg16" if side >= 32 else "convnet"


def learning_rate_factor(schedule, stages, progress):
    """The learning rate at `progress` in [0, 1) of the training, as a factor of its peak.

    "stages": divided by 10 after each stage (epochs per stage, stretched to the length of the run). "cosine": up
    linearly over the first tenth, then down to 0 along a half cosine. "constant": 1.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        warmup = 0.1
        if progress < warmup:
            return progress / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))
    done, finished_stages = 0, 0
    for epochs in stages[:-1]:
        done += epochs
        finished_stages += progress >= done / sum(stages)
    return 0.1**finished_stages


def build_optimizer(classifier, settings, num_train=None):
    """Fused Adam, SGD with momentum 0.9, or `NaturalGradient`, by settings' optimizer, learning_rate and weight_decay.

    No weight decay pulls at log_std. num_train: N, of which the natural gradient must know, as of settings' alpha, curvature
    and rho.
    """
    if settings["optimizer"] == "natural":
        return NaturalGradient(classifier, num_train=num_train, lr=settings["learning_rate"], **{
            name: settings[name] for name in ("alpha", "curvature", "rho", "weight_decay")})
    parameters = classifier.parameter_groups() if settings["weight_decay"] else classifier.parameters()
    choice = {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"], "fused": True}
    if settings["optimizer"] == "adam":
        return torch.optim.Adam(parameters, **choice)
    optimizer = torch.optim.SGD(parameters, momentum=0.9, **choice)
    for group in optimizer.param_groups:
        for parameter in group["params"]:                # the fused step wants one of each, or none at all
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_attack(settings):
    """The PGD attack of `settings`: epsilon, step_size, num_steps and attack_samples."""
    return PGD(**{name: settings[name] for name in ("epsilon", "step_size", "num_steps", "attack_samples")})


@torch.no_grad()
def initialize_(network, initialization):
    """Set the parameters of `network` afresh, in place.

    "default": as PyTorch made them. "authors": weights of convolutions and linear layers uniform in +-1/sqrt(fan_in),
    BatchNorm scale uniform in [0, 1], shift 0 (the authors' code).
    """
    if initialization == "default":
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.weight.uniform_(0, 1)
            module.bias.zero_()
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            bound = 1 / math.sqrt(module.weight[0].numel())
            module.weight.uniform_(-bound, bound)


def _of_optimizer(optimizer, defense, rates):
    """What belongs to an optimizer: its learning rate, SGD's decay where no prior pulls, what natural needs."""
    decay = DECAY if optimizer == "sgd" and DEFENSES[defense].kind != "bayesian" else 0.0
    return {"optimizer": optimizer, "learning_rate": rates[optimizer], "weight_decay": decay,
            "rho": 0.005 if optimizer == "natural" else None, "curvature": "squares" if optimizer == "natural" else None}


def _authors_alpha(defense, alpha):
    return 1 / 100 if defense == "bnn" else alpha
