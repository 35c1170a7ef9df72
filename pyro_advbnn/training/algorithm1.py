"""Algorithm 1: attack the batch under guide samples, take one step on the ELBO."""
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch

from pyro_advbnn.attacks.attack import checked_batch, labels_within_classes, unchecked
from pyro_advbnn.attacks.modes import eval_mode
from pyro_advbnn.bayes.classifier import Classifier, categorical
from pyro_advbnn.bayes.elbo import Objective, objective
from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import InputError, check_at_least, check_number
from pyro_advbnn.training.micro_batches import attack_in_pieces, backward_in_pieces
from pyro_advbnn.training.weight_perturbation import buffers_kept, perturbed


def train_step(classifier: Classifier, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, *, kl_weight: float,
               attack: Callable | None = None, micro_batch: int | None = None, share: float | None = None,
               awp: float = 0.0) -> Objective:
    """One step of Algorithm 1; returns its `elbo.Objective` on the attacked batch, detached.

    kl_weight >= 0: alpha / N, 0 where there is no posterior. attack: a callable (classifier, x, y) -> x_adv, None for clean
    training. Gradients, optimizer state, parameters and BatchNorm statistics change; the statistics see the attacked batch
    only, and in eval mode, in which `ab.load` and `ab.fit` give a classifier, nothing: call train() first.
    micro_batch: the most images that are in the network at a time (see `micro_batches`), None for all.
    share: where x, y are this process's part of a batch, their share of its images. The losses of the processes are then
    weighted by it and their gradients summed, which counts the KL, that every process has in full, once.
    awp: the size in [0, 1] of an adversarial perturbation of the weights (`weight_perturbation`), which takes one more forward
    and backward pass; loss, nll, kl and their gradients are then those at the perturbed weights.

    Raises InputError for what is no Classifier, images outside [0, 1], labels that are none of the classes, kl_weight,
    micro_batch and awp out of range, and where the network does not return logits (B, classes).
    """
    if not isinstance(classifier, Classifier):
        raise InputError(f"classifier must be one of this package's classifiers, got a {type(classifier).__name__}; "
                         f"ab.Classifier wraps a network")
    check_number("awp", awp, high=1)
    check_at_least("micro_batch", 1 if micro_batch is None else micro_batch, 1)
    options = {"kl_weight": kl_weight, "attack": attack, "micro_batch": micro_batch, "share": share, "awp": awp}
    if classifier.likelihood is not categorical:         # any numbers may be what it explains, and what explains them
        return step(classifier, optimizer, x, y, **options)
    y, bounds = checked_batch(x, y)
    with labels_within_classes(classifier.network, bounds):
        return step(classifier, optimizer, x, y, **options)


def step(classifier, optimizer, x, y, *, kl_weight, attack=None, micro_batch=None, share=None, awp=0.0, take_gradients=None):
    """`train_step` for images and labels that are known to be fit: it waits for no GPU.

    take_gradients: in place of `gradients`, a `cuda_graphs.GraphedGradients`.
    """
    optimizer.zero_grad()                                # so that no gradient takes memory while the batch is attacked
    x = _attacked(classifier, x, y, attack, micro_batch)
    if awp:
        with buffers_kept(classifier.network):           # the perturbed weights' batch alone moves the running statistics
            # cloned: a first layer may work in place
            _summed_gradients(classifier, optimizer, x.clone(), y, 0.0, micro_batch, share, take_gradients)
    with perturbed(classifier, awp) if awp else nullcontext():
        parts = _summed_gradients(classifier, optimizer, x, y, kl_weight, micro_batch, share, take_gradients)
    for group in optimizer.param_groups:
        if "kl_weight" in group:
            group["kl_weight"] = kl_weight
    optimizer.step()
    classifier.constrain_()
    return parts


def _summed_gradients(classifier, optimizer, x, y, kl_weight, micro_batch, share, take_gradients):
    """`gradients` of the joined batch of all processes, alone in the parameters' grad."""
    optimizer.zero_grad()
    torch.clear_autocast_cache()                         # of a caller's autocast: the weights have moved since
    parts = (take_gradients or gradients)(classifier, x, y, kl_weight=kl_weight, micro_batch=micro_batch,
                                          share=1.0 if share is None else share)
    if share is not None:
        distributed.sum_gradients_(optimizer)
    return parts


def gradients(classifier, x, y, *, kl_weight, micro_batch=None, share=1.0):
    """The `Objective` of a batch that is attacked already; `share` times its gradients are added to the parameters' grad."""
    if micro_batch is None:
        parts = objective(classifier, x, y, kl_weight=kl_weight)
        (parts.loss if share == 1 else parts.loss * share).backward()
        return replace(parts, loss=parts.loss.detach())  # a graph that lives on would stop the capture of a CUDA graph
    return backward_in_pieces(classifier, x, y, kl_weight, micro_batch, share)


def _attacked(classifier, x, y, attack, micro_batch):
    """What `attack` makes of x, the images themselves without one."""
    attack = unchecked(attack)
    if attack is None:
        return x
    with eval_mode(classifier):                          # which an attack of the user's may not see to
        return attack(classifier, x, y) if micro_batch is None else attack_in_pieces(attack, classifier, x, y, micro_batch)
