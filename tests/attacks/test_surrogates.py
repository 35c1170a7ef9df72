import copy
import pickle

import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.attacks.surrogates import Pool, Through, surrogate
from pyro_advbnn.evaluation.accuracy import attack_fields
from pyro_advbnn.evaluation.inputs import check_attacked

ATTACK = ab.PGD(0.1, 0.03, 5)


@pytest.fixture
def batch():
    return torch.rand(6, 1, 8, 8), torch.randint(10, (6,))


@pytest.fixture(params=["deterministic", "bayesian", "noisy"])
def classifier(request):
    defense = {"deterministic": "adv", "bayesian": "advbnn", "noisy": "rse"}[request.param]
    return ab.build_classifier(defense, ab.networks.convnet(width=4), init_std=0.2)


@pytest.fixture
def bayesian():
    return ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.2)


class Half(nn.Module):
    """Answers with given logits in half precision, whatever the images."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float16))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_a_pool_of_a_mixture_has_each_component_wherever_its_calls_stopped(batch):
    mixture = ab.Mixture([ab.build_classifier("adv", ab.networks.convnet(width=4)) for _ in range(3)]).eval()
    answers = {component(batch[0]).sum().item() for component in mixture.classifiers}
    for _ in range(3):
        mixture(batch[0])                                # a prediction that stops in between
        assert {draw(batch[0]).sum().item() for draw in surrogate(mixture, "pool:3").networks} == answers


def test_the_source_self_is_the_classifier(classifier):
    assert surrogate(classifier, "self") is classifier


def test_the_source_mean_is_attacked_like_the_mean_network(classifier, batch):
    torch.manual_seed(1)
    x_adv = Through(ATTACK, "mean")(classifier.train(), *batch)
    assert not torch.equal(x_adv, batch[0]) and classifier.training
    torch.manual_seed(1)                                 # the noise of a noisy one stays in its mean network
    assert torch.equal(x_adv, ATTACK(classifier.mean_network().eval(), *batch))


def test_the_mean_network_of_a_bayesian_classifier_has_the_posteriors_means(bayesian, batch):
    network = surrogate(bayesian, "mean")
    for name, q in bayesian.posterior().items():
        assert torch.equal(network.get_parameter(name), q.mean)
    assert torch.equal(network(batch[0]), bayesian.mean_network().eval()(batch[0]))


def test_a_pool_answers_alike_in_every_call(classifier, batch):
    pool = surrogate(classifier, "pool:3")
    first, state = pool(batch[0]), torch.get_rng_state()
    assert torch.equal(pool(batch[0]), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_pools_of_a_random_classifier_differ(bayesian, batch):
    assert not torch.equal(*(surrogate(bayesian, "pool:2")(batch[0]) for _ in range(2)))


def test_a_pool_answers_with_the_log_mean_softmax_of_its_networks(bayesian, batch):
    torch.manual_seed(3)
    pool = surrogate(bayesian, "pool:4")
    torch.manual_seed(3)
    draws = [bayesian.draw().eval() for _ in range(4)]
    expected = torch.stack([network(batch[0]).double().softmax(-1) for network in draws]).mean(0).log()
    torch.testing.assert_close(pool(batch[0]), expected.float())


def test_a_pools_gradient_is_that_of_the_log_mean_softmax(bayesian, batch):
    pool, x = surrogate(bayesian, "pool:3"), batch[0].requires_grad_()
    weights = torch.randn(6, 10)
    got, = torch.autograd.grad((pool(x) * weights).sum(), x)
    mean = torch.stack([network(x).softmax(-1) for network in pool.networks]).mean(0)
    expected, = torch.autograd.grad((mean.log() * weights).sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert got.abs().min(0).values.max() > 0


def test_a_pool_answers_in_float32_also_where_half_precision_would_overflow(batch):
    logits = Pool([Half(6e4, -6e4, 0), Half(-6e4, 6e4, 0)])(batch[0])
    assert logits.dtype == torch.float32 and torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0, :2].exp(), torch.full((2,), 0.5))


def test_a_pool_is_ready_for_an_attack_and_independent_of_its_classifier(bayesian, batch):
    pool = surrogate(bayesian.train(), "pool:2")
    before = pool(batch[0])
    with torch.no_grad():
        bayesian.mean.zero_()
    assert torch.equal(pool(batch[0]), before)
    assert not any(module.training for module in pool.modules()) and bayesian.training
    assert not any(p.requires_grad for p in pool.parameters()) and bayesian.mean.requires_grad


def test_a_pool_keeps_the_activations_of_one_network_at_a_time(batch):
    kept = []

    def saved_elements(size):
        kept.clear()
        pool = surrogate(ab.BayesianClassifier(ab.networks.convnet(width=4)), f"pool:{size}")
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            pool(batch[0].clone().requires_grad_())
        return sum(kept)

    one_network = 6 * 4 * 8 * 8                          # what a single convolution would keep
    assert saved_elements(6) - saved_elements(5) < one_network


def test_networks_that_work_in_place_on_their_input_do_not_disturb_each_other(batch):
    networks = [nn.Sequential(nn.Threshold(t, 0, inplace=True), nn.Flatten(), nn.Linear(64, 10)) for t in (0.8, 0.2)]
    plain = [nn.Sequential(nn.Threshold(t, 0), *network[1:]) for t, network in zip((0.8, 0.2), networks, strict=True)]
    x = batch[0].clone()
    torch.testing.assert_close(Pool(networks)(x), Pool(plain)(x))
    assert torch.equal(x, batch[0])


@pytest.mark.parametrize("source", ["self", "mean", "pool:3"])
def test_an_attack_works_on_every_surrogate_unmodified(classifier, batch, source):
    x, y = batch
    x_adv = Through(ATTACK, source)(classifier, x, y)
    assert (x_adv - x).abs().max() == pytest.approx(0.1, abs=1e-6)
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad


def test_an_attack_on_a_pool_lowers_the_pools_probability_of_the_label(bayesian, batch):
    x, y = batch
    pool = surrogate(bayesian, "pool:5")
    before, after = (pool(images).gather(1, y[:, None]) for images in (x, ATTACK(pool, x, y)))
    assert (after < before).all()


def test_an_attack_through_a_surrogate_tells_its_name_and_the_attacks_settings():
    through = Through(ATTACK, "pool:20")
    assert attack_fields(through) == attack_fields(ATTACK) | {"attack": "pgd on pool:20"}
    assert not hasattr(Through(lambda c, x, y: x, "mean"), "num_steps")
    assert pickle.loads(pickle.dumps(through)) == copy.deepcopy(through) == through


@pytest.mark.parametrize("source", ["", "both", "pool", "pool:", "pool:0", "pool:-1", "pool:1.5", "pool:²", "mean:2", None])
def test_unknown_sources_are_refused(bayesian, source):
    for call in (lambda: surrogate(bayesian, source), lambda: Through(ATTACK, source)):
        with pytest.raises(ab.InputError, match="source must be self, mean or pool:m"):
            call()


@pytest.mark.parametrize(("source", "method"), [("mean", "mean_network"), ("pool:2", "draw")])
def test_a_plain_network_has_no_surrogate_but_itself(source, method):
    network = ab.networks.convnet(width=4)
    assert surrogate(network, "self") is network
    with pytest.raises(ab.InputError, match=rf"source {source} needs a classifier with {method}\(\), which _Network lacks"):
        surrogate(network, source)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("source", ["mean", "pool:3"])
def test_surrogates_live_on_their_classifiers_device(classifier, batch, source):
    x, y = (part.cuda() for part in batch)
    x_adv = Through(ATTACK, source)(classifier.cuda(), x, y)
    assert x_adv.is_cuda and (x_adv - x).abs().max().item() == pytest.approx(0.1, abs=1e-6)


def test_an_attack_through_a_surrogate_is_held_to_the_ball_of_its_own_norm(bayesian, batch):
    attack = Through(ab.PGD(0.5, norm="l2"), "mean")
    assert attack.norm == "l2"
    ab.robust_accuracy(bayesian, [batch], attack, num_samples=1)
    with pytest.raises(ab.InputError, match=r"must stay within its epsilon 0.5 of the images \(l2\)"):
        check_attacked((batch[0] + 0.3).clamp(0, 1), batch[0], attack)
