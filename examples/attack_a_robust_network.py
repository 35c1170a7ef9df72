"""How much do robust networks of CIFAR-10 withstand? Two of runs/zoo, adversarially trained and Adv-BNN, under growing attacks.

Printed and drawn is the accuracy on test images under white-box PGD against its radius: for Adv-BNN, whose every call draws
weights, with one draw per gradient and with the average of ten. Predictions average 20 draws. CIFAR-10 is downloaded to
`data/` unless --data_dir names the folder that holds cifar-10-batches-py/.
"""
from pathlib import Path

import fire
import matplotlib.pyplot as plt
import torch

import pyro_advbnn as ab

plt.style.use(Path(__file__).with_name("advbnn.mplstyle"))
ZOO = Path(__file__).parents[1] / "runs" / "zoo"
NETWORKS = {"adversarial training": "cifar10-adv.pt", "Adv-BNN": "cifar10-advbnn.pt"}


def main(out="attack_a_robust_network.png", data_dir=None, radii=(0, 2, 4, 8, 12, 16), draws=(1, 10), num_test=200, seed=0):
    """radii: in steps of 1/255 of the brightness."""
    images = ab.datasets.load("cifar10", "test", data_dir)
    tested = ab.datasets.batches(ab.datasets.balanced_subset(images, num_test, seed), 100)
    torch.manual_seed(seed)
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for marker, (name, file) in zip("os", NETWORKS.items()):
        classifier = ab.load(ZOO / file)
        for number, style in zip(draws if isinstance(classifier, ab.BayesianClassifier) else (1,), ("-", "--")):
            rows = [ab.robust_accuracy(classifier, tested, attack_of(radius, number), num_samples=20) for radius in radii]
            middle, low, high = ([100 * row[f"accuracy{end}"] for row in rows] for end in ("", "_low", "_high"))
            label = f"{name}, {number} draws per gradient" if number > 1 else name
            print(f"{label}: " + ", ".join(f"{accuracy:.1f} % (at {radius}/255)" for radius, accuracy in zip(radii, middle)))
            line, = axes.plot(radii, middle, marker=marker, linestyle=style, label=label)
            axes.fill_between(radii, low, high, color=line.get_color(), alpha=0.12)
    axes.set(xlabel="radius of the attack (1/255)", ylabel="accuracy on test images (%)", xticks=radii, ylim=(0, None))
    axes.legend()
    figure.savefig(out)


def attack_of(radius, draws):
    return ab.PGD(radius / 255, num_steps=10, attack_samples=draws) if radius else None


if __name__ == "__main__":
    fire.Fire(main)
