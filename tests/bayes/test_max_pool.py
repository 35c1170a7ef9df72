"""The compiled loop of 2x2 max-pooling, beside torch's; skipped where it was not compiled."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.bayes.kernels import max_pool
from pyro_advbnn.bayes.kernels.max_pool import is_2x2, max_pool_2x2, max_pool_2x2_of_relu

compiled = pytest.mark.skipif(max_pool._max_pool is None, reason="no C compiler at installation")
SHAPES = [(1, 1, 2, 2), (2, 3, 4, 6), (3, 5, 32, 32), (2, 3, 6, 130), (40, 64, 32, 32)]


def pooled(pool, x, weights):
    x = x.clone().requires_grad_()
    y = pool(x)
    return y.detach(), *torch.autograd.grad((y * weights).sum(), x)


def torchs(x):
    return F.max_pool2d(x, 2)


def torchs_of_relu(x):
    return F.max_pool2d(F.relu(x), 2)


def same(x, pool=max_pool_2x2, expected=torchs):
    """Equal numbers, equal gradients and equal strides of both."""
    weights = torch.rand(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    ours, others = pooled(pool, x, weights), pooled(expected, x, weights)
    return all(map(torch.equal, ours, others)) and [t.stride() for t in ours] == [t.stride() for t in others]


BOTH = pytest.mark.parametrize(("pool", "expected"), [(max_pool_2x2, torchs), (max_pool_2x2_of_relu, torchs_of_relu)])
FORMATS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@compiled
@pytest.mark.parametrize("shape", SHAPES)
@DTYPES
@FORMATS
@BOTH
def test_numbers_and_gradients_are_those_of_torch(shape, dtype, memory_format, pool, expected, monkeypatch):
    used = []
    monkeypatch.setattr(max_pool, "_in_parts", lambda *args, call=max_pool._in_parts: (used.append(1), call(*args)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=memory_format)
    assert same(x, pool, expected) and len(used) == 2


@compiled
@DTYPES
@FORMATS
@BOTH
def test_of_equals_the_first_in_reading_order_gets_the_gradient(dtype, memory_format, pool, expected):
    values = torch.tensor([-2, -1, -0.0, 0.0, 1, float("inf"), float("-inf")])
    choice = torch.randint(len(values), (4, 8, 16, 16), generator=torch.Generator().manual_seed(0))
    for x in (values[choice], torch.zeros(2, 2, 4, 4), -torch.zeros(2, 2, 4, 4)):
        assert same(x.to(dtype).contiguous(memory_format=memory_format), pool, expected)


@compiled
@DTYPES
@FORMATS
@pytest.mark.parametrize("pool", [max_pool_2x2, max_pool_2x2_of_relu])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
def test_nan_is_never_lost(dtype, memory_format, pool, place, nan):
    x = torch.full((1, 3, 2, 2), float("inf"), dtype=dtype)
    x.view(3, 4)[:, place] = nan
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y = pool(x)
    assert y.isnan().all()
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], x.detach().isnan().to(dtype))


@compiled
@BOTH
def test_what_the_loop_cannot_do_is_done_by_torch(pool, expected, monkeypatch):
    monkeypatch.setattr(max_pool, "_in_parts", lambda *_: pytest.fail("compiled"))
    x = torch.randn(2, 3, 8, 8)
    for other in (x[..., :7], x[:, :, :5], x.double(), x.half(), x.transpose(2, 3), x[:0], x[0]):
        assert torch.equal(pool(other), expected(other))
    assert torch.equal(torch.func.vmap(pool)(x[None]), expected(x)[None])
    assert torch.equal(torch.func.grad(lambda x: pool(x).sum())(x), pooled(expected, x, 1)[1])


@compiled
@FORMATS
@BOTH
def test_a_gradient_of_the_gradient_is_that_of_torch(memory_format, pool, expected):
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    x.requires_grad_()

    def second(pool):
        grad, = torch.autograd.grad((pool(x ** 3) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((grad ** 2).sum(), x)[0]

    torch.testing.assert_close(second(pool), second(expected))


@compiled
@BOTH
def test_an_infinite_gradient_that_shall_have_one_goes_to_one_place(pool, expected):
    x = torch.tensor([[[[1.0, 2], [3, 4]]], [[[-1.0, -2], [-3, -4]]]], requires_grad=True)

    def gradient(pool):
        return torch.autograd.grad((pool(x) * float("inf")).sum(), x, create_graph=True)[0]

    assert torch.equal(gradient(pool), gradient(expected))


@compiled
def test_another_default_device_is_not_that_of_what_was_pooled():
    x = torch.rand(2, 3, 4, 4)
    with torch.device("meta"):
        assert torch.equal(max_pool_2x2(x), torchs(x))


@compiled
@FORMATS
@pytest.mark.parametrize("pool", [max_pool_2x2, max_pool_2x2_of_relu])
def test_the_number_of_threads_changes_nothing(memory_format, pool):
    x, threads = torch.randn(40, 64, 32, 32).contiguous(memory_format=memory_format), torch.get_num_threads()
    try:
        results = []
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(pooled(pool, x, 1))
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


@compiled
def test_a_relu_before_it_goes_with_it_but_where_it_is_watched_or_called_elsewhere(monkeypatch):
    calls = []
    for pool in (max_pool_2x2, max_pool_2x2_of_relu):
        monkeypatch.setattr(max_pool, pool.__name__, lambda x, pool=pool: calls.append(pool.__name__) or pool(x))
    x, relu = torch.rand(2, 1, 8, 8), nn.ReLU(inplace=True)

    def called(*layers):
        network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *layers, nn.Flatten(), nn.Linear(32, 3)).eval()
        classifier, expected = Classifier(network).requires_grad_(False), network(x)
        calls.clear()
        assert torch.equal(classifier(x), expected)
        return set(calls)

    assert called(relu, nn.MaxPool2d(2)) == {"max_pool_2x2_of_relu"}
    assert called(relu, nn.Identity(), relu, nn.MaxPool2d(2)) == {"max_pool_2x2"}
    assert called(nn.Tanh(), nn.MaxPool2d(2)) == {"max_pool_2x2"}
    relu.register_forward_hook(lambda *_: calls.append("watched"))
    assert called(relu, nn.MaxPool2d(2)) == {"watched", "max_pool_2x2"}
