"""What an attack with one draw per gradient hides: accuracy under PGD against the number of draws that the attacker averages.

A random network answers each gradient with noise, so a weak attack makes it look strong (Zimmermann, arXiv 1907.00895). Three
classifiers, trained on attacked images: RSE, which adds noise to its features, and Adv-BNN with a wide and with a narrow
posterior, made by a high and a low price of the KL. Printed and drawn is the accuracy of predictions averaged over 20 draws,
for 1 to 10 draws per gradient. Believe the right end of a curve; the drop from the left end is what one draw hides.
"""
from pathlib import Path

import fire
import matplotlib.pyplot as plt
import torch

import pyro_advbnn as ab

plt.style.use(Path(__file__).with_name("advbnn.mplstyle"))
EPSILON = 0.2                                             # radius of the attacks, of a brightness in [0, 1]
CLASSIFIERS = {"RSE": ("advrse", 0), "Adv-BNN, wide posterior": ("advbnn", 0.3), "Adv-BNN, narrow posterior": ("advbnn", 1e-4)}


def main(out="what_one_draw_hides.png", epochs=8, draws=(1, 2, 5, 10), num_train=1437, num_test=200, seed=0):
    images = ab.datasets.balanced_subset(ab.datasets.load("digits", "train"), num_train, seed)
    tested = ab.datasets.batches(ab.datasets.balanced_subset(ab.datasets.load("digits", "test"), num_test, seed), num_test)
    curves = {}
    for name, (defense, alpha) in CLASSIFIERS.items():
        classifier = trained(defense, alpha, images, epochs, seed)
        attacks = [ab.PGD(EPSILON, num_steps=10, attack_samples=number) for number in draws]
        curves[name] = [100 * ab.robust_accuracy(classifier, tested, attack)["accuracy"] for attack in attacks]
        print(f"{name}: " + ", ".join(f"{accuracy:.1f} % ({number})" for number, accuracy in zip(draws, curves[name])))
    draw(curves, draws, out)


def trained(defense, alpha, images, epochs, seed):
    """A classifier of a defence after so many epochs; alpha: the price of the KL, where there is a posterior."""
    torch.manual_seed(seed)
    classifier = ab.build_classifier(defense, ab.networks.convnet(width=8), prior_std="fan_in", init_std="fan_in/30")
    batches = ab.datasets.batches(images, 64, shuffle_with=torch.Generator().manual_seed(seed))
    optimizer = (ab.NaturalGradient(classifier, num_train=len(images), alpha=alpha, rho=0.05) if alpha else
                 torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9, nesterov=True))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    attack = ab.PGD(EPSILON, num_steps=5) if ab.DEFENSES[defense].adversarial else None
    for _ in range(epochs):
        for x, y in batches:
            ab.train_step(classifier, optimizer, x, y, kl_weight=alpha / len(images), attack=attack)
            schedule.step()
    return classifier


def draw(curves, draws, out):
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for (name, accuracies), marker in zip(curves.items(), "o^s"):
        axes.plot(draws, accuracies, marker=marker, label=name)
    axes.set(xscale="log", xticks=draws, xticklabels=draws, xlabel="draws that the attacker averages for each gradient",
             ylabel=f"accuracy under PGD of radius {EPSILON} (%)")
    axes.minorticks_off()
    axes.legend()
    figure.savefig(out)


if __name__ == "__main__":
    fire.Fire(main)
