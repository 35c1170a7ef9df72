"""Tests of batch_norm in one process: batches by the mean network's statistics. See test_distributed for several."""
import copy

import pytest
import torch
from torch import nn

import pyro_advbnn as ab

DTYPE = torch.float64


class Twice(nn.Module):
    """A norm that is called twice, and one that has no running statistics."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.still = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.still(self.linear(self.norm(self.linear(x)))))


class LeftOut(nn.Module):
    """A norm that every second call leaves out, as stochastic depth may."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=1.0), 0

    def forward(self, x):
        self.calls += 1
        return self.second(3 * self.first(x) if self.calls % 2 else x)


def conv(norm):
    return nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


NETWORKS = {"affine": (conv(nn.BatchNorm2d(3)), (12, 2, 4, 4)), "plain": (conv(nn.BatchNorm2d(3, affine=False)), (12, 2, 4, 4)),
            "first": (nn.Sequential(nn.BatchNorm2d(2), conv(nn.BatchNorm2d(3))), (12, 2, 4, 4)),
            "cumulative": (conv(nn.BatchNorm2d(3, momentum=None)), (12, 2, 4, 4)), "twice": (Twice(), (12, 3))}


def bayesian(network, init_std, **settings):
    torch.manual_seed(0)
    return ab.BayesianClassifier(copy.deepcopy(network).to(DTYPE).train(), 1.0, init_std, **settings)


def images(shape):
    return 3 * torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(1)) + 2


@pytest.mark.parametrize(("network", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_a_certain_posterior_trains_as_the_plain_network_does_gradients_and_running_statistics_included(network, shape):
    x, classifier, plain = images(shape), bayesian(network, 1e-8), copy.deepcopy(network).to(DTYPE)
    for _ in range(2):
        logits, expected = classifier(x), plain(x)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    target = torch.randn(logits.shape, dtype=DTYPE)
    (logits * target).sum().backward()
    (expected * target).sum().backward()
    expected = torch.cat([p.grad.view(-1) for p in plain.parameters()])
    torch.testing.assert_close(classifier.mean.grad, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(classifier.network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "cumulative"])     # of the running statistics alone
def test_the_gradient_goes_through_the_statistics_of_the_mean_network(name):
    network, shape = NETWORKS[name]
    classifier, x = bayesian(network, 0.3), images(shape)
    before = copy.deepcopy(classifier.state_dict())

    def loss(mean, log_std):
        torch.manual_seed(2)
        classifier.load_state_dict(before)
        eps = torch.randn(len(mean), dtype=DTYPE)
        classifier.mean, kept = mean, classifier._parameters.pop("mean")
        try:
            return classifier._logits(classifier._by_name(mean + log_std.exp() * eps), x).square().mean()
        finally:
            del classifier.mean
            classifier.mean = kept

    assert torch.autograd.gradcheck(loss, [p.detach().clone().requires_grad_() for p in (classifier.mean, classifier.log_std)])


class Named(nn.BatchNorm2d):
    """A subclass that normalises as torch's own does."""


class Added(nn.BatchNorm2d):
    def forward(self, h):
        return h + 1


@pytest.mark.parametrize(("num_images", "norm"), [
    (12, nn.BatchNorm2d), (129, nn.BatchNorm2d), (300, nn.BatchNorm2d), (12, Named)])
def test_training_and_prediction_are_one_function_of_a_draw_and_by_the_statistics_of_the_draw_they_are_two(num_images, norm):
    x = images((num_images, 2, 4, 4))
    for batch_statistics in ("mean", "draw"):
        classifier = bayesian(conv(norm(3, momentum=1.0)), 0.5, batch_statistics=batch_statistics)
        answers = []
        for seed, mode in ((3, True), (4, False), (4, True)):        # prediction has the statistics of the last batch, a draw's
            torch.manual_seed(seed)
            answers.append(classifier.train(mode)(x).detach())
        apart = (answers[2] - answers[1]).abs().max() / answers[2].abs().max()
        assert apart < 0.02 if batch_statistics == "mean" else apart > 0.1       # the running variance is unbiased


def test_an_eighth_of_a_batch_and_no_fewer_than_64_images_moves_the_running_statistics():
    for num_images, stride in ((127, 1), (128, 2), (300, 4), (700, 8)):
        x, classifier = images((num_images, 2, 4, 4)), bayesian(conv(nn.BatchNorm2d(3, momentum=1.0)), 0.5)
        with torch.no_grad():
            classifier(x)
            seen = classifier.mean_network()[0](x[::stride])
        norm = classifier.network[1]
        torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)))


