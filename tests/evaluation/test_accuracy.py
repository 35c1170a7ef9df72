"""Tests of evaluation: averaged predictions and accuracy under attack."""
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn import datasets
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.evaluation.intervals import wilson_interval
from pyro_advbnn.system.errors import InputError


class Fixed(nn.Module):
    """Answers each call with the next of some logits, the same for all images."""

    def __init__(self, *logits):
        super().__init__()
        self.logits, self.calls = logits, 0

    def forward(self, x):
        self.calls += 1
        return self.logits[(self.calls - 1) % len(self.logits)].expand(len(x), -1)


def test_predictions_average_probabilities_and_not_logits():
    a, b = torch.tensor([[10.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    network = Fixed(a, b)
    expected = (a.softmax(-1) + b.softmax(-1)) / 2
    assert torch.allclose(ab.predict(network, torch.zeros(1, 1, 1, 1), num_samples=2), expected)
    assert network.calls == 2
    assert not torch.allclose(((a + b) / 2).softmax(-1), expected, atol=0.1)


def test_predictions_run_in_eval_mode_and_leave_the_mode_as_it_was():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    network[2].eval()
    before = network[1].running_mean.clone()
    ab.predict(network, torch.rand(8, 1, 2, 2))
    assert torch.equal(network[1].running_mean, before)
    assert [module.training for module in network] == [True, True, False, True]


def test_no_draws_and_no_images_are_refused():
    with pytest.raises(InputError, match="num_samples must be at least 1, got 0"):
        ab.predict(Fixed(torch.zeros(1, 2)), torch.zeros(1, 1, 1, 1), num_samples=0)
    with pytest.raises(InputError, match="no images"):
        ab.robust_accuracy(Fixed(torch.zeros(1, 2)), [])


def test_the_accuracy_counts_right_answers_over_batches_of_unequal_size():
    logits = torch.tensor([[1.0, 0.0]])
    batches = [(torch.zeros(3, 1, 1, 1), torch.tensor([0, 0, 1])), (torch.zeros(1, 1, 1, 1), torch.tensor([0]))]
    seen = []
    row = ab.robust_accuracy(Fixed(logits), batches, num_samples=1, progress=lambda *done: seen.append(done))
    assert (row["accuracy"], row["num_examples"], row["attack"], row["epsilon"]) == (0.75, 4, "none", 0.0)
    assert (row["accuracy_low"], row["accuracy_high"]) == wilson_interval(3, 4)
    assert seen == [(3, 2), (4, 3)]


def test_a_transfer_attack_is_made_on_its_source_and_judged_by_its_target():
    x, y = torch.rand(20, 1, 4, 4), torch.randint(3, (20,))
    target, source = (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)) for _ in range(2))
    attacked = []

    def attack(classifier, x, y):
        attacked.append(classifier)
        return PGD(0.3)(classifier, x, y)

    row = ab.robust_accuracy(target, [(x, y)], attack, source=source, num_samples=1)
    assert ab.robust_accuracy(target, [(x, y)], attack, num_samples=1) != row
    assert attacked == [source, target] and row["attack"] == "attack"
    assert row["accuracy"] == pytest.approx((target(PGD(0.3)(source, x, y)).argmax(-1) == y).float().mean().item())


def test_the_attack_makes_a_classifier_worse():
    images = datasets.balanced_subset(datasets.load("digits", "train"), 200, 0)
    torch.manual_seed(0)
    classifier = ab.Classifier(ab.networks.convnet(width=8))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    batches = datasets.batches(images, 50)
    for _ in range(15):
        for x, y in batches:
            ab.train_step(classifier, optimizer, x, y, kl_weight=0.0)
    clean = ab.robust_accuracy(classifier, batches, num_samples=1)["accuracy"]
    assert clean > 0.9 and ab.robust_accuracy(classifier, batches, PGD(0.2), num_samples=1)["accuracy"] < clean - 0.3
