"""From a configuration to a training at its start: the network, its classifier, and whether they can be trained at all."""
import copy
import warnings

import torch
from torch import nn

from pyro_advbnn import datasets, networks
from pyro_advbnn.attacks.losses import loss_and_gradient
from pyro_advbnn.attacks.modes import eval_mode, frozen
from pyro_advbnn.bayes import batch_norm
from pyro_advbnn.bayes.build import build_classifier
from pyro_advbnn.bayes.classifier import checked_logits, told_unreached
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.bayes.elbo import objective
from pyro_advbnn.bayes.parameters import copied, counted_parameters, state_tensors, trainable_parameters
from pyro_advbnn.evaluation.inputs import check_logits
from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import InputError, Note, reason
from pyro_advbnn.system.memory import available_memory
from pyro_advbnn.system.random_streams import undisturbed
from pyro_advbnn.training import recipes, run_folders
from pyro_advbnn.training.trainer import Training

_TRIED = 8                                               # images: not every one need reach every weight
_CLASSIFIER_SETTINGS = ("prior", "init_std", "kl_over", "batch_statistics")


def build(config, images, network=None):
    """The Training that config describes, at its start; config gains the classifier's own settings.

    network: an nn.Module on the CPU, of which a copy is trained, in place of the one that config names.
    """
    settings = config["settings"]
    torch.manual_seed(config["seed"])
    network = _tried_out(_named_network(config, images) if network is None else network, config, images)
    if settings["alpha"] == "auto":
        counted = counted_parameters(trainable_parameters(network), network, settings["kl_over"])
        settings["alpha"] = recipes.auto_alpha(len(images), sum(p.numel() for p in counted.values()))
    prior_std = settings["prior_std"]
    if prior_std == "auto" and settings["prior"] == "normal":
        began = config.get("classifier", {})             # of a run that is resumed
        prior_std = began.get("prior_std") or recipes.auto_prior_std(settings["alpha"], len(images))
    classifier = build_classifier(config["defense"], network, class_weights=_class_weights(settings["class_weights"], images),
                                  prior_std=prior_std, **{name: settings[name] for name in _CLASSIFIER_SETTINGS})
    tried = copy.deepcopy(classifier) if settings["weight_averaging"] else classifier    # the average is a copy, which must do
    _try_gradient(tried, images, config["defense"])
    config["classifier"] = tried.settings()
    config["num_weights"] = sum(p.numel() for p in network.parameters())
    if not distributed.is_main():                        # rank 0 goes on with the stream that made the network
        torch.manual_seed(distributed.own_seed(config["seed"]))
    return Training(classifier.to(images.device), images, settings, adversarial=DEFENSES[config["defense"]].adversarial,
                    augmentation=config["augmentation"], seed=config["seed"], precision=config["precision"],
                    batch_norm=config["batch_norm"], micro_batch=config["micro_batch"])


def _class_weights(choice, images):
    """The factor of each class's log-likelihood, with a mean of 1 over the images; None without a choice.

    choice: "balanced", N / (C n_c) for n_c of N images, or a number for each of C classes.
    """
    if choice is None:
        return None
    counts = torch.bincount(images.labels.cpu(), minlength=images.num_classes).double()
    weights = 1 / counts.clamp(min=1) if choice == "balanced" else torch.tensor(choice).double()
    if len(weights) != len(counts):
        raise InputError(f"--class_weights must be balanced, or {len(counts)} numbers, one for each class, got {len(weights)}")
    return (weights * len(images) / (weights @ counts)).tolist()


def _named_network(config, images):
    """The network that config describes."""
    architecture = config["network"], config["num_classes"], config["in_channels"], config["width"]
    check_memory(architecture, config["defense"], images.device)
    network = networks.build_network(*architecture)
    trainable_parameters(network)
    recipes.initialize_(network, config["settings"]["initialization"])
    if config["init_from"]:
        _start_from(network, config["network"], config["init_from"])
        _warn_of_known_images(config)
    return network


def check_memory(architecture, defense, device):
    """Raises InputError where a CPU has no memory for the training of a network: its weights alone, some times over.

    architecture: the arguments of `networks.build_network`; the weights are counted before they are there. Nothing is known of
    networks of the user's own code.
    A posterior takes ten times its weights: mean, log std and momentum, a draw and its noise, and gradients; a deterministic
    network the weights, a gradient and SGD's momentum.
    """
    if networks.is_imported(architecture[0]) or device.type != "cpu":
        return
    try:
        with torch.device("meta"):
            num_weights = sum(p.numel() for p in networks.build_network(*architecture).parameters())
    except NotImplementedError:                          # one of torchvision's that reads tensors while it is built
        return
    needed = 4 * num_weights * (10 if DEFENSES[defense].kind == "bayesian" else 3)
    if needed > available_memory():
        raise InputError(f"a network of {num_weights:,} weights takes {needed / 2**30:.1f} GiB in training with --defense "
                         f"{defense}; {available_memory() / 2**30:.1f} GiB are available")


def _start_from(network, name, run):
    own = networks.is_imported(name) and run_folders.read_config(run)["network"] == name
    source, config, path = run_folders.load_classifier(run, network=network if own else None)
    state = source.mean_network().state_dict()
    there, here = ({name: tuple(tensor.shape) for name, tensor in state_tensors(each).items()}
                   for each in (state, network.state_dict()))
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            raise InputError(f"--init_from: the network in {path} is not the one that is to be trained: {name} has the shape "
                             f"{there.get(name, '(absent)')} there, {here.get(name, '(absent)')} here")
    network.load_state_dict(state)


