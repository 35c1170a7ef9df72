"""The compiled loop of 2x2 max-pooling, beside torch's; skipped where it was not compiled."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.bayes.kernels import max_pool
from pyro_advbnn.bayes.kernels.max_pool import is_2x2, max_pool_2x2

compiled = pytest.mark.skipif(max_pool._max_pool is None, reason="no C compiler at installation")
SHAPES = [(1, 1, 2, 2), (2, 3, 4, 6), (3, 5, 32, 32), (2, 3, 6, 130), (40, 64, 32, 32)]


def pooled(pool, x, weights):
    x = x.clone().requires_grad_()
    y = pool(x)
    return y.detach(), *torch.autograd.grad((y * weights).sum(), x)


def same(x):
    """Equal numbers and equal gradients of both."""
    weights = torch.rand(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    return all(map(torch.equal, pooled(max_pool_2x2, x, weights), pooled(lambda x: F.max_pool2d(x, 2), x, weights)))


@compiled
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_and_gradients_are_those_of_torch(shape, dtype, monkeypatch):
    used = []
    monkeypatch.setattr(max_pool, "_in_parts", lambda *args, call=max_pool._in_parts: (used.append(1), call(*args)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert same(x) and len(used) == 2


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equals_the_first_in_reading_order_gets_the_gradient(dtype):
    values = torch.tensor([-2, -1, -0.0, 0.0, 1, float("inf"), float("-inf")])
    choice = torch.randint(len(values), (4, 8, 16, 16), generator=torch.Generator().manual_seed(0))
    assert same(values[choice].to(dtype))
    assert same(torch.zeros(2, 2, 4, 4, dtype=dtype)) and same(-torch.zeros(2, 2, 4, 4, dtype=dtype))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
def test_nan_is_never_lost(dtype, place, nan):
    x = torch.full((1, 1, 2, 2), float("inf"), dtype=dtype)
    x.view(-1)[place] = nan
    assert max_pool_2x2(x).isnan().all()


@compiled
def test_what_the_loop_cannot_do_is_done_by_torch(monkeypatch):
    monkeypatch.setattr(max_pool, "_in_parts", lambda *_: pytest.fail("compiled"))
    x = torch.rand(2, 3, 8, 8)
    for other in (x[..., :7], x[:, :, :5], x.double(), x.half(), x.transpose(2, 3), x.to(memory_format=torch.channels_last),
                  x[:0], x[0]):
        assert torch.equal(max_pool_2x2(other), F.max_pool2d(other, 2))
    assert torch.equal(torch.func.vmap(max_pool_2x2)(x[None]), F.max_pool2d(x, 2)[None])
    assert torch.equal(torch.func.grad(lambda x: max_pool_2x2(x).sum())(x), pooled(lambda x: F.max_pool2d(x, 2), x, 1)[1])


@compiled
def test_a_gradient_of_the_gradient_is_that_of_torch():
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32, requires_grad=True)

    def second(pool):
        grad, = torch.autograd.grad((pool(x * x) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((grad ** 2).sum(), x)[0]

    torch.testing.assert_close(second(max_pool_2x2), second(lambda x: F.max_pool2d(x, 2)))


@compiled
def test_the_number_of_threads_changes_nothing():
    x, threads = torch.rand(40, 64, 32, 32), torch.get_num_threads()
    try:
        results = []
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(pooled(max_pool_2x2, x, 1))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(("module", "known"), [
    (nn.MaxPool2d(2), True), (nn.MaxPool2d((2, 2), stride=[2, 2]), True), (nn.MaxPool2d(3), False), (nn.MaxPool2d(2, 1), False),
    (nn.MaxPool2d(2, padding=1), False), (nn.MaxPool2d(2, dilation=2), False), (nn.MaxPool2d(2, ceil_mode=True), False),
    (nn.MaxPool2d(2, return_indices=True), False), (nn.MaxPool2d((2, 1)), False), (nn.AvgPool2d(2), False),
])
def test_only_plain_2x2_max_pooling_is_known(module, known):
    assert is_2x2(module) == known


@compiled
def test_a_frozen_network_uses_it_and_one_that_is_watched_or_trained_does_not(monkeypatch):
    calls = []
    monkeypatch.setattr(max_pool, "max_pool_2x2", lambda x: calls.append(1) or F.max_pool2d(x, 2))
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3)).eval()
    classifier, x = Classifier(network), torch.rand(2, 1, 8, 8)
    expected = classifier(x)
    assert not calls
    classifier.requires_grad_(False)
    assert torch.equal(classifier(x), expected) and len(calls) == 2 and type(network[1]) is nn.MaxPool2d      # compared, once
    seen = []
    network[1].register_forward_hook(lambda *_: seen.append(1))
    classifier(x)
    assert seen and len(calls) == 2
