"""Adversarially trained Bayesian neural networks (Adv-BNN) in PyTorch and Pyro."""
from pyro_advbnn import networks, priors
from pyro_advbnn.attacks import PGD, eval_mode, fgsm, pgd
from pyro_advbnn.averaging import AveragedClassifier
from pyro_advbnn.checkpoints import load, save
from pyro_advbnn.classifiers import BayesianClassifier, Classifier
from pyro_advbnn.defenses import DEFENSES, build_classifier
from pyro_advbnn.elbo import negative_elbo, objective
from pyro_advbnn.errors import InputError
from pyro_advbnn.evaluation import predict, robust_accuracy
from pyro_advbnn.noise import AdditiveNoise, add_noise
from pyro_advbnn.training import train_step

__version__ = "0.1.0"
__all__ = [
    "DEFENSES", "PGD", "AdditiveNoise", "AveragedClassifier", "BayesianClassifier", "Classifier", "InputError",
    "add_noise", "build_classifier", "eval_mode", "fgsm", "load", "negative_elbo", "networks", "objective", "pgd",
    "predict", "priors", "robust_accuracy", "save", "train_step",
]
