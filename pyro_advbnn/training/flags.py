"""The flags of train, in groups: declared once, for the command line, for calls from Python and for config.json.

Without torch, so that train can read them before it is imported. What no flag says is None, and comes from the recipe.
"""
from pathlib import Path
from typing import Annotated, Literal

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.bayes.settings import BATCH_STATISTICS, PRIORS
from pyro_advbnn.cli import flag_types, help, python_calls
from pyro_advbnn.cli.flag_types import Range
from pyro_advbnn.cli.python_calls import flag
from pyro_advbnn.datasets.names import AUGMENTATIONS, DATASETS, LOADINGS
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import PRECISIONS

MAY_CHANGE_ON_RESUME = ("epochs", "max_minutes", "patience", "tensorboard", "data_dir", "device", "network", "workers",
                        "precision", "compile", "cuda_graphs", "micro_batch")
_OF_POSTERIORS = ("alpha", "prior", "prior_std", "init_std", "kl_over", "kl_warmup", "batch_statistics")
_OF_DRAWS = ("attack_samples", "num_samples")
_NotNegative = Annotated[float, Range(0)]
_Positive = Annotated[float, Range(0, open_low=True)]
_Factor = Annotated[float, Range(0, 1_000_000, open_low=True)]
_Share = Annotated[float, Range(0, 1)]
_Std = _Positive | str


@python_calls.flags
class Run:
    """The run."""

    out: Path | None = flag("the new run folder; default runs/<dataset>-<defense>-<time>; to be given under torchrun, which "
        "goes on with it when it starts the processes anew.", first=True)
    resume: Path | None = flag("run folder to go on with; epochs, max_minutes, patience, tensorboard, data_dir, device, "
        "network, workers, precision, compile, cuda_graphs and micro_batch may be given too. A run without a checkpoint yet "
        "starts from the beginning.", first=True)
    recipe: Literal["paper", "authors", "ours"] | None = flag("paper (Table 2, KL of all weights), authors (close to "
        "their code), ours (the default; KL of all weights, made to train).", first=True)
    seed: flag_types.Seed | None = flag("of all random streams, default 0.")
    max_minutes: flag_types.Minutes | None = flag("stop after this time, resumable.")
    tensorboard: bool | None = flag("also write the numbers of metrics.jsonl into a TensorBoard event file in the run folder, "
        "rounded to its single precision; needs the package tensorboard. A resumed run goes on doing so.")
    dry_run: bool | None = flag("print the configuration and stop.")


@python_calls.flags
class Data:
    """The images."""

    dataset: Literal[DATASETS] | None = flag("the images, default digits; cifar10, stl10, imagenet143, folder and npz read "
        "data_dir.", first=True)
    data_dir: Path | None = flag("folder of the data set (npz: the file); default data/ for cifar10 and stl10. Of "
        "imagenet143 it holds train/<wnid>/ and val/<wnid>/, made from the archives of ILSVRC-2012 as docs/data.md says.",
        first=True)
    image_size: flag_types.Side | None = flag("side in pixels that the images of dataset folder are brought to.")
    num_train: flag_types.ImageCount | None = flag("use a class-balanced subset of this size, from which the held-out images "
        "are then split off.")
    validation: flag_types.ImagesOrNone | None = flag("number of held-out images, of each class the same share, by default "
        "1000 (digits 150) but at most a fifth; best.pt and patience read only these.")
    augmentation: Literal[AUGMENTATIONS] | None = flag("none, crop_flip or resized_crop; default by data set.")
    loading: Literal[LOADINGS] | None = flag("of dataset folder: memory, stream (read the files as they are needed; needs "
        "image_size), or auto (the default: stream where the images do not fit).")
    workers: flag_types.Workers | None = flag("threads that read streamed images ahead; default as many as there are cores, at "
        "most 8; 0: none is read ahead.")


