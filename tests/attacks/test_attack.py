"""Tests of what all attacks share, and a training step with them: what images and labels may be, and a target."""
import copy
from functools import partial

import pyro.distributions as dist
import pytest
import torch

import pyro_advbnn as ab
from pyro_advbnn.evaluation.accuracy import count_correct
from pyro_advbnn.training.algorithm1 import step


def trained(attack, take=ab.train_step):
    """A training step as a call of the same kind; what comes back is the gradient of the weights."""
    def call(classifier, x, y):
        take(classifier, torch.optim.SGD(classifier.parameters(), 0.0), x, y, kl_weight=0.0, attack=attack)
        return next(classifier.parameters()).grad
    return call


ATTACKS = {
    "pgd": lambda classifier, x, y: ab.pgd(classifier, x, y, epsilon=0.1, step_size=0.05, num_steps=2),
    "fgsm": lambda classifier, x, y: ab.fgsm(classifier, x, y, epsilon=0.1), "PGD": ab.PGD(0.1, num_steps=2, restarts=2),
    "APGD": ab.APGD(0.1, num_steps=2), "Square": ab.Square(0.1, num_queries=2), "RandomNoise": ab.RandomNoise(0.1, num_tries=2),
    "CarliniWagner": ab.CarliniWagner(0.5, num_steps=2), "Through": ab.Through(ab.PGD(0.1, num_steps=2), "mean"),
}
OF_ONE_NUMBER = {"the mean": torch.nn.functional.cross_entropy, "a column": lambda logits, y: logits.gather(1, y[:, None])}
DOORS = ATTACKS | {"train_step": trained(None), "adversarial train_step": trained(ab.PGD(0.1, num_steps=2))}
UNFIT = {
    "normalised": (lambda x, y: ((x - 0.5) / 0.25, y), "images must lie in [0, 1], these reach from -2 to 2; normalisation is"),
    "to 255": (lambda x, y: (255 * x, y), "images must lie in [0, 1], these reach from 0 to 255"),
    "NaN": (lambda x, y: (x * torch.nan, y), "images must lie in [0, 1], these reach from nan"),
    "one image": (lambda x, y: (x[0], y[0]), "images must be a tensor (B, C, H, W) of floats in [0, 1], at least one image"),
    "arrays": (lambda x, y: (x.numpy(), y.numpy()), "got a ndarray"),
    "labels from 1": (lambda x, y: (x, y.clamp(min=9) + 1), "labels must lie between 0 and 9, as there are 10 classes, these"),
    "one-hot": (lambda x, y: (x, torch.eye(10)[y]), "labels must be a tensor (B,) of class numbers, integers, one for each"),
    "apart": (lambda x, y: (x, y.to("meta")), "one for each of 6 images on cpu, got a tensor (6,) of torch.int64 on meta"),
}


@pytest.fixture
def classifier():
    return ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.01)


@pytest.mark.parametrize(("door", "fault"), [*((door, "labels from 1") for door in DOORS), *(("PGD", name) for name in UNFIT)])
def test_every_attack_and_a_training_step_refuse_images_and_labels_that_are_not_fit(classifier, batch, door, fault):
    change, message = UNFIT[fault]
    with pytest.raises(ab.InputError) as refused:
        DOORS[door](classifier, *change(*batch))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not classifier._forward_hooks and not classifier.network._forward_hooks


@pytest.mark.parametrize("defense", ["adv", "advbnn"])
@pytest.mark.parametrize("name", DOORS)
def test_labels_of_int32_and_inference_mode_change_nothing(batch, name, defense):
    (x, y), classifier = batch, ab.build_classifier(defense, ab.networks.convnet(width=4), init_std=0.01)
    first, second, third = (copy.deepcopy(classifier) for _ in range(3))

    def found(*arguments):
        torch.manual_seed(1)
        return DOORS[name](*arguments)

    expected = found(first, x, y)
    assert torch.equal(found(second, x, y.int()), expected)
    if name in ATTACKS:
        with torch.inference_mode():
            assert torch.equal(found(third, x + 0, y + 0), expected)


@pytest.mark.filterwarnings("ignore:.torch.jit")          # torch has newer ones
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda network: torch.jit.trace(network, torch.rand(2, 1, 8, 8))])
def test_networks_of_torch_script_are_attacked_too(batch, compiled):
    network = compiled(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10)))
    for name in ATTACKS.keys() - {"Through"}:            # a surrogate needs a classifier
        moved = (ATTACKS[name](network, *batch) - batch[0]).abs().max()
        assert moved < 0.51 and (moved > 0 or name == "CarliniWagner"), name       # which leaves what is wrong as it is


