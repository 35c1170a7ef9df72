"""Your own attack, foolbox's and ART's on a random network, each judged by predictions averaged over draws.

An attack is any function (classifier, x, y) -> x_adv. Here each is aimed at the classifier as it is, which draws anew in every
call, at the average of ten draws, and at the posterior's mean network. Printed and drawn is the accuracy that is left, with
its 95 % interval. foolbox and ART are left out where they are missing: pip install foolbox adversarial-robustness-toolbox
"""
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import fire
import matplotlib.pyplot as plt
import torch

import pyro_advbnn as ab

plt.style.use(Path(__file__).with_name("advbnn.mplstyle"))
EPSILON, STEP, NUM_STEPS = 0.2, 0.05, 10                 # radius and step, of a brightness in [0, 1]
AIMS = {"the classifier as it is": lambda classifier: classifier,
        "the average of 10 draws": lambda classifier: ab.AveragedClassifier(classifier, 10),
        "its mean network": lambda classifier: ab.surrogate(classifier, "mean")}


def margin_attack(module, x, y):
    """Steps along the sign of the gradient of the margin: the best wrong class's logit less the right one's."""
    x_adv = x
    for _ in range(NUM_STEPS):
        x_adv = x_adv.detach().requires_grad_()
        logits = module(x_adv)
        margin = logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)
        gradient, = torch.autograd.grad(margin.sum(), x_adv)
        x_adv = (x_adv + STEP * gradient.sign()).clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
    return x_adv.detach()


def foolbox_pgd(module, x, y):
    import foolbox
    model = foolbox.PyTorchModel(module, bounds=(0, 1), device=x.device)
    return foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=NUM_STEPS)(model, x, y, epsilons=EPSILON)[1]


def art_pgd(module, x, y):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier
    model = PyTorchClassifier(module, torch.nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1), device_type="cpu")
    attack = ProjectedGradientDescent(model, eps=EPSILON, eps_step=STEP, max_iter=NUM_STEPS, verbose=False)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def aimed(attack, aim, classifier, x, y):
    return attack(aim(classifier), x, y)


def main(out="your_own_attack.png", epochs=12, num_train=1437, num_test=360, seed=0):
    images = ab.datasets.balanced_subset(ab.datasets.load("digits", "train"), num_train, seed)
    tested = ab.datasets.batches(ab.datasets.balanced_subset(ab.datasets.load("digits", "test"), num_test, seed), num_test)
    torch.manual_seed(seed)
    classifier = ab.fit(images.images / 255, images.labels, network=ab.networks.convnet(width=16), epsilon=EPSILON,
                        epochs=epochs, batch_size=64, seed=seed)
    attacks = {"margin (this script)": margin_attack}
    attacks |= {"foolbox's PGD": foolbox_pgd} if find_spec("foolbox") else {}
    attacks |= {"ART's PGD": art_pgd} if find_spec("art") else {}
    figure, axes = plt.subplots(figsize=(6, 1.2 + 0.6 * len(attacks)))
    for place, aim in enumerate(AIMS):
        rows = []
        for name, attack in attacks.items():
            row = ab.robust_accuracy(classifier, tested, partial(aimed, attack, AIMS[aim]))
            rows.append([100 * row[f"accuracy{end}"] for end in ("", "_low", "_high")])
            print(f"{name} on {aim}: {rows[-1][0]:.1f} [{rows[-1][1]:.1f}, {rows[-1][2]:.1f}] %")
        middle, low, high = torch.tensor(rows).T
        axes.errorbar(middle, [number + 0.2 * (place - 1) for number in range(len(rows))], xerr=(middle - low, high - middle),
                      fmt="os^"[place], capsize=2, elinewidth=0.9, label=f"on {aim}")
    axes.set(xlabel=f"accuracy under attacks of radius {EPSILON} (%)", ylabel="attack", yticks=range(len(attacks)),
             yticklabels=attacks, ylim=(len(attacks) - 0.5, -0.5))
    figure.legend(loc="outside upper left", ncols=3)
    figure.savefig(out)


if __name__ == "__main__":
    fire.Fire(main)