@python_calls.flags
class Method:
    """The defence, its network and its posterior."""

    defense: Literal[tuple(DEFENSES)] | None = flag("none, adv (PGD training), rse (noise), bnn (Bayesian), advbnn (Bayesian "
        "and PGD training; the default), advrse (noise and PGD training).", first=True)
    network: str | None = flag("vgg11, vgg13, vgg16, vgg19, model_a, convnet, torchvision:NAME or "
        "package.module:function.", first=True)
    width: flag_types.Width | None = flag("base number of channels of our networks.")
    initialization: Literal["default", "authors"] | None = flag(
        "PyTorch's own, or the authors' (BatchNorm scale uniform in [0, 1]).")
    init_from: Path | None = flag("run folder whose trained network the posterior mean starts at.")
    alpha: _NotNegative | Literal["auto"] | None = flag("factor of the KL in Eq. (10); auto: chosen so that, by the number of "
        "weights, alpha times the KL is 500 nats in all, at most 0.2 per image, at a signal-to-noise of 20; the decay of the "
        "means by prior_std auto comes on top.", first=True)
    prior: Literal[PRIORS] | None = flag("normal, or scale_mixture or spike_and_slab: these need a number as prior_std, and "
        "their KL is a Monte-Carlo estimate.")
    prior_std: _Std | None = flag("std of the prior, a number, fan_in = sqrt(2 / fan-in), or a multiple such as fan_in/2; "
        "auto: sqrt(alpha / (5e-4 N)), by which the KL decays means as SGD's L2 factor of 5e-4 does.")
    init_std: _Std | None = flag("std that the posterior starts with, a number or by fan_in; with init_from also a share of "
        "each weight's size there, such as share/10 (MOPED, arXiv 1906.05323).")
    kl_over: Literal["all", "last"] | None = flag("KL of all weights, or of the last layer as in the authors' code.")
    batch_statistics: Literal[BATCH_STATISTICS] | None = flag("by which BatchNorm normalises a batch in training: mean, of the "
        "mean network on a part of it, so that training and prediction are one function, or draw, of the drawn network, as "
        "the authors have it.")
    kl_warmup: _Share | None = flag("share of the training over which alpha rises from 0.")
    class_weights: Literal["balanced"] | list[_Factor] | None = flag("factors of the log-likelihood by class: balanced, as "
        "if there were equally many images of each, or a number for each class; scaled to a mean of 1 over the training set. "
        "They weight the accuracies that the training measures, too; attacks and evaluate are not weighted.")
    num_samples: flag_types.Count | None = flag("draws averaged in held-out predictions; default 10.")


@python_calls.flags
class Attack:
    """The attack in training."""

    epsilon: _Share | None = flag("l_inf radius of the attack in training.", first=True)
    step_size: _Share | Literal["auto"] | None = flag("PGD step; auto = 2.5 epsilon / num_steps; default 0.007 on cifar10, "
        "stl10 and imagenet143, else auto.")
    num_steps: flag_types.CountOrNone | None = flag("PGD steps in training.")
    attack_samples: flag_types.Count | None = flag("draws, of the weights or of the noise, averaged in each attack gradient.")

    awp: _Share | None = flag("adversarial weight perturbation (arXiv 2004.05884): each step's gradient is taken where "
        "every weight tensor is moved to a higher loss by this share of its norm; default 0, none; the paper has 0.005.")
    awp_start: _Share | None = flag("share of the training after which it begins, default 0.1.")