def test_a_training_step_on_another_likelihood_than_that_of_classes_takes_any_numbers():
    classifier = ab.BayesianClassifier(torch.nn.Linear(3, 1), likelihood=lambda mean: dist.Normal(mean[:, 0], 0.1))
    before = classifier.mean.detach().clone()
    x, y, optimizer = 9 * torch.randn(5, 3), torch.randn(5), torch.optim.SGD(classifier.parameters(), 0.1)
    ab.train_step(classifier, optimizer, x, y, kl_weight=0.1)
    assert not torch.equal(classifier.mean, before)


@pytest.mark.parametrize(("door", "looks"), [
    *((door, 2) for door in DOORS.values()), (lambda classifier, x, y: ab.predict(classifier, x), 1),
    (trained(ab.PGD(0.1, num_steps=2), take=step), 0), (lambda classifier, x, y: count_correct(classifier, [(x, y)]), 0)])
def test_images_and_labels_are_looked_at_once_and_by_the_training_of_the_command_never(
        classifier, batch, door, looks, operations):
    with operations:
        door(classifier, *batch)
    assert operations.count["aminmax"] == looks


TARGETED = {"PGD": ab.PGD(0.3, num_steps=10), "probability": ab.PGD(0.3, num_steps=10, average="probability", restarts=2),
            "APGD": ab.APGD(0.3, num_steps=10), "dlr": ab.PGD(0.3, num_steps=10, loss="dlr"),
            "margin": ab.APGD(0.3, num_steps=10, loss="margin", norm="linf"),
            "Through": ab.Through(ab.PGD(0.3, num_steps=10), "self")}


@pytest.mark.parametrize("attack", TARGETED.values(), ids=TARGETED)
def test_a_targeted_attack_leads_to_its_target_more_often_than_one_without(trained_on_digits, attack):
    network, x, y = trained_on_digits(60)
    x, y = x[:60], y[:60]
    target = (y + 5) % 10
    led, driven = ((network(x_adv).argmax(1) == target).sum() for x_adv in (
        attack(network, x, y, target=target), attack(network, x, y)))
    assert led > driven + 10


def test_pgd_with_a_target_takes_the_step_that_makes_it_likelier(batch):
    x, y = batch
    network, target = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), (y + 1) % 10
    x_adv = ab.pgd(network, x, y, epsilon=0.1, step_size=0.1, num_steps=1, target=target)
    x.requires_grad_()
    gradient, = torch.autograd.grad(torch.nn.functional.cross_entropy(network(x), target, reduction="sum"), x)
    assert torch.equal(x_adv, (x - 0.1 * gradient.sign()).clamp(0, 1).detach())


@pytest.mark.parametrize(("attack", "shift", "message"), [
    (ab.CarliniWagner(0.5), 0, "CarliniWagner takes no target"), (ab.PGD(0.1), 10, "target must lie between 0 and 9"),
    (ab.Through(ab.APGD(0.1), "self"), 0.5, r"target must be a tensor \(B,\) of class numbers")])
def test_a_target_that_is_not_fit_is_refused_by_its_name(batch, attack, shift, message):
    with pytest.raises(ab.InputError, match=message):
        attack(ab.networks.convnet(width=4), *batch, target=batch[1] + shift)


def test_an_attack_of_ones_own_meets_the_network_of_predictions_in_a_training_step_too(batch):
    """Without dropout or the batch's statistics, and it moves none."""
    network, seen = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(),
                                        torch.nn.Linear(72, 10)), []

    def by_hand(classifier, x, y):
        seen.append(classifier.training)
        x = x.clone().requires_grad_()
        gradient, = torch.autograd.grad(torch.nn.functional.cross_entropy(classifier(x), y), x)
        return (x + 0.1 * gradient.sign()).clamp(0, 1).detach()

    classifier = ab.Classifier(network).train()
    for take in (ab.train_step, partial(ab.train_step, micro_batch=100)):
        trained(by_hand, take)(classifier, *batch)
    assert seen == [False, False] and classifier.network.training and network[1].num_batches_tracked == 2


def test_pieces_of_no_images_are_refused(classifier, batch):
    with pytest.raises(ab.InputError, match="micro_batch must be at least 1, got 0"):
        trained(None, partial(ab.train_step, micro_batch=0))(classifier, *batch)


@pytest.mark.parametrize("shape", OF_ONE_NUMBER)
@pytest.mark.parametrize("attack", [ab.PGD, ab.APGD, ab.Square])
@pytest.mark.parametrize("average", ["gradient", "probability"])
def test_a_loss_that_gives_no_number_for_each_image_is_refused(attack, average, shape):
    more = {} if attack is ab.Square else {"average": average}
    with pytest.raises(ab.InputError, match="the loss must give one number for each of 6 images, got a tensor of shape"):
        attack(0.1, 2, loss=OF_ONE_NUMBER[shape], **more)(ab.networks.convnet(width=4), torch.rand(6, 1, 8, 8), torch.arange(6))
