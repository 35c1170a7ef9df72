"""Tests of sweeps: one pass gives what separate evaluations give, and the numbers are those of their equations."""
import copy
from collections import Counter

import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.evaluation import sweeps
from pyro_advbnn.evaluation.accuracy import robust_accuracy
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.random_streams import own_stream, separate_randomness

NUM_IMAGES = 60


class Counting(nn.Module):
    """A classifier that counts its calls on whole batches, those with and those without a gradient."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier, self.counts = classifier, Counter()     # one for it and its copies

    def forward(self, x):
        self.counts["gradients" if x.requires_grad else "forwards"] += len(x) > 16       # of fewer: whether it is fit
        return self.classifier(x)

    def __getattr__(self, name):
        return self.counts[name] if name in ("gradients", "forwards") else super().__getattr__(name)


def test_each_number_of_draws_gets_the_accuracy_of_a_run_of_its_own(classifier, batch):
    attack = ab.PGD(0.1, num_steps=3)
    with separate_randomness(5):
        together = sweeps.ensemble_accuracies(classifier, [batch], attack, [7, 1, 3, 3])
    assert [row["num_samples"] for row in together] == [1, 3, 7]
    for row in together:
        with separate_randomness(5), own_stream():
            assert row == robust_accuracy(classifier, [batch], attack, num_samples=row["num_samples"])
    assert len({row["accuracy"] for row in together}) > 1


def test_the_numbers_of_draws_share_one_attack_and_one_pass(classifier, batch):
    counting = Counting(classifier)
    sweeps.ensemble_accuracies(counting, [batch, batch], ab.PGD(0.1, num_steps=4, attack_samples=2), [1, 5, 20])
    assert (counting.gradients, counting.forwards) == (2 * 4 * 2, 2 * 20)


def test_each_number_of_steps_gets_the_accuracy_of_an_attack_of_its_own(classifier, batch):
    attack = ab.PGD(0.2, 0.02, num_steps=1, attack_samples=2)
    with separate_randomness(5):
        together = sweeps.steps_accuracies(classifier, [batch], attack, [8, 2, 5], num_samples=4)
    assert [row["num_steps"] for row in together] == [2, 5, 8]
    for row in together:
        with separate_randomness(5), own_stream():
            own = ab.PGD(0.2, 0.02, row["num_steps"], attack_samples=2)
            assert row == robust_accuracy(classifier, [batch], own, num_samples=4)
    assert together[0]["accuracy"] > together[-1]["accuracy"]
    assert [row["reaches_ball"] for row in together] == [False, False, False]


def test_the_numbers_of_steps_share_one_attack(classifier, batch):
    counting = Counting(classifier)
    sweeps.steps_accuracies(counting, [batch], ab.PGD(0.1, 0.01), [3, 30, 10], num_samples=2)
    assert (counting.gradients, counting.forwards) == (30, 3 * 2)


def test_one_attack_on_the_source_is_tried_on_every_target(classifier, batch):
    torch.manual_seed(3)
    other = Counting(ab.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3))))
    counting, attack = Counting(classifier), ab.PGD(0.1, num_steps=4)
    rows = sweeps.transfer_accuracies(counting, {"a": counting, "b": other}, [batch], attack,
                                      num_samples={"a": 5, "b": 1})
    assert (counting.gradients, counting.forwards, other.gradients, other.forwards) == (4, 5, 0, 1)
    with separate_randomness(2), own_stream():
        alone = robust_accuracy(other.classifier, [batch], attack, source=classifier, num_samples=1)
    with separate_randomness(2):
        together = sweeps.transfer_accuracies(classifier, {"b": other.classifier}, [batch], attack, num_samples=1)
    assert together == {"b": alone} and list(rows) == ["a", "b"]


@pytest.mark.parametrize("sweep", ["ensemble", "steps", "transfer"])
def test_a_row_is_the_same_whatever_else_is_asked_for(classifier, batch, sweep):
    """Over several batches: what is read off in one must not move the draws of the next."""
    x, y = batch
    batches, attack = [(x[i:i + 8], y[i:i + 8]) for i in range(0, 60, 8)], ab.PGD(0.15, 0.05, num_steps=3)
    other = ab.Classifier(classifier.mean_network())

    def rows(*wanted):
        with separate_randomness(5):
            if sweep == "ensemble":
                return sweeps.ensemble_accuracies(classifier, batches, attack, wanted)
            if sweep == "steps":
                return sweeps.steps_accuracies(classifier, batches, attack, wanted, num_samples=2)
            targets = {1: other, 3: classifier, 9: copy.deepcopy(classifier)}
            return list(sweeps.transfer_accuracies(classifier, {n: targets[n] for n in wanted}, batches, attack,
                                                   num_samples=3).values())

    everything = rows(1, 3, 9)
    assert rows(1) + rows(3) + rows(9) == everything == rows(1, 3) + rows(9)
    assert len({row["accuracy"] for row in everything}) > 1


def test_steps_of_a_mixture_are_those_of_one_attack_whatever_is_read_off(classifier, batch):
    mixture, attack = ab.Mixture([copy.deepcopy(classifier), ab.Classifier(classifier.mean_network())]), ab.PGD(0.15, 0.05)
    seen = []
    mixture.classifiers[1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].requires_grad))

    def visits(*counts):
        seen.clear()
        with separate_randomness(5):
            rows = sweeps.steps_accuracies(mixture, [batch], attack, counts, num_samples=2)
        return rows[-1], sum(seen)

    alone, few = visits(8)

    assert few == 4 and visits(1, 3, 5, 8) == (alone, few)


def test_progress_is_told_after_every_batch(classifier, batch):
    seen = []
    sweeps.ensemble_accuracies(classifier, [batch, batch], None, [1], progress=lambda *done: seen.append(done[0]))
    sweeps.steps_accuracies(classifier, [batch], ab.PGD(0.1), [1], progress=lambda *done: seen.append(done[0]))
    sweeps.gradient_norms(classifier, [batch], progress=lambda *done: seen.append(done[0]))
    assert seen == [60, 120, 60, 60]


def test_the_gradient_norm_of_a_linear_network_is_the_one_by_hand():
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    network[1].weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    x, y = torch.tensor([[0.0, 0.0], [1.0, 0.5]]).view(2, 1, 1, 2), torch.tensor([0, 1])
    # dloss/dx = sum_k (p_k - [k = y]) w_k; logits are 0 for both images, so p = 1/2: (-1/2, 1) and (1/2, -1), norm 3/2
    row = sweeps.gradient_norms(ab.Classifier(network), [(x, y)])
    assert row == {"num_samples": 1, "num_examples": 2, "l1_norm": 1.5, "l1_norm_low": 1.5, "l1_norm_high": 1.5}
    assert network[1].weight.requires_grad and network[1].weight.grad is None


def test_the_gradient_norms_interval_is_the_normal_one(classifier, batch):
    norms = [sweeps.gradient_norms(classifier.mean_network(), [(x[None], y[None])])["l1_norm"] for x, y in zip(*batch)]
    row = sweeps.gradient_norms(classifier.mean_network(), [batch])
    norms = torch.tensor(norms, dtype=torch.float64)
    mean, half = norms.mean().item(), 1.959964 * norms.std().item() / NUM_IMAGES**0.5
    assert row["l1_norm"] == pytest.approx(mean, rel=1e-5)
    assert row["l1_norm_high"] - row["l1_norm"] == pytest.approx(half, rel=1e-3) == row["l1_norm"] - row["l1_norm_low"]


def test_averaging_gradients_over_draws_comes_before_the_norm(classifier, batch):
    one, many = (sweeps.gradient_norms(classifier, [batch], num_samples=n)["l1_norm"] for n in (1, 50))
    assert many < 0.8 * one                              # what draws disagree about cancels


def test_the_gradients_of_the_draws_are_averaged_not_their_probabilities():
    torch.manual_seed(0)
    x, y = torch.rand(20, 1, 8, 8), torch.randint(10, (20,))
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), init_std=1.0).eval()
    with separate_randomness(1):
        row = sweeps.gradient_norms(classifier, [(x, y)], num_samples=5)
    with separate_randomness(1):
        loss = sum(nn.functional.cross_entropy(classifier(x.requires_grad_()), y, reduction="sum") for _ in range(5)) / 5
    gradient, = torch.autograd.grad(loss, x)
    assert row["l1_norm"] == pytest.approx(gradient.abs().flatten(1).sum(1).mean().item(), rel=1e-5)


def test_batch_norm_stands_still_whatever_mode_the_network_is_in():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x, y = torch.rand(20, 1, 4, 4), torch.randint(3, (20,))
    runs = {"train": network.train(), "eval": copy.deepcopy(network).eval()}
    for measure in (lambda n: sweeps.gradient_norms(n, [(x, y)]), lambda n: sweeps.ensemble_accuracies(n, [(x, y)], None, [2])):
        assert measure(runs["train"]) == measure(runs["eval"])
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()) and network.training


def test_no_images_and_images_out_of_range_are_refused(classifier, batch):
    sweeps_ = [lambda batches: sweeps.ensemble_accuracies(classifier, batches, None, [1]),
               lambda batches: sweeps.steps_accuracies(classifier, batches, ab.PGD(0.1), [1]),
               lambda batches: sweeps.transfer_accuracies(classifier, {"a": classifier}, batches, ab.PGD(0.1)),
               lambda batches: sweeps.gradient_norms(classifier, batches)]
    for sweep in sweeps_:
        with pytest.raises(InputError, match="no images"):
            sweep([])
        with pytest.raises(InputError, match=r"images must lie in \[0, 1\]"):
            sweep([(batch[0] * 255, batch[1])])
        with pytest.raises(InputError, match="labels must lie between 0 and 2"):
            sweep([(batch[0], batch[1] + 7)])


class Leaving(ab.PGD):
    """An attack that goes farther than its epsilon."""

    def iterates(self, classifier, x, y):
        for x_adv in super().iterates(classifier, x, y):
            yield (x_adv + 0.5).clamp(0, 1)


def test_what_falls_apart_on_the_way_is_refused(classifier, batch):
    """Which a try on 16 images does not show: NaN of some images alone, and attacks that leave their ball."""
    class Lost(nn.Module):
        def forward(self, x):
            return classifier(x).where(torch.arange(len(x))[:, None] < 20, torch.nan)

    with pytest.raises(InputError, match="NaN or infinite ones for 40 of 60 images"):
        sweeps.ensemble_accuracies(Lost(), [batch], None, [1, 2])
    far = Leaving(0.1, num_steps=2)
    for sweep in (lambda: sweeps.ensemble_accuracies(classifier, [batch], far, [1]),
                  lambda: sweeps.steps_accuracies(classifier, [batch], far, [1]),
                  lambda: sweeps.transfer_accuracies(classifier, {"a": classifier}, [batch], far)):
        with pytest.raises(InputError, match="must stay within its epsilon 0.1"):
            sweep()