@python_calls.flags
class Schedule:
    """The schedule."""

    epochs: flag_types.Epochs | None = flag("passes over the training set.", first=True)
    patience: flag_types.Epochs | None = flag("stop after this many epochs without a better held-out accuracy.")
    batch_size: flag_types.BatchSize | None = flag("images per step, of all processes together.")
    optimizer: Literal["adam", "sgd", "natural"] | None = flag("adam, sgd with momentum 0.9, or natural, for posteriors: the "
        "natural gradient on log std, sgd with Nesterov momentum on the means.")
    learning_rate: _Positive | None = flag("its peak; each optimizer has a default of its own.")
    rho: _Share | None = flag("rate of log std with optimizer natural, default 0.005; no schedule moves it.")
    curvature: Literal["squares", "draws"] | None = flag("what tells optimizer natural how curved the loss is: squares of "
        "gradients, in all as much as draws tell (the default), or draws, IVON's step, in some 1 / alpha epochs.")
    weight_decay: _NotNegative | None = flag("L2 factor of the optimizer; log std has none.")
    schedule: Literal["stages", "cosine", "constant"] | None = flag(
        "stages (divided by 10 after each), cosine (one cycle) or constant.")
    weight_averaging: Annotated[float, Range(0, 1, open_high=True)] | None = flag(
        "decay by step of an exponential moving average of the weights and BatchNorm's statistics, which is then what is "
        "measured and kept; less at the beginning; default 0, none.")


@python_calls.flags
class Machine:
    """The machine, and how it computes."""

    device: str | None = flag("auto (cuda if present; the default), cpu, cuda or cuda:N; under torchrun cuda is one GPU per "
        "process.")
    precision: Literal[PRECISIONS] | None = flag("fp32 (the default on a CPU), tf32 (GPUs only) or bf16 (the default on a "
        "GPU): autocast; weights, losses and the optimizer stay in float32.")
    compile: bool | None = flag("translate the network with torch.compile; where that fails, a line says why.")
    cuda_graphs: flag_types.CudaGraphs | None = flag("capture the attack as a CUDA graph, and the gradients of whole "
        "batches in one process as another; auto = on a GPU. Where that fails, a line says why.")
    micro_batch: flag_types.BatchSize | None = flag("the most images in the network at a time, for a batch that does not fit "
        "into memory: the same draws and the same gradient, but for BatchNorm, which then normalises each part by itself.")
    batch_norm: Literal["sync", "broadcast"] | None = flag("of several processes: sync (statistics of the joined batch; the "
        "default), or broadcast (of each process's own part; the running statistics are those of rank 0).")
    deterministic: bool | None = flag("only algorithms that give the same bits each time on one machine; slower on a GPU. An "
        "operation that has none stops the training.")


ANNOTATIONS = {name: parameter.annotation for group in (Run, Data, Method, Attack, Schedule, Machine)
               for name, parameter in help.parameters(group).items()}


def check_meaning(defense, flags):
    """Raises InputError for a flag, of those given, that the defense or the others have no use for."""
    kind = DEFENSES[defense].kind
    for name in _OF_POSTERIORS:
        if flags.get(name) is not None and kind != "bayesian":
            raise InputError(f"--{name} means nothing for --defense {defense}, which has no posterior")
    for name in _OF_DRAWS:
        if flags.get(name) not in (None, 1) and kind == "deterministic":
            raise InputError(f"--{name} {flags[name]} means nothing for --defense {defense}, whose draws are all the same")
    if flags.get("awp_start") is not None and flags.get("awp") is None:
        raise InputError("--awp_start means nothing without --awp")
    if flags.get("workers") is not None and flags.get("loading") == "memory":
        raise InputError("--workers means nothing for --loading memory: images in memory are not read ahead")


def check_optimizer(defense, settings):
    """Raises InputError where the settings' optimizer cannot train the defense, or has no use for their rho or curvature."""
    if settings["optimizer"] != "natural":
        for name in ("rho", "curvature"):
            if settings[name] is not None:
                raise InputError(f"--{name} means nothing for --optimizer {settings['optimizer']}")
    elif DEFENSES[defense].kind != "bayesian":
        raise InputError(f"--optimizer natural needs a posterior, and --defense {defense} has none")
    elif settings["alpha"] == 0:
        raise InputError("--alpha 0 needs --optimizer adam or sgd: natural divides by alpha")
    elif settings["weight_decay"]:
        raise InputError("--weight_decay means nothing for --optimizer natural: the means have a prior")