def _warn_of_known_images(config):
    """Of the same data set, the run that is started from may have held out other images than this one does."""
    before, names = run_folders.read_config(config["init_from"]), ("seed", "subset", "num_held_out")
    differ = any(before[name] != config[name] for name in names)
    if config["num_held_out"] and before["dataset"] == config["dataset"] and differ:
        warnings.warn(f"{config['init_from']} was trained with another --seed, --num_train or --validation: it has learnt from "
                      f"images that are held out here, and held-out accuracies may be too high", Note, stacklevel=2)


def _tried_out(network, config, images):
    """The network with the norms that the training needs, refused before any work where it does not fit one image."""
    batch_size, micro_batch = config["settings"]["batch_size"], config["micro_batch"]
    _check_parts(len(images), batch_size)
    image = _few(images, 1)[0]
    datasets.augment(image, config["augmentation"], torch.Generator(image.device))   # refuses what it cannot take
    logits = logits_of_first(network, images)
    num_classes = checked_logits(logits, 1, config["num_classes"]).shape[1]
    if num_classes < images.num_classes:
        raise InputError(f"labels must lie between 0 and {num_classes - 1}, as the network tells {num_classes} classes apart, "
                         f"they reach to {images.num_classes - 1}")
    if 1 in _sizes_together(len(images), batch_size, micro_batch):           # BatchNorm refuses a single image of 1x1 features
        micro = f" with --micro_batch {micro_batch}" if micro_batch else ""
        _logits(copied(network).train(), image, f"--batch_size {batch_size}{micro} leaves one of the {len(images)} images "
                f"alone in the network, which cannot be trained on it")
    network.train()
    return batch_norm.synchronise(network, images.device.type) if config["batch_norm"] == "sync" else network


def _sizes_together(num_images, batch_size, micro_batch):
    """How many images are together in a process's network: the numbers that occur."""
    processes = distributed.world_size()
    parts = {len(range(rank, batch, processes)) for batch in _sizes(num_images, batch_size) for rank in range(processes)}
    return {size for part in parts for size in _sizes(part, micro_batch or num_images)}


def _sizes(num_images, most):
    """The sizes of the pieces of so many images."""
    return {min(num_images, most), num_images % most} - {0}


def _check_parts(num_images, batch_size):
    """Raises InputError where a batch has fewer than two images for a process: BatchNorm refuses a single one."""
    processes = distributed.world_size()
    if processes > 1 and batch_size < 2 * processes:
        raise InputError(f"--batch_size {batch_size} gives some of {processes} processes fewer than 2 images")
    if processes > 1 and 0 < num_images % batch_size < 2 * processes:
        raise InputError(f"--batch_size {batch_size} leaves a last batch of {num_images % batch_size} of the {num_images} "
                         f"images, fewer than 2 for each of {processes} processes")


def _try_gradient(classifier, images, defense):
    """The loss of a few images and its gradient, which every weight must get a part of; noise must be drawn in it.

    Drawn weights some networks refuse: those that read them when the call is over, or are compiled.
    """
    x, y = _few(images, _TRIED)
    kind = DEFENSES[defense].kind
    with undisturbed(), eval_mode(classifier), warnings.catch_warnings(action="ignore", category=Note):
        before = torch.get_rng_state()
        try:
            with torch.no_grad():
                classifier(x)                            # as predictions do: torch may go other ways there
            silent = kind == "noisy" and torch.equal(before, torch.get_rng_state())
            parts = objective(classifier, x, y, kl_weight=0.0)
            parts.loss.backward()
            if classifier.unreached:
                classifier.unreached = _unreached_in_training(classifier, *_few(images, 8 * _TRIED))
        except Exception as error:
            drawn = " with weights that are drawn anew in each call" if kind == "bayesian" else " and differentiated"
            raise InputError(f"the network cannot be called{drawn}: {reason(error)}") from None
        if silent:
            raise InputError(f"--defense {defense} puts noise before layers that the network does not call: it would have none")
        if DEFENSES[defense].adversarial:
            with frozen(classifier):
                loss_and_gradient(classifier, x, y)
    check_logits(parts.logits)
    if classifier.unreached:
        raise InputError(told_unreached(classifier.unreached))
    classifier.zero_grad()
    classifier.forget()


def _unreached_in_training(classifier, x, y):
    """What of `classifier.unreached` is so in training mode too: a network may have heads for that alone, or many experts."""
    other = copy.deepcopy(classifier).train()
    for module in other.modules():
        module.training = not isinstance(module, nn.SyncBatchNorm)     # these need all processes
    other.unreached = None
    objective(other, x, y, kl_weight=0.0)
    return [name for name in classifier.unreached if name in other.unreached]


def _few(images, number):
    """The first images as (x (B, C, H, W) in [0, 1], y (B,)) on the CPU."""
    few = images.take(list(range(min(number, len(images))))).in_memory()
    return datasets.unit_range(few.images.cpu()), few.labels.cpu()


def logits_of_first(network, images):
    """What the network, in eval mode from here on, makes of the first image.   Raises InputError where it cannot take it."""
    image = _few(images, 1)[0]
    return _logits(network.eval(), image, f"the network cannot take images of {tuple(image.shape[1:])}")


@torch.no_grad()
def _logits(network, image, complaint):
    try:
        return network(image)
    except Exception as error:                           # a network of the user's fails in ways of its own
        raise InputError(f"{complaint}: {reason(error)}") from None
