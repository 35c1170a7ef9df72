"""Which weights are needed? Those that the posterior is least sure of are set to zero, and the accuracy is measured again.

Two orders: by signal-to-noise, the lowest |mean| / std first (Blundell et al. 2015), and by std, the largest first, as
Section 3.3 of the paper suggests. Printed and drawn is the accuracy on clean and on attacked test images against the share of
all weights that is gone.
"""
from pathlib import Path

import fire
import matplotlib.pyplot as plt
import torch

import pyro_advbnn as ab

plt.style.use(Path(__file__).with_name("advbnn.mplstyle"))
EPSILON = 0.2                                             # radius of the attacks, of a brightness in [0, 1]
ORDERS = {"signal_to_noise": "by signal-to-noise", "std": "by std"}


def main(out="prune_by_the_posterior.png", epochs=12, shares=(0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8), num_train=1437, num_test=360,
         seed=0):
    images = ab.datasets.balanced_subset(ab.datasets.load("digits", "train"), num_train, seed)
    tested = ab.datasets.batches(ab.datasets.balanced_subset(ab.datasets.load("digits", "test"), num_test, seed), num_test)
    torch.manual_seed(seed)
    classifier = ab.fit(images.images / 255, images.labels, network=ab.networks.convnet(width=16), epsilon=EPSILON,
                        epochs=epochs, batch_size=64, seed=seed)
    attacks = {"clean": None, f"attacked (PGD, radius {EPSILON})": ab.PGD(EPSILON, num_steps=10, attack_samples=2)}
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
    for (order, label), style in zip(ORDERS.items(), ("o-", "s--")):
        pruned = [ab.prune(classifier, share, by=order) for share in shares]
        for ax, (images_are, attack) in zip(axes, attacks.items()):
            found = [100 * ab.robust_accuracy(rest, tested, attack, num_samples=10)["accuracy"] for rest in pruned]
            print(f"{label}, {images_are}: " + ", ".join(f"{accuracy:.1f} % without {100 * share:.0f} %"
                                                        for share, accuracy in zip(shares, found)))
            ax.plot([100 * share for share in shares], found, style, label=label)
            ax.set(xlabel="weights set to zero (%)", title=f"{images_are} images")
    axes[0].set(ylabel="accuracy on test images (%)", ylim=(0, 102))
    axes[0].legend()
    figure.savefig(out)


if __name__ == "__main__":
    fire.Fire(main)
