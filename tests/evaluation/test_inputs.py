"""Tests of inputs: what a stranger's images, labels and modules may be, and the one line that says where they are wrong."""
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.evaluation import inputs, uncertainty
from pyro_advbnn.system.errors import InputError, Note


class Answering(nn.Module):
    """Linear logits (B, 3) of images (B, 1, 2, 2), changed by a function."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.linear, self.change = nn.Linear(4, 3), change

    def forward(self, x):
        return self.change(self.linear(x.flatten(1)))


@pytest.fixture
def batch():
    return torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 1])


def refusal(call):
    """The message of the InputError that the call ends with."""
    with pytest.raises(InputError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


IMAGES = {
    "a list": (lambda x: x.tolist(), "images must be a tensor (B, C, H, W) of floats in [0, 1], at least one image, got a"),
    "bytes": (lambda x: (255 * x).byte(), "got a tensor (4, 1, 2, 2) of torch.uint8"),
    "one image": (lambda x: x[0], "got a tensor (1, 2, 2)"),
    "no image": (lambda x: x[:0], "at least one image, got a tensor (0, 1, 2, 2)"),
    "to 255": (lambda x: x / x.max() * 255, "images must lie in [0, 1], these reach from"),
    "normalised": (lambda x: (x - 0.5) / 0.25, "images must lie in [0, 1]"),
    "NaN": (lambda x: x.index_fill(0, torch.tensor([2]), torch.nan), "images must lie in [0, 1], these reach from nan to nan"),
}


@pytest.mark.parametrize(("change", "message"), IMAGES.values(), ids=IMAGES)
def test_images_that_are_none_are_refused(batch, change, message):
    x = change(batch[0])
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [(x, batch[1])]))
    assert message in refusal(lambda: ab.predict(Answering(), x))


class Noisy(nn.Module):
    """Noise before the linear layer of `Answering`, drawn by a function of the images."""

    def __init__(self, draw):
        super().__init__()
        self.network, self.draw = Answering(), draw

    def forward(self, x):
        return self.network(x + 0.1 * self.draw(x))


OF_TORCH = {"randn_like": torch.randn_like, "dropout": lambda x: torch.dropout(x, 0.5, True)}
OWN = torch.Generator()
OF_OTHERS = {"a generator of its own": lambda x: torch.randn(x.shape, generator=OWN),
             "NumPy": lambda x: torch.from_numpy(np.random.default_rng().normal(size=x.shape)).float(),
             "random": lambda x: random.random()}


@pytest.mark.parametrize("draw", OF_OTHERS.values(), ids=OF_OTHERS)
def test_randomness_that_is_not_of_torchs_global_generators_is_told(batch, draw):
    """Square and restarts compare points by equal draws, which such a classifier does not give."""
    with pytest.warns(Note, match="otherwise when torch's global generators are set back"):
        ab.robust_accuracy(Noisy(draw), [batch])


@pytest.mark.parametrize("classifier", [
    *map(Noisy, OF_TORCH.values()), Answering(), ab.BayesianClassifier(Answering()),
    ab.Mixture([ab.BayesianClassifier(Answering()), ab.Classifier(Answering())])], ids=lambda module: type(module).__name__)
def test_randomness_of_torchs_global_generators_is_not_told(batch, classifier):
    with warnings.catch_warnings(action="error"):
        ab.robust_accuracy(classifier, [batch])
        ab.robust_accuracy(classifier.train(), [batch], ab.PGD(0.1, num_steps=1))


def test_what_is_no_classifier_no_batch_and_no_mapping_of_attacks_is_refused_by_name(batch):
    attack = ab.PGD(0.1, num_steps=1)
    assert "must be an nn.Module, got a function" in refusal(lambda: attack(lambda x: x, *batch))
    assert "a pair (images, labels), got a tensor (4, 1, 2, 2)" in refusal(lambda: ab.robust_accuracy(Answering(), batch))
    for attacks in (attack, [attack]):
        told = refusal(lambda attacks=attacks: ab.worst_case_accuracy(Answering(), [batch], attacks))
        assert f"attacks must be a mapping, {{name: attack}}, got a {type(attacks).__name__}" in told


@pytest.mark.parametrize("norm", ["linf", "Linf", "inf", float("inf"), "l2", "L2", 2])
def test_an_epsilon_binds_its_attack_however_its_norm_is_spelled(norm):
    x = torch.full((2, 1, 2, 2), 0.1)
    with pytest.raises(InputError, match="stay within its epsilon"):
        inputs.check_attacked(1 - x, x, SimpleNamespace(epsilon=0.2, norm=norm))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_up_to_the_borders_of_their_range_pass_in_every_precision(dtype):
    assert inputs.check_images(torch.tensor([0.0, 1.0, 0.5, 1.0], dtype=dtype).view(1, 1, 2, 2)) is None


LABELS = {
    "a list": (lambda y: y.tolist(), "labels must be a tensor (B,) of class numbers, integers, one for each of 4 images"),
    "one-hot": (lambda y: nn.functional.one_hot(y), "got a tensor (4, 3)"),
    "floats": (lambda y: y.float(), "got a tensor (4,) of torch.float32"),
    "from 1": (lambda y: y + 1, "labels must lie between 0 and 2, as there are 3 classes, these reach from 1 to 3"),
    "unknown as -1": (lambda y: y - 1, "these reach from -1 to 1"),
    "too few": (lambda y: y[:3], "one for each of 4 images on cpu, got a tensor (3,)"),
}


@pytest.mark.parametrize(("change", "message"), LABELS.values(), ids=LABELS)
def test_labels_that_do_not_fit_are_refused_before_the_attack(batch, change, message):
    x, y = batch[0], change(batch[1])
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [batch, (x, y)], ab.PGD(0.1)))
    assert message in refusal(lambda: ab.worst_case_accuracy(Answering(), [batch, (x, y)], {}))


def test_labels_of_any_integer_type_are_class_numbers(batch):
    (x, y), classifier, attack = batch, Answering(), ab.PGD(0.1)
    for labels in (y.int(), y.to(torch.uint8)):
        assert ab.robust_accuracy(classifier, [(x, labels)], attack) == ab.robust_accuracy(classifier, [batch], attack)
        assert ab.worst_case_accuracy(classifier, [(x, labels)], {})["num_examples"] == 4


CLASSIFIERS = {
    "a tuple": (lambda z: (z, z), "must return one tensor of logits (B, classes)"),
    "class numbers": (lambda z: z.argmax(-1), "must return one tensor of logits"),
    "one class": (lambda z: z[:, :1], ", 1) of torch.float32"),
    "one row for all": (lambda z: z.mean(0, keepdim=True), "got a tensor (1, 3)"),
    "NaN": (lambda z: z / 0 * 0, "logits must be finite, got NaN or infinite ones"),
    "infinity": (lambda z: z.abs() / 0, "logits must be finite"),
    "probabilities": (lambda z: z.softmax(-1), "must return logits, these are probabilities: rows that sum to 1"),
    "a gradient of NaN": (lambda z: z + (z - z).sqrt(), "gradient of the classifier's logits by the images must be finite"),
}


@pytest.mark.parametrize(("change", "message"), CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_modules_that_answer_with_something_else_are_refused(batch, change, message):
    classifier, attack = Answering(change), ab.PGD(0.1)
    assert message in refusal(lambda: ab.robust_accuracy(classifier, [batch], attack))
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [batch], attack, source=classifier))
    assert message in refusal(lambda: ab.robust_accuracy(classifier, [batch], attack, source=Answering()))
    assert message in refusal(lambda: ab.worst_case_accuracy(classifier, [(batch[0][:2], batch[1][:2])], {}))


@pytest.mark.parametrize("change", [
    torch.sigmoid, lambda z: nn.functional.cosine_similarity(z.exp()[:, None], torch.arange(1, 20.0)[None, :, None], dim=2)],
    ids=["a sigmoid", "cosines"])
def test_logits_that_may_be_a_sigmoid_s_are_only_noted(batch, change):
    classifier = Answering(lambda z: change(torch.cat(6 * [z], 1)))
    for judge in (lambda: inputs.check_classifier(classifier, batch[0]), lambda: ab.robust_accuracy(classifier, [batch])):
        with pytest.warns(Note, match="all lie between 0 and 1, as after a sigmoid"):
            judge()


def test_a_sigmoid_of_three_classes_is_noted_from_eleven_images_on(batch):
    x, y = (torch.cat(4 * [part]) for part in batch)
    with pytest.warns(Note, match="as after a sigmoid"):
        ab.worst_case_accuracy(Answering(torch.sigmoid), [(x, y)], {})


def test_what_is_no_module_is_refused(batch):
    message = "the classifier must be an nn.Module, got a function"
    assert message in refusal(lambda: ab.robust_accuracy(lambda x: x.flatten(1), [batch]))


def test_predictions_say_where_an_answer_is_none(batch):
    assert "must return one tensor of logits" in refusal(lambda: ab.predict(Answering(lambda z: (z,)), batch[0]))
    lost = Answering(lambda z: z.index_fill(0, torch.tensor([1, 3]), torch.nan))
    assert "NaN or infinite ones for 2 of 4 images" in refusal(lambda: ab.predict(lost, batch[0]))


def test_logits_that_become_nan_in_a_later_batch_do_not_count_as_a_class(batch):
    calls = []

    def nan_in_the_end(logits):
        calls.append(1)
        return logits if len(calls) < 4 else logits * torch.nan

    assert "NaN" in refusal(lambda: ab.robust_accuracy(Answering(nan_in_the_end), [batch] * 9, num_samples=1))
    assert len(calls) == 4


@pytest.mark.parametrize("change", [
    lambda z: 1e4 * z, lambda z: z.log_softmax(-1), lambda z: z.half(), lambda z: z.double(), lambda z: z.detach(),
    lambda z: z.round() + z - z.detach(), nn.functional.relu, lambda z: z * 0 + torch.tensor([1.0, 0.0, 0.0]),
    lambda z: z * 0 + torch.tensor([1.5, 0.25, -0.75]),
])
def test_unusual_logits_pass_those_without_a_gradient_where_none_is_taken(batch, change):
    assert inputs.check_classifier(Answering(change), batch[0]) == 3
    assert ab.robust_accuracy(Answering(change), [batch], lambda c, x, y: x)["num_examples"] == 4


def test_predictions_of_half_precision_logits_are_averaged_in_single_precision(batch):
    assert ab.predict(Answering(lambda z: z.half()), batch[0]).dtype == torch.float32


def test_the_check_leaves_everything_as_it_was(batch):
    x = batch[0]
    network = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(4, 3)).train()
    network[2].eval()
    classifier = ab.BayesianClassifier(network, init_std=0.1).train()
    for module in (network, classifier):
        modes = [inner.training for inner in module.modules()]
        state = {name: value.clone() for name, value in module.state_dict().items()}
        before, images = torch.get_rng_state(), x.clone()
        assert inputs.check_classifier(module, x) == 3
        assert torch.equal(torch.get_rng_state(), before) and torch.equal(x, images) and not x.requires_grad
        assert [inner.training for inner in module.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_a_module_is_tried_twice_and_on_at_most_sixteen_images(batch):
    classifier = Answering()
    sizes = []
    classifier.register_forward_hook(lambda module, arguments, out: sizes.append(len(out)))
    x, y = (torch.cat(5 * [part]) for part in batch)
    ab.robust_accuracy(classifier, [(x, y), batch], num_samples=1)
    assert sizes == [16, 16, 20, 4]


def test_the_fewer_classes_of_two_modules_bound_the_labels(batch):
    target, source = Answering(), Answering(lambda z: torch.cat([z, z], 1))
    for pair in ((target, source), (source, target)):
        with pytest.raises(InputError, match="between 0 and 2"):
            ab.robust_accuracy(pair[0], [(batch[0], batch[1] + 2)], ab.PGD(0.1), source=pair[1])


ATTACKED = {
    "an array": (lambda x: x.numpy(), "the attack must return a tensor like its images, a tensor (4, 1, 2, 2)"),
    "too few": (lambda x: x[:2], "got a tensor (2, 1, 2, 2)"),
    "doubles": (lambda x: x.double(), "of torch.float64"),
    "out of range": (lambda x: x + 1, "attacked images must lie in [0, 1]"),
    "NaN": (lambda x: x * torch.nan, "attacked images must lie in [0, 1], these reach from nan to nan"),
}


@pytest.mark.parametrize(("change", "message"), ATTACKED.values(), ids=ATTACKED)
def test_attacks_that_return_something_else_are_refused(batch, change, message):
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [batch], lambda c, x, y: change(x)))


def moved(distance, **told):
    """An attack that moves one pixel of the last image so far, in place, to where there is room, and tells what it is told."""
    def attack(classifier, x, y):
        x[-1, 0, 0, 0] += distance if x[-1, 0, 0, 0] < 0.5 else -distance
        y.add_(1)
        return x
    vars(attack).update(told)
    return attack


@pytest.mark.parametrize(("attack", "farthest"), [
    (moved(0.2, epsilon=0.1), "0.1 of the images (linf), its farthest is 0.2 away"),
    (moved(0.3, epsilon=torch.tensor(0)), "0 of the images (linf), its farthest is 0.3 away"),
    (moved(0.2, epsilon=0.1, norm="l2"), "0.1 of the images (l2), its farthest is 0.2 away"),
    (moved(0.2, epsilon=torch.nan), "nan of the images (linf), its farthest is 0.2 away"),
])
def test_an_attack_that_leaves_the_ball_that_it_names_is_refused_though_it_works_in_place(batch, attack, farthest):
    message, (x, y) = f"the attack must stay within its epsilon {farthest}", (part.clone() for part in batch)
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [batch], attack))
    assert message in refusal(lambda: ab.worst_case_accuracy(Answering(), [batch], {"own": attack}, num_samples=1))
    assert message in refusal(lambda: uncertainty.scores(Answering(), [batch], attack, num_samples=2))
    assert torch.equal(batch[0], x) and torch.equal(batch[1], y)


@pytest.mark.parametrize("attack", [
    moved(0.2), moved(0.2, epsilon=None), moved(0.2, epsilon=0.2), moved(0.2, epsilon=float("inf"), norm="l2"),
    moved(0.2, epsilon=0.1, norm="l0"), ab.PGD(0.3, norm="l2", num_steps=3), ab.PGD(0.3, num_steps=3, random_start=True),
    ab.APGD(0.3, 4, norm="l2"), ab.CarliniWagner(0.4, num_steps=5), ab.Square(0.3, 5)])
def test_attacks_that_keep_to_their_ball_or_name_none_pass(batch, attack):
    assert ab.robust_accuracy(Answering(), [batch], attack)["num_examples"] == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_rounding_of_any_precision_does_not_leave_the_ball(dtype, norm):
    x = torch.rand(20, 1, 8, 8).to(dtype)
    attack = ab.PGD(0.3, num_steps=3, norm=norm)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to(dtype)
    assert inputs.check_attacked(attack(network, x, torch.zeros(20, dtype=torch.int64)), x, attack) is None
    with pytest.raises(InputError, match="stay within its epsilon"):
        inputs.check_attacked((x + 0.5).clamp(0, 1), x, SimpleNamespace(epsilon=0.3, norm=norm))
