"""Algorithm 1: attack the batch under guide samples, take one step on the ELBO; and the optimizer and attack of a recipe."""
import torch

from pyro_advbnn.attacks.attack import checked_batch, labels_within_classes, unchecked
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.bayes.classifier import categorical
from pyro_advbnn.bayes.elbo import objective
from pyro_advbnn.system import distributed
from pyro_advbnn.training.micro_batches import attack_in_pieces, backward_in_pieces


def train_step(classifier, optimizer, x, y, *, kl_weight, attack=None, micro_batch=None, share=None):
    """One step of Algorithm 1; returns its `elbo.Objective` on the attacked batch.

    kl_weight >= 0: alpha / N, 0 where there is no posterior. attack: a callable (classifier, x, y) -> x_adv, None for clean
    training. Gradients, optimizer state, parameters and BatchNorm statistics change; the statistics see the attacked batch
    only. micro_batch: the most images that are in the network at a time (see `micro_batches`), None for all.
    share: where x, y are this process's part of a batch, their share of its images. The losses of the processes are then
    weighted by it and their gradients summed, which counts the KL, that every process has in full, once.

    Raises InputError for images outside [0, 1], labels that are none of the classes and a kl_weight out of range, and where the
    network does not return logits (B, classes).
    """
    options = {"kl_weight": kl_weight, "attack": attack, "micro_batch": micro_batch, "share": share}
    if classifier.likelihood is not categorical:         # any numbers may be what it explains, and what explains them
        return step(classifier, optimizer, x, y, **options)
    y, bounds = checked_batch(x, y)
    with labels_within_classes(classifier.network, bounds):
        return step(classifier, optimizer, x, y, **options)


def step(classifier, optimizer, x, y, *, kl_weight, attack=None, micro_batch=None, share=None):
    """`train_step` for images and labels that are known to be fit: it waits for no GPU."""
    optimizer.zero_grad()
    parts = gradients(classifier, x, y, attack=attack, kl_weight=kl_weight, micro_batch=micro_batch,
                      share=1.0 if share is None else share)
    if share is not None:
        distributed.sum_gradients_(optimizer)
    optimizer.step()
    classifier.constrain_()
    return parts


def gradients(classifier, x, y, *, kl_weight, attack=None, micro_batch=None, share=1.0):
    """`step` without the optimizer's: `share` times the gradients of the attacked batch are added to the parameters' grad."""
    attack = unchecked(attack)
    if micro_batch is None or micro_batch >= len(y):
        x_adv = x if attack is None else attack(classifier, x, y)
        parts = objective(classifier, x_adv, y, kl_weight=kl_weight)
        (parts.loss if share == 1 else parts.loss * share).backward()
        return parts
    x_adv = x if attack is None else attack_in_pieces(attack, classifier, x, y, micro_batch)
    return backward_in_pieces(classifier, x_adv, y, kl_weight, micro_batch, share)


def build_optimizer(classifier, settings):
    """Fused Adam, or SGD with momentum 0.9, by settings' optimizer, learning_rate and weight_decay (none of log_std)."""
    parameters = classifier.parameter_groups() if settings["weight_decay"] else classifier.parameters()
    choice = {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"], "fused": True}
    if settings["optimizer"] == "adam":
        on_gpu = next(classifier.parameters()).device.type == "cuda"
        return torch.optim.Adam(parameters, **choice, capturable=on_gpu)
    return torch.optim.SGD(parameters, momentum=0.9, **choice)


def build_attack(settings):
    """The PGD attack of `settings`: epsilon, step_size, num_steps and attack_samples."""
    return PGD(**{name: settings[name] for name in ("epsilon", "step_size", "num_steps", "attack_samples")})
