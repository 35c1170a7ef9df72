"""The compiled passes over long vectors, beside torch's; skipped where they were not compiled."""
import pytest
import torch

import pyro_advbnn as ab
from pyro_advbnn.bayes.guide import MeanFieldNormal
from pyro_advbnn.bayes.kernels import posterior, vectors
from pyro_advbnn.bayes.kernels.vectors import standard_normal_
from pyro_advbnn.bayes.priors import NormalPrior

pytest.importorskip("pyro_advbnn.bayes.kernels._posterior", reason="no C compiler at installation")
SIZE = 3 * vectors._STREAM + 1000                         # four pieces, the last one with a short block of sums
PRIORS = [NormalPrior([(0, SIZE, 0.1)]),
          NormalPrior([(0, 21300, 0.1), (21300, 21307, 3.0), (21307, SIZE, 0.7)], (200, SIZE - 4321))]


@pytest.fixture(autouse=True)
def long_vectors(monkeypatch):
    """Vectors longer than one stream of normals are long."""
    monkeypatch.setattr(vectors, "_LONG", vectors._STREAM)
    for module in (vectors, posterior):
        monkeypatch.setattr(module, "SHARE", vectors._STREAM)


def both_ways(monkeypatch, function, seed=0):
    """What function() gives by compiled passes and by torch's, which are not told apart by numbers drawn."""
    answers = []
    for compiled in (posterior._posterior, None):
        monkeypatch.setattr(posterior, "_posterior", compiled)
        torch.manual_seed(seed)
        answers.append(function())
    return answers


def vectors_of_a_posterior():
    log_std = torch.empty(SIZE).uniform_(-18.4, 2.3)     # all that `constrain_` allows
    return torch.randn(SIZE).requires_grad_(), log_std.requires_grad_()


@pytest.mark.parametrize("prior", PRIORS, ids=["one piece", "pieces, some not counted"])
@pytest.mark.parametrize("kl_weight", [0.0, 1e-3])
def test_draw_kl_and_gradients_are_those_of_torch(prior, kl_weight, monkeypatch):
    def run():
        mean, log_std = vectors_of_a_posterior()
        weights, kl = MeanFieldNormal(mean, log_std).rsample_with_kl(prior)
        (weights @ torch.randn(SIZE) + kl_weight * kl).backward()
        return weights.detach(), kl.detach(), mean.grad, log_std.grad

    torch.testing.assert_close(*both_ways(monkeypatch, run), rtol=1e-5, atol=1e-5)


def test_they_are_used_for_long_vectors_of_float32_alone(monkeypatch):
    calls = []

    class Counting:
        def __getattr__(self, name):
            return lambda *arguments: calls.append(name) or 0.0

    monkeypatch.setattr(posterior, "_posterior", Counting())
    for like in (torch.zeros(SIZE), torch.zeros(vectors._STREAM), torch.zeros(SIZE, dtype=torch.float64)):
        weights, kl = MeanFieldNormal(like.clone().requires_grad_(), like.clone().requires_grad_()).rsample_with_kl(
            NormalPrior([(0, len(like), 0.1)]))
        (weights @ torch.ones_like(like) + kl).backward()
    assert calls == ["draw"] * 4 + ["gradients"] * 4


@pytest.mark.parametrize("prior", PRIORS, ids=["one piece", "pieces, some not counted"])
def test_a_step_of_the_natural_gradient_is_that_of_torch(prior, monkeypatch):
    def run():
        _, log_std = vectors_of_a_posterior()
        log_std, grad = log_std.detach(), 1e-3 * torch.randn(SIZE)
        sums = posterior.step_by_squares_(
            log_std, grad, prior.counted_pieces(), lambda: prior.kl_by_log_std(log_std),
            kl_weight=1e-5, share=torch.tensor(40.0), rate=300.0, bound=1e-4)
        return log_std, sums

    torch.testing.assert_close(*both_ways(monkeypatch, run), rtol=1e-5, atol=1e-6)


def test_trainings_are_those_of_torch(monkeypatch):
    """Three steps of Algorithm 1, in which the sums that one step leaves move the next one's stds."""
    shares = []

    def run():
        x, y = torch.rand(8, 1, 8, 8), torch.randint(10, (8,))
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
        classifier = ab.BayesianClassifier(network, prior_std="fan_in", init_std="fan_in/3")
        optimizer = ab.NaturalGradient(classifier, num_train=8, alpha=1.0, rho=0.1)
        for _ in range(3):
            ab.train_step(classifier, optimizer, x, y, kl_weight=1 / 8)
            shares.append(optimizer.state[classifier.log_std]["sums"][0])
        return classifier.state_dict()

    torch.testing.assert_close(*both_ways(monkeypatch, run, seed=3), rtol=1e-5, atol=1e-5)
    assert min(shares) > 0                               # where they are not, they move nothing


def test_a_step_is_seen_by_those_who_keep_what_they_made_of_the_stds():
    classifier = ab.BayesianClassifier(torch.nn.Linear(SIZE, 2), prior_std=0.1, init_std=0.01).eval()
    optimizer = ab.NaturalGradient(classifier, num_train=10, alpha=0.1, lr=0.0, rho=1.0)
    for parameter in classifier.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    answers = []
    for _ in range(2):
        classifier.requires_grad_(False)                 # as in an attack, which keeps exp(log_std)
        torch.manual_seed(0)
        answers.append(classifier(torch.ones(1, SIZE)))
        classifier.requires_grad_()
        optimizer.step()
    assert not torch.equal(*answers)


def test_what_is_no_number_stays_where_it_is():
    log_std, grad = torch.full((SIZE,), -3.0), torch.zeros(SIZE)
    grad[777] = torch.nan

    def step():
        return posterior.step_by_squares_(log_std, grad, [(slice(0, SIZE), 0.1)], None, kl_weight=1e-5, share=torch.tensor(1.0),
                                          rate=1.0, bound=1e-4)

    sums = step()
    assert log_std.isnan().nonzero().tolist() == [[777]] and sums.isnan().all()
    log_std[777], grad[777], grad[0], grad[-1] = -3, 0, torch.inf, -torch.inf        # of which no piece's sum is NaN
    assert step()[0].isnan()
    mean, log_std = torch.zeros(SIZE), torch.zeros(SIZE)
    log_std[5] = torch.nan
    weights, kl = posterior.draw_with_kl(mean, log_std, [(slice(0, SIZE), 0.1)])
    assert weights.isnan().nonzero().tolist() == [[5]]
    assert kl.isnan()


def test_draws_and_sums_are_the_same_for_any_number_of_threads():
    answers, threads = [], torch.get_num_threads()
    for num in (1, 3):
        torch.set_num_threads(num)
        torch.manual_seed(0)
        mean, log_std = vectors_of_a_posterior()
        answers.append(posterior.draw_with_kl(mean, log_std, PRIORS[1].counted_pieces()))
    torch.set_num_threads(threads)
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)


def test_the_noise_of_a_draw_is_that_of_standard_normal():
    torch.manual_seed(3)
    weights, _ = posterior.draw_with_kl(torch.zeros(SIZE), torch.zeros(SIZE), [])
    torch.manual_seed(3)
    torch.testing.assert_close(weights, standard_normal_(torch.empty(SIZE)))
