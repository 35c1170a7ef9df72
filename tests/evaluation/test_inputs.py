"""Tests of inputs: what a stranger's images, labels and modules may be, and the one line that says where they are wrong."""
import re
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.evaluation import inputs, uncertainty
from pyro_advbnn.system.errors import InputError

Outputs = namedtuple("Outputs", "logits auxiliary")


class Answering(nn.Module):
    """Linear logits (B, 3) of images (B, 1, 2, 2), changed by a function."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.linear, self.change, self.calls = nn.Linear(4, 3), change, 0

    def forward(self, x):
        self.calls += 1
        return self.change(self.linear(x.flatten(1)))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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
    "a list": (lambda x: x.tolist(), "images must be a torch tensor (B, C, H, W), got a list"),
    "an array": (lambda x: x.numpy(), "got a ndarray"),
    "bytes": (lambda x: (255 * x).byte(), "floating point numbers in [0, 1], got torch.uint8; divide bytes by 255"),
    "one image": (lambda x: x[0], "images must be (B, C, H, W), at least one, got a tensor (1, 2, 2)"),
    "no image": (lambda x: x[:0], "images must be (B, C, H, W), at least one, got a tensor (0, 1, 2, 2)"),
    "to 255": (lambda x: x / x.max() * 255, "images must lie in [0, 1], these reach from"),
    "normalised": (lambda x: (x - 0.5) / 0.25, "images must lie in [0, 1]"),
    "NaN": (lambda x: x.index_fill(0, torch.tensor([2]), torch.nan), "images must lie in [0, 1], these reach from nan to nan"),
}


@pytest.mark.parametrize(("change", "message"), IMAGES.values(), ids=IMAGES)
def test_images_that_are_none_are_refused(batch, change, message):
    x = change(batch[0])
    assert message in refusal(lambda: inputs.check_images(x))
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [(x, batch[1])]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_up_to_the_borders_of_their_range_pass_in_every_precision(dtype):
    assert inputs.check_images(torch.tensor([0.0, 1.0, 0.5, 1.0], dtype=dtype).view(1, 1, 2, 2)) is None


LABELS = {
    "a list": (lambda y: y.tolist(), "labels must be a torch tensor (B,), got a list"),
    "one-hot": (lambda y: nn.functional.one_hot(y), "labels must be class numbers (B,) of torch.int64"),
    "a column": (lambda y: y[:, None], "at least one, got a tensor (4, 1)"),
    "int32": (lambda y: y.int(), "got a tensor (4,), torch.int32"),
    "floats": (lambda y: y.float(), "torch.float32"),
    "none": (lambda y: y[:0], "got a tensor (0,)"),
    "from 1": (lambda y: y + 1, "labels must lie between 0 and 2, as there are 3 classes, these reach from 1 to 3"),
    "unknown as -1": (lambda y: y - 1, "these reach from -1 to 1"),
    "too few": (lambda y: y[:3], "one label for each image, got 4 images and 3 labels"),
}


@pytest.mark.parametrize(("change", "message"), LABELS.values(), ids=LABELS)
def test_labels_that_do_not_fit_are_refused_before_the_attack(batch, change, message):
    x, y = batch[0], change(batch[1])
    assert message in refusal(lambda: inputs.check_labels(y, 3, x))
    attack = ab.PGD(0.1)
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [(x, y)], attack))
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [batch, (x, y)]))


def test_labels_on_another_device_than_the_images_are_refused(batch):
    with pytest.raises(InputError, match="on one device, got meta and cpu"):
        inputs.check_labels(batch[1], 3, batch[0].to("meta"))


CLASSIFIERS = {
    "a tuple": (lambda z: (z, z), "must return one tensor of logits (B, classes), here (2, 2 or more), got a tuple"),
    "a named tuple": (lambda z: Outputs(z, z), "got a Outputs; wrap it in a module that does"),
    "a dict": (lambda z: {"logits": z}, "got a dict"),
    "nothing": (lambda z: None, "got a NoneType"),
    "class numbers": (lambda z: z.argmax(-1), "must return one tensor of logits"),
    "one score each": (lambda z: z[:, 0], "here (2, 2 or more), got a tensor (2,)"),
    "one class": (lambda z: z[:, :1], "got a tensor (2, 1)"),
    "a map": (lambda z: z[:, :, None, None], "got a tensor (2, 3, 1, 1)"),
    "one row for all": (lambda z: z.mean(0, keepdim=True), "here (2, 2 or more), got a tensor (1, 3)"),
    "NaN": (lambda z: z / 0 * 0, "logits must be finite, got NaN or infinite ones"),
    "infinity": (lambda z: z.abs() / 0, "logits must be finite"),
    "probabilities": (lambda z: z.softmax(-1), "must return logits, these are probabilities: rows that sum to 1"),
    "a failure": (lambda z: z @ z, "fails on images (2, 1, 2, 2), torch.float32, cpu: RuntimeError: mat1 and mat2"),
}


@pytest.mark.parametrize(("change", "message"), CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_modules_that_answer_with_something_else_are_refused(batch, change, message):
    classifier = Answering(change)
    assert message in refusal(lambda: inputs.check_classifier(classifier, batch[0][:2]))
    for attack in (None, ab.PGD(0.1)):
        assert message in refusal(lambda attack=attack: ab.robust_accuracy(classifier, [batch], attack))
        assert message in refusal(lambda attack=attack: ab.robust_accuracy(Answering(), [batch], attack, source=classifier))
        assert message in refusal(lambda attack=attack: ab.robust_accuracy(classifier, [batch], attack, source=Answering()))


def test_what_is_no_module_is_refused(batch):
    message = "the classifier must be an nn.Module, got a function"
    assert message in refusal(lambda: inputs.check_classifier(lambda x: x.flatten(1), batch[0]))
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


GRADIENTS = {
    "detached": (lambda z: z.detach(), "have no gradient by the images"),
    "rounded in numpy": (lambda z: torch.from_numpy(z.detach().numpy()), "have no gradient by the images"),
    "NaN": (lambda z: z + (z - z).sqrt(), "gradient of the classifier's logits by the images must be finite"),
}


@pytest.mark.parametrize(("change", "message"), GRADIENTS.values(), ids=GRADIENTS)
def test_a_gradient_that_is_none_is_refused_where_the_attack_needs_one(batch, change, message):
    classifier = Answering(change)
    assert message in refusal(lambda: inputs.check_classifier(classifier, batch[0]))
    assert message in refusal(lambda: ab.robust_accuracy(classifier, [batch], ab.PGD(0.1)))
    assert inputs.check_classifier(classifier, batch[0], gradient=False) == 3
    rows = [ab.robust_accuracy(classifier, [batch]),
            ab.robust_accuracy(classifier, [batch], lambda c, x, y: x),
            ab.robust_accuracy(classifier, [batch], ab.PGD(0.1), source=Answering())]
    assert [row["num_examples"] for row in rows] == [4, 4, 4]


@pytest.mark.parametrize("change", [lambda z: 1e4 * z, lambda z: z.log_softmax(-1), lambda z: z.half(), lambda z: z.double(),
                                    lambda z: z.round() + z - z.detach(), nn.functional.relu])
def test_unusual_logits_pass(batch, change):
    assert inputs.check_classifier(Answering(change), batch[0]) == 3


def test_outputs_of_a_sigmoid_are_refused_unless_they_are_too_few_to_tell(batch):
    x = torch.rand(6, 1, 2, 2)
    message = refusal(lambda: inputs.check_classifier(Answering(torch.sigmoid), x))
    assert "must return logits, these all lie between 0 and 1, as after a sigmoid: leave it out" in message
    saturated = Answering(lambda z: torch.sigmoid(z * 0 + torch.tensor([50.0, 0.1, -5.0])))
    assert "as after a sigmoid" in refusal(lambda: inputs.check_classifier(saturated, x))
    for passes in (lambda z: torch.sigmoid(z) - 1, lambda z: 0.01 * z.relu() / z.abs().max(), lambda z: z * 0 + 1.0):
        assert inputs.check_classifier(Answering(passes), x) == 3
    assert inputs.check_classifier(Answering(torch.sigmoid), batch[0]) == 3


def test_sigmoid_outputs_of_ten_classes_are_refused_by_the_two_images_that_a_module_is_tried_on():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid())
    batches = [(torch.rand(4, 1, 8, 8), torch.arange(4))]
    assert "as after a sigmoid" in refusal(lambda: ab.robust_accuracy(network, batches))
    assert "as after a sigmoid" in refusal(lambda: ab.worst_case_accuracy(network, batches, {"pgd": ab.PGD(0.1)}))


def test_images_made_in_inference_mode_pass(batch):
    with torch.inference_mode():
        x, y = batch[0].clone(), batch[1]
    assert inputs.check_classifier(Answering(), x) == 3
    assert ab.robust_accuracy(Answering(), [(x, y)], ab.PGD(0.1))["num_examples"] == 4


def test_one_hot_and_negative_logits_are_not_taken_for_probabilities(batch):
    for logits in ([1.0, 0.0, 0.0], [1.5, 0.25, -0.75]):
        assert inputs.check_classifier(Answering(lambda z, logits=logits: z * 0 + torch.tensor(logits)), batch[0]) == 3


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


def test_a_random_classifiers_row_is_what_it_was_without_the_check(batch, monkeypatch):
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), init_std=1.0)

    def seen():
        torch.manual_seed(5)
        attacked = []
        ab.robust_accuracy(classifier, [batch], lambda c, x, y: (attacked.append(ab.pgd(
            c, x, y, epsilon=0.3, step_size=0.1, num_steps=3)), attacked[0])[1], num_samples=2)
        return attacked[0], torch.rand(3)

    checked = seen()
    monkeypatch.setattr("pyro_advbnn.evaluation.accuracy.check_classifier", lambda *_, **__: 3)
    assert all(map(torch.equal, checked, seen()))


def test_a_module_is_tried_once_and_on_two_images(batch):
    classifier = Answering()
    sizes = []
    classifier.register_forward_hook(lambda module, arguments, out: sizes.append(len(out)))
    ab.robust_accuracy(classifier, [batch, batch], num_samples=1)
    assert sizes == [2, 4, 4]


def test_the_fewer_classes_of_two_modules_bound_the_labels(batch):
    target, source = Answering(), Answering(lambda z: torch.cat([z, z], 1))
    for pair in ((target, source), (source, target)):
        with pytest.raises(InputError, match="between 0 and 2"):
            ab.robust_accuracy(pair[0], [(batch[0], batch[1] + 2)], ab.PGD(0.1), source=pair[1])


ATTACKED = {
    "an array": (lambda x: x.numpy(), "the attack must return a tensor like its images, a tensor (4, 1, 2, 2)"),
    "the labels too": (lambda x: (x, x), "got a tuple"),
    "too few": (lambda x: x[:2], "got a tensor (2, 1, 2, 2)"),
    "doubles": (lambda x: x.double(), "torch.float64"),
    "out of range": (lambda x: x + 1, "attacked images must lie in [0, 1]"),
    "NaN": (lambda x: x * torch.nan, "attacked images must lie in [0, 1], these reach from nan to nan"),
}


@pytest.mark.parametrize(("change", "message"), ATTACKED.values(), ids=ATTACKED)
def test_attacks_that_return_something_else_are_refused(batch, change, message):
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [batch], lambda c, x, y: change(x)))


def moved(distance, **told):
    """An attack that moves one pixel of the last image so far, to where there is room, and tells what it is told to."""
    def attack(classifier, x, y):
        x_adv = x.clone()
        x_adv[-1, 0, 0, 0] += distance if x[-1, 0, 0, 0] < 0.5 else -distance
        return x_adv
    vars(attack).update(told)
    return attack


@pytest.mark.parametrize(("attack", "farthest"), [
    (moved(0.2, epsilon=0.1), "0.1 of the images (linf), its farthest is 0.2 away"),
    (moved(0.3, epsilon=0), "0 of the images (linf), its farthest is 0.3 away"),
    (moved(0.2, epsilon=0.1, norm="l2"), "0.1 of the images (l2), its farthest is 0.2 away"),
])
def test_an_attack_that_leaves_the_ball_that_it_names_is_refused(batch, attack, farthest):
    message = f"the attack must stay within its epsilon {farthest}"
    assert message in refusal(lambda: ab.robust_accuracy(Answering(), [batch], attack))
    assert message in refusal(lambda: ab.worst_case_accuracy(Answering(), [batch], {"own": attack}))
    assert message in refusal(lambda: uncertainty.scores(Answering(), [batch], attack, num_samples=2))


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


def test_one_batch_in_place_of_several_is_refused(batch):
    message = refusal(lambda: ab.robust_accuracy(Answering(), batch))
    assert re.fullmatch(r"batches must be several pairs .* got a tensor \(4, 1, 2, 2\) for a pair", message)


def test_memory_that_runs_out_is_told_as_what_it_is(batch):
    def exhausted(logits):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        inputs.check_classifier(Answering(exhausted), batch[0])


@pytest.mark.parametrize("epsilon", [np.float32(0.2), torch.tensor(0.2), "0.2", 0, 0.2])
@pytest.mark.parametrize("norm", ["linf", "Linf", "inf", float("inf"), "l2", "L2", 2])
def test_an_epsilon_of_any_kind_of_number_binds_its_attack(epsilon, norm):
    x = torch.full((2, 1, 2, 2), 0.1)
    with pytest.raises(InputError, match="stay within its epsilon"):
        inputs.check_attacked(1 - x, x, SimpleNamespace(epsilon=epsilon, norm=norm))


@pytest.mark.parametrize(("more", "says"), [
    ({"epsilon": float("nan")}, "number >= 0"), ({"epsilon": "x"}, "number >= 0"), ({"epsilon": -1}, "number >= 0")])
def test_an_epsilon_that_binds_nothing_is_refused(more, says):
    x = torch.full((2, 1, 2, 2), 0.1)
    with pytest.raises(InputError, match=says):
        inputs.check_attacked(x, x, SimpleNamespace(**more))


def test_an_attack_that_works_in_place_changes_nobodys_images_and_labels():
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    images, labels = x.clone(), y.clone()

    def attack(classifier, x, y):
        y.add_(1)
        return x.copy_(1 - x)

    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.tensor([1.0, 0.0])      # right about every clean image
    attack.epsilon = 0.01
    for measure in (ab.robust_accuracy, ab.worst_case_accuracy):
        with pytest.raises(InputError, match="stay within its epsilon"):
            measure(network, [(x, y)], attack if measure is ab.robust_accuracy else {"own": attack}, num_samples=1)
    assert torch.equal(x, images) and torch.equal(y, labels)
