"""Make a network of torchvision's Bayesian, train it briefly, and look at its posterior.

Any nn.Module will do. Here it is a ResNet-18, not pretrained, cut to the size of digits. Each training step attacks its batch
by one PGD step from a random start. Printed are the loss after each epoch and, in the end, how many weights are more noise
than signal. The figure shows, layer by layer, the density of the posterior's stds, which end below the prior's, and that
of each weight's |mean| / std: left of the line the std is larger than the mean.
"""
import math
from pathlib import Path

import fire
import matplotlib.pyplot as plt
import torch
import torchvision
from torch import nn

import pyro_advbnn as ab

plt.style.use(Path(__file__).with_name("advbnn.mplstyle"))


def resnet18_for_digits():
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False)         # 8x8 pixels of grey, not 224x224 of colour,
    network.maxpool, network.layer4 = nn.Identity(), nn.Identity()              # are too few to be halved so often
    network.fc = nn.Linear(256, 10)
    return network


def main(out="any_network.png", epochs=4, num_train=1437, seed=0):
    torch.manual_seed(seed)
    images = ab.datasets.balanced_subset(ab.datasets.load("digits", "train"), num_train, seed)
    batches = ab.datasets.batches(images, 64, shuffle_with=torch.Generator().manual_seed(seed))
    network = resnet18_for_digits()
    alpha = ab.auto_alpha(len(images), sum(p.numel() for p in network.parameters()))            # the KL's price: docs/method.md
    prior_std = ab.auto_prior_std(alpha, len(images))                           # decays the means as SGD's weight decay does
    classifier = ab.BayesianClassifier(network, prior_std, init_std="fan_in/30")
    optimizer = ab.NaturalGradient(classifier, num_train=len(images), alpha=alpha, lr=0.03, rho=0.05)     # rho: for few steps
    attack = ab.PGD(epsilon=0.2, step_size=0.2, num_steps=1, random_start=True)
    for epoch in range(1, epochs + 1):
        for x, y in batches:
            step = ab.train_step(classifier, optimizer, x, y, kl_weight=alpha / len(images), attack=attack)
        print(f"epoch {epoch}: nll {step.nll:.3f}, KL {alpha / len(images) * step.kl:.3f} nats per image")
    noise = draw_posterior(classifier.posterior(), prior_std, out)
    print(f"{len(classifier.mean):,} weights, all Bayesian; of those of its layers {100 * noise:.1f} % have |mean| < std")


def draw_posterior(posterior, prior_std, out):
    layers = {name.removesuffix(".weight"): normal for name, normal in posterior.items()
              if normal.mean.dim() > 1}                                         # not BatchNorm's, not biases
    stds = {name: normal.stddev.log10().flatten() for name, normal in layers.items()}
    signals = {name: (normal.mean.abs() / normal.stddev).log10().flatten() for name, normal in layers.items()}
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 1.2 + 0.19 * len(layers)), sharey=True)
    ridges(axes[0], stds, "std of the posterior; line: that of the prior")
    axes[0].axvline(math.log10(prior_std), color="C1", linewidth=1)
    ridges(axes[1], signals, "signal-to-noise of a weight, |mean| / std")
    axes[1].axvline(0, color="C1", linewidth=1)
    axes[0].set_ylabel("layer")
    figure.savefig(out)
    return (torch.cat(list(signals.values())) < 0).float().mean().item()


def ridges(axes, values, xlabel, bins=80):
    """The density of log10 of something in each layer, one above the other."""
    low = min(part.quantile(0.005).item() for part in values.values())
    high = max(part.quantile(0.995).item() for part in values.values())
    for place, part in enumerate(values.values()):
        height = torch.histc(part, bins, low, high)
        top = place - 0.9 * height / height.max()
        axes.fill_between(torch.linspace(low, high, bins), place, top, color="C0", linewidth=0, zorder=2)
    axes.set(xlabel=xlabel, yticks=range(len(values)), yticklabels=values, ylim=(len(values) - 0.5, -1))
    axes.xaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    axes.xaxis.get_major_locator().set_params(integer=True)


if __name__ == "__main__":
    fire.Fire(main)
