"""Algorithm 1 of Adv-BNN by hand, with Pyro's own SVI: what each epoch does to the loss and to the accuracy.

A classifier is a Pyro model and a Pyro guide. So the algorithm is three lines: attack the batch by PGD under fresh draws of the
weights, take a step of SVI on the attacked batch, keep the stds in their range. Printed are, after each epoch, the loss of
Eq. (10), the KL's share of it, and the accuracy on clean and on attacked test images. The figure shows the same.
"""
from pathlib import Path

import fire
import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

import pyro_advbnn as ab

plt.style.use(Path(__file__).with_name("advbnn.mplstyle"))
EPSILON = 0.2                                             # radius of the attacks, of a brightness in [0, 1]


def main(out="algorithm1_by_hand.png", epochs=10, num_train=1437, num_test=180, seed=0):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    images = ab.datasets.balanced_subset(ab.datasets.load("digits", "train"), num_train, seed)
    tested = ab.datasets.balanced_subset(ab.datasets.load("digits", "test"), num_test, seed)
    network = ab.networks.convnet(width=16)
    alpha = ab.auto_alpha(len(images), sum(p.numel() for p in network.parameters()))            # the KL's price: docs/method.md
    prior_std, kl_weight = ab.auto_prior_std(alpha, len(images)), alpha / len(images)
    classifier = ab.BayesianClassifier(network, prior_std, init_std="fan_in/30")
    svi = SVI(classifier.model, classifier.guide, pyro.optim.Adam({"lr": 5e-3}), loss=TraceMeanField_ELBO())
    batches, course = ab.datasets.batches(images, 64, shuffle_with=torch.Generator().manual_seed(seed)), []
    for epoch in range(1, epochs + 1):
        losses = []
        for x, y in batches:
            x_adv = ab.pgd(classifier, x, y, epsilon=EPSILON, step_size=EPSILON / 2, num_steps=5)
            losses.append(svi.step(x_adv, y, kl_weight))
            classifier.constrain_()
        row = {"loss": sum(losses) / len(losses), "KL": kl_weight * classifier.kl().item(), **accuracies(classifier, tested)}
        course.append(row)
        print(f"epoch {epoch}: loss {row['loss']:.3f}, of which KL {row['KL']:.3f}; accuracy on clean images "
              f"{row['clean']:.1f} %, attacked {row['attacked']:.1f} %")
    draw(course, out)


def accuracies(classifier, tested):
    """{"clean", "attacked"} in %, of predictions averaged over 10 draws; the attacker averages 5 for each gradient."""
    batches = ab.datasets.batches(tested, 360)
    attacks = {"clean": None, "attacked": ab.PGD(EPSILON, num_steps=10, attack_samples=5)}
    return {name: 100 * ab.robust_accuracy(classifier, batches, attack, num_samples=10)["accuracy"]
            for name, attack in attacks.items()}


def draw(course, out):
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
    epochs = range(1, len(course) + 1)
    left.plot(epochs, [row["loss"] for row in course], "o-", label="loss, Eq. (10)")
    left.plot(epochs, [row["KL"] for row in course], "s--", label="of which KL")
    right.plot(epochs, [row["clean"] for row in course], "o-", label="clean")
    right.plot(epochs, [row["attacked"] for row in course], "s--", label=f"PGD, radius {EPSILON}")
    left.set(xlabel="epoch", ylabel="nats per training image", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="accuracy on test images (%)", ylim=(0, 102))
    for axes in (left, right):
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(out)


if __name__ == "__main__":
    fire.Fire(main)
