"""Tests of the worst case over attacks: who is broken, who leaves, and that luck gains nothing."""
import itertools

import pytest
import torch
from torch import nn

from pyro_advbnn.evaluation.worst_case import attacked, course, judge, summary, worst_case_accuracy, worst_rows
from pyro_advbnn.system.errors import InputError


class Threshold(nn.Module):
    """Class 1 where the first pixel is above one half, else class 0; the lead is 2 p - 1 with p = sigmoid(8 (x - 1/2))."""

    def forward(self, x):
        z = 8 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([torch.zeros_like(z), z], 1)


class Coin(nn.Module):
    """Right with probability `p`, whatever the image: every lucky draw looks like a success."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        right = torch.rand(len(x)) < self.p
        return torch.stack([right.float(), 1 - right.float()], 1) * 20


class InTurn(nn.Module):
    """Gives each of some logits in turn."""

    def __init__(self, logits):
        super().__init__()
        self.logits = itertools.cycle(logits)

    def forward(self, x):
        return next(self.logits).expand(len(x), -1)


def to(value):
    def attack(classifier, x, y):
        return torch.full_like(x, value)
    return attack


def batch(values, labels):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), torch.tensor(labels)


def test_an_image_is_broken_where_any_attack_breaks_it_and_the_rest_stands():
    batches = [batch([0.9, 0.1], [1, 0]), batch([0.2, 0.8], [1, 1])]        # the third one is wrong from the start
    row = worst_case_accuracy(Threshold(), batches, {"dark": to(0.0)}, num_samples=2)
    assert (row["num_examples"], row["accuracy"]) == (4, 1 / 4)             # only the second is dark and is 0
    assert worst_case_accuracy(Threshold(), batches, {}, num_samples=1)["accuracy"] == 3 / 4
    assert worst_case_accuracy(Threshold(), batches, {"dark": to(0.0), "light": to(1.0)}, num_samples=1)["accuracy"] == 0


def test_what_is_broken_leaves_the_later_attacks():
    seen = {}

    def spy(name, value):
        def attack(classifier, x, y):
            seen.setdefault(name, []).append(len(y))
            return torch.full_like(x, value)
        return attack

    batches = [batch([0.9, 0.1], [1, 0]), batch([0.9, 0.2], [1, 1])]
    rows = [row for _, found in attacked(Threshold(), batches, {"dark": spy("dark", 0.0), "light": spy("light", 1.0)},
                                         num_samples=1) for row in found]
    assert seen == {"dark": [2, 1], "light": [1]}
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 1]
    told = course(rows, ["none", "dark", "light"])
    assert [(row["num_attacked"], row["num_removed"], row["accuracy"]) for row in told] == [
        (4, 1, 3 / 4), (3, 2, 1 / 4), (1, 1, 0)]


def test_many_attempts_on_lucky_draws_break_nothing():
    """Right 9 times of 10: one draw is wrong on some attempt of 20 for 88 % of the images, the average never."""
    batches = [(torch.zeros(200, 1, 2, 2), torch.zeros(200, dtype=torch.int64))]
    nothing = {f"attempt {i}": lambda classifier, x, y: x for i in range(20)}
    row = worst_case_accuracy(Coin(0.9), batches, nothing, num_samples=20)
    assert row["accuracy"] == 1 and row["single_draw_accuracy"] == pytest.approx(0.9, abs=0.03)
    assert row["undecided"] > 0.7


def test_what_any_lucky_draws_of_the_attacker_break_is_told_beside():
    """Right with probability q by the average of 5 draws: of 9 rows, clean images among them, one breaks nearly all images."""
    batches = [(torch.zeros(1000, 1, 2, 2), torch.zeros(1000, dtype=torch.int64))]
    nothing = {f"attempt {i}": lambda classifier, x, y: x for i in range(8)}
    row = worst_case_accuracy(Coin(0.7), batches, nothing, num_samples=5)
    assert row["accuracy"] > 0.8 and row["unbroken"] < 0.4
    row = worst_case_accuracy(Threshold(), [batch([0.9, 0.1, 0.9], [1, 0, 0])], {"dark": to(0.0)}, num_samples=1)
    assert row["unbroken"] == row["accuracy"] == 1 / 3       # of one answer there is no luck


def test_choosing_the_worst_of_many_attempts_does_not_favour_the_attacker_nor_leaving_the_defender():
    """Where the average of 5 draws is right with probability q, the count on fresh draws is q, however often it was tried."""
    batches = [(torch.zeros(4000, 1, 2, 2), torch.zeros(4000, dtype=torch.int64))]
    nothing = {f"attempt {i}": lambda classifier, x, y: x for i in range(8)}
    q = sum(torch.distributions.Binomial(5, torch.tensor(0.7)).log_prob(torch.tensor(float(k))).exp().item() for k in (3, 4, 5))
    assert worst_case_accuracy(Coin(0.7), batches, nothing, num_samples=5)["accuracy"] == pytest.approx(q, abs=0.03)


def test_the_lowest_margin_by_the_draws_that_judge_stands_for_an_image():
    found = worst_rows([{"attack": name, "index": 0, "judged_margin": margin, "broken": 0, "margin": -1.0}
                       for name, margin in (("a", 0.5), ("b", 0.1), ("c", 0.3))])
    assert found[0]["attack"] == "b"


def test_an_image_leaves_only_where_the_draws_are_sure_that_it_is_broken():
    """Wrong 9 times of 16 is a toss-up; an attack that comes later and surely breaks it must still find it there."""
    x, y = torch.zeros(500, 1, 2, 2), torch.zeros(500, dtype=torch.int64)
    found = judge(Coin(7 / 16), x, y, 16)
    assert found["broken"].float().mean() > 0.5 and found["sure"].float().mean() < 0.2
    assert not (found["sure"] & ~found["broken"]).any()
    wrong = found["wrong_draws"]
    error = 2 * (wrong * (1 - wrong) / 15) ** 0.5        # the lead is +1 or -1
    assert torch.equal(found["sure"], 1 - 2 * wrong + 4 * error <= 1e-6)

    class Weak(Coin):
        def forward(self, x):
            return torch.where(x[:, :1, 0, 0] > 0.5, torch.tensor([[0.0, 20.0]]), super().forward(x))
    row = worst_case_accuracy(Weak(0.5), [(x, y)], {"nothing": lambda classifier, x, y: x, "light": to(1.0)}, num_samples=16)
    assert row["accuracy"] < 0.06                        # left on a toss-up, 25 % would seem to stand


def test_what_leaves_hardly_ever_stands_by_the_draws_that_count():
    """Of images that are wrong in 13 of 20 draws some are counted as standing; these have seen all attacks, but for a few."""
    x, y = torch.zeros(4000, 1, 2, 2), torch.zeros(4000, dtype=torch.int64)
    rows = [row for _, found in attacked(Coin(0.35), [(x, y)], {}) for row in found]
    stand = [row["leaves"] for row in rows if not row["broken"]]
    assert sum(row["leaves"] for row in rows) > 100      # by the binomial distribution 178 ± 13
    assert len(stand) > 100 and sum(stand) < 0.1 * len(stand)


def test_the_draws_tell_the_lead_of_the_averaged_prediction():
    x, y = batch([1.0, 0.0, 0.5], [1, 1, 0])
    found = judge(Threshold(), x, y, 3)
    lead = 2 * torch.tensor(4.0).sigmoid() - 1
    assert torch.allclose(found["margin"], torch.stack([lead, -lead, torch.tensor(0.0)]))
    assert found["broken"].tolist() == found["sure"].tolist() == [False, True, False]
    assert found["wrong_draws"].tolist() == [0, 1, 0]
    assert found["predicted"].tolist() == [1, 0, 0]
    with pytest.raises(InputError, match="num_samples must be at least 1"):
        judge(Threshold(), x, y, 0)


def test_the_averaged_prediction_is_that_of_probabilities_and_not_of_logits():
    found = judge(InTurn(torch.tensor([(2.0, 0.0), (2.0, 0.0), (0.0, 7.0)])), *batch([0.5], [0]), 3)
    assert found["predicted"].tolist() == [0] and not found["broken"].any()
    right = torch.tensor([2.0, 2.0, -7.0]).sigmoid().mean().item()
    assert found["margin"].item() == pytest.approx(2 * right - 1)


def test_every_attack_on_every_batch_has_a_stream_of_its_own():
    drawn = []

    def noting(classifier, x, y):
        drawn.append(torch.rand(3))
        return x

    list(attacked(Threshold(), 2 * [batch([0.9], [1])], {"a": noting, "b": noting}, num_samples=1))
    assert len(torch.stack(drawn).unique(dim=0)) == 4


def test_what_is_known_is_not_computed_and_what_comes_after_is_the_same():
    batches = [batch([0.9, 0.1], [1, 0])]

    def noise(classifier, x, y):
        return torch.rand_like(x)

    def run(**more):
        return [row | {"seconds": 0} for _, found in attacked(Threshold(), batches, {"first": noise, "second": noise},
                                                              num_samples=2, **more) for row in found]

    whole = run()
    known = {(row["attack"], row["index"]): row for row in whole if row["attack"] != "second"}
    calls = []

    def remembered(name, indices):
        calls.append(name)
        return [known[name, index] for index in indices if (name, index) in known]

    torch.rand(3)                                        # the global stream does not matter
    assert run(known=remembered) == whole and calls == [name for name in ("none", "first", "second")
                                                        if any(row["attack"] == name for row in whole)]
    assert run(seed=1) != whole


def test_batches_that_are_shuffled_anew_are_refused():
    class Shuffled:
        def __iter__(self):
            x, y = batch([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0])
            self.count = getattr(self, "count", 0) + 1
            yield x.roll(self.count, 0), y.roll(self.count, 0)

    with pytest.raises(InputError, match="in the same order"):
        worst_case_accuracy(Threshold(), Shuffled(), {"dark": to(0.0)})


def test_few_draws_of_a_random_classifier_are_never_sure():
    x, y = torch.zeros(300, 1, 2, 2), torch.zeros(300, dtype=torch.int64)
    nothing = {f"attempt {i}": lambda classifier, x, y: x for i in range(6)}
    assert worst_case_accuracy(Coin(0.7), [(x, y)], nothing, num_samples=1)["accuracy"] == pytest.approx(0.7, abs=0.08)
    rows = [row for _, found in attacked(Coin(0.0), [(x, y)], nothing, num_samples=4) for row in found]
    assert len(rows) == 300                              # this one is wrong alike in each call, so that all leave
    rows = [row for _, found in attacked(Coin(0.3), [(x, y)], nothing, num_samples=4) for row in found]
    assert len(rows) == 7 * 300


@pytest.mark.parametrize(("batches", "message"), [(iter([]), "gone through again"), ([], "no images")])
def test_batches_that_are_not_fit_are_refused(batches, message):
    with pytest.raises(InputError, match=message):
        worst_case_accuracy(Threshold(), batches, {})


def test_an_attack_does_not_take_the_place_of_the_clean_images():
    with pytest.raises(InputError, match="another name than 'none'"):
        worst_case_accuracy(Threshold(), [batch([0.9], [1])], {"none": to(0.0)})


def test_nothing_outside_is_disturbed():
    state = torch.get_rng_state()
    classifier = Coin(0.5).train()
    worst_case_accuracy(classifier, [(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))], {"noise": to(0.1)})
    assert torch.equal(torch.get_rng_state(), state) and classifier.training


def test_the_summary_of_rows_knows_how_far_the_draws_agree():
    def row(index, broken, wrong_draws, judged_margin=0.0):
        return {"index": index, "judged_margin": judged_margin, "broken": broken, "wrong_draws": wrong_draws}
    found = summary([row(0, 0, 0.0), row(1, 0, 0.25), row(2, 1, 1.0), row(3, 1, 0.75), row(1, 1, 0.9, 0.1)])
    assert (found["accuracy"], found["single_draw_accuracy"], found["undecided"]) == (0.5, 0.5, 0.5)
    assert found["unbroken"] == 0.25                     # an attack that was not the worst by the other draws broke image 1
    assert found["accuracy_low"] < 0.5 < found["accuracy_high"]


def test_the_standard_error_is_that_of_a_sample():
    leads = torch.tensor([-0.14, -0.54, -0.14, -0.54, -0.34])        # mean -0.34, 4 standard errors: 0.358 (of all: 0.320)
    network = InTurn(torch.stack([(1 + leads) / 2, (1 - leads) / 2], 1).log())
    assert not judge(network, torch.rand(1, 1, 2, 2), torch.tensor([0]), 5)["sure"].any()


def test_the_margin_is_the_lead_over_one_class_the_best_of_the_average():
    network = InTurn(torch.tensor([[0.4, 0.59, 0.01], [0.4, 0.11, 0.49]]).log())         # averaged: 0.4, 0.35, 0.25
    found = judge(network, torch.rand(1, 1, 2, 2), torch.tensor([0]), 2)
    assert found["margin"].item() == pytest.approx(0.05) and not found["broken"].any()
