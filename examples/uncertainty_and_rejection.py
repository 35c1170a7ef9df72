"""Does the classifier know when it does not know? Doubt about clean, attacked and foreign images, and rejection by it.

Doubt is the entropy of the prediction averaged over 20 draws; ln 10 = 2.3 nats is the most with ten classes. The foreign images
are pieces of photographs. Printed is how well doubt tells attacked and foreign images from clean ones (AUROC; 0.5 is
chance). The figure shows the doubt about the three kinds, and the accuracy on the others when the most doubtful images are
refused an answer; in the mix of a third of each kind every answer to a foreign image is wrong.
"""
from pathlib import Path

import fire
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_images

import pyro_advbnn as ab

plt.style.use(Path(__file__).with_name("advbnn.mplstyle"))
EPSILON = 0.2                                             # radius of the attacks, of a brightness in [0, 1]
LINES = ("-", "--", ":", "-.")


def main(out="uncertainty_and_rejection.png", epochs=12, num_train=1437, num_test=360, seed=0):
    images = ab.datasets.balanced_subset(ab.datasets.load("digits", "train"), num_train, seed)
    tested = ab.datasets.balanced_subset(ab.datasets.load("digits", "test"), num_test, seed)
    torch.manual_seed(seed)
    classifier = ab.fit(images.images / 255, images.labels, network=ab.networks.convnet(width=16), epsilon=EPSILON,
                        epochs=epochs, batch_size=64, seed=seed)
    batches, attack = ab.datasets.batches(tested, num_test), ab.PGD(EPSILON, num_steps=10, attack_samples=10)

    def scores(batches, attack=None):
        torch.manual_seed(seed)                          # so that all three kinds meet the same draws
        return ab.uncertainty.scores(classifier, batches, attack)

    told = {"clean": scores(batches), "attacked": scores(batches, attack),
            "foreign": scores([(photographs(num_test, seed), torch.zeros(num_test).long())])}
    told["foreign"]["correct"] *= 0
    for name in ("attacked", "foreign"):
        found = ab.uncertainty.detection(told["clean"]["entropy"], told[name]["entropy"])
        print(f"{name} images are told from clean ones with an AUROC of {found['auroc']:.3f} "
              f"[{found['auroc_low']:.3f}, {found['auroc_high']:.3f}]")
    draw(told, out)


def photographs(number, seed):
    """(number, 1, 8, 8) in [0, 1]: places of the photographs that come with scikit-learn, in grey."""
    grey = torch.stack([torch.tensor(photo.mean(-1) / 255).float() for photo in load_sample_images().images])
    pieces = grey.unfold(1, 8, 8).unfold(2, 8, 8).reshape(-1, 1, 8, 8)
    return pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))[:number]]


def draw(told, out):
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.1))
    mixed = {name: torch.cat([scores[name] for scores in told.values()]) for name in ("entropy", "correct")}
    shares = [share / 20 for share in range(20)]
    for scores, line in zip(told.values(), LINES):
        left.hist(scores["entropy"], bins=23, range=(0, 2.3), histtype="step", linestyle=line, linewidth=1.5)
    for (name, scores), line in zip({**told, "a third of each": mixed}.items(), LINES):
        kept = ab.uncertainty.rejection(scores["entropy"], scores["correct"], shares)
        right.plot([100 * row["rejected"] for row in kept], [100 * row["accuracy"] for row in kept], line, label=name)
    left.set(xlabel="entropy of the averaged prediction (nats)", ylabel="images")
    right.set(xlabel="most doubtful images refused (%)", ylabel="accuracy on the others (%)", ylim=(-3, 103))
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    figure.savefig(out)


if __name__ == "__main__":
    fire.Fire(main)