def test_a_norm_that_the_user_keeps_still_or_has_given_a_forward_stays_as_it_is():
    classifier, x = bayesian(conv(nn.BatchNorm2d(3)), 0.5), images((12, 2, 4, 4))
    classifier.network[1].eval()
    before = copy.deepcopy(classifier.network[1].state_dict())
    classifier(x)
    assert all(map(torch.equal, before.values(), classifier.network[1].state_dict().values()))
    own = conv(nn.BatchNorm2d(3))
    own[1].forward = lambda h: h + 1
    for network in (own, conv(Added(3))):
        classifier = bayesian(network, 0.5)
        classifier(x)
        assert classifier.network[1].num_batches_tracked == 0


def test_where_a_draw_leaves_out_a_norm_the_next_has_its_own_statistics():
    x, classifier = images((12, 3)), bayesian(LeftOut(), 1e-8)
    norm = classifier.network.second
    found = classifier(x)
    assert classifier.network.calls == 2 and norm.running_mean.abs().max() < 1e-6        # of the call that had both
    torch.testing.assert_close(found, (x - norm.running_mean) / (norm.running_var * 11 / 12 + norm.eps).sqrt(),
                               rtol=1e-5, atol=1e-5)


def test_unknown_statistics_are_refused():
    with pytest.raises(ab.InputError, match="batch_statistics must be one of mean, draw, got 'batch'"):
        bayesian(conv(nn.BatchNorm2d(3)), 0.1, batch_statistics="batch")


def test_a_gradient_by_the_images_may_be_differentiated_again():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 2)).to(DTYPE)
    classifier, answers = ab.BayesianClassifier(network.train(), 1.0, 1e-8), []
    for called, trained in ((classifier, [classifier.mean]), (network, network.parameters())):
        x = images((12, 2, 4, 4)).requires_grad_()
        slope, = torch.autograd.grad(called(x).logsumexp(1).sum(), x, create_graph=True)
        slope.square().sum().backward()
        answers.append((x.grad, torch.cat([p.grad.view(-1) for p in trained])))
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("affine", [True, False])
def test_statistics_of_bfloat16_activations_are_in_float32(affine):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine, momentum=1.0), nn.Flatten(), nn.Linear(144, 2))
    classifier, x = ab.BayesianClassifier(network.train(), 1.0, 1e-8), torch.rand(16, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        classifier(x)
        activations = network[0](x).float()
    torch.testing.assert_close(classifier.network[1].running_mean, activations.mean([0, 2, 3]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(classifier.network[1].running_var, activations.var([0, 2, 3]), rtol=1e-4, atol=1e-6)


def test_a_channel_that_is_the_same_everywhere_has_no_negative_variance():
    for eps in (0.03, 1e-5, 2e-6):
        network = nn.Sequential(nn.BatchNorm2d(1, eps=eps, momentum=1.0), nn.Flatten(), nn.Linear(16, 2)).train()
        classifier = ab.BayesianClassifier(network, 1.0, 0.01)
        classifier(torch.full((12, 1, 4, 4), 0.5))
        assert classifier.network[0].running_var.item() == pytest.approx(0, abs=1e-6) and classifier.network[0].running_var >= 0


def test_one_value_per_channel_is_refused_before_a_statistic_moves():
    norm = nn.BatchNorm1d(4)
    classifier = ab.BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), norm)).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        classifier(torch.rand(1, 1, 4, 4))
    assert classifier.network[2].num_batches_tracked == 0
