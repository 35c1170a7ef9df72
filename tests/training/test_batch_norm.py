"""Tests of batch_norm in one process: training batches by running statistics. See test_distributed for several."""
import pytest
import torch
from tiny_runs import build
from torch import nn

from pyro_advbnn.training.batch_norm import RunningBatchNorm, normalise_by_running, prepare_running

NORMS = [(nn.BatchNorm2d(3), (7, 3, 4, 5)), (nn.BatchNorm1d(3), (7, 3)), (nn.BatchNorm2d(3, affine=False), (7, 3, 2, 2)),
         (nn.BatchNorm2d(3, momentum=None), (7, 3, 2, 2)), (nn.BatchNorm3d(3, dtype=torch.float64), (7, 3, 2, 2, 2))]


@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=lambda value: str(value))
def test_a_batch_moves_the_running_statistics_and_is_normalised_by_them(norm, shape):
    torch.manual_seed(0)
    dtype = next(norm.buffers()).dtype
    x, plain = 3 * torch.randn(shape, dtype=dtype) + 5, nn.Sequential(norm)
    prepared = prepare_running(nn.Sequential(type(norm)(3, momentum=norm.momentum, affine=norm.affine, dtype=dtype)))
    assert isinstance(prepared[0], RunningBatchNorm) and list(prepared.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(prepared(x), plain(x))                # not switched on yet
    normalise_by_running(prepared, True)
    plain(x)                                                         # moves its statistics
    got = prepared(x)
    assert all(map(torch.allclose, prepared.buffers(), plain.buffers()))
    torch.testing.assert_close(got, plain.eval()(x))
    torch.testing.assert_close(prepared.eval()(x), plain(x))


def test_no_gradient_goes_through_the_running_statistics():
    norm = prepare_running(nn.BatchNorm2d(2))
    normalise_by_running(norm, True)
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    target = torch.randn(4, 2, 3, 3)
    (norm(x) * target).sum().backward()
    scale = (norm.running_var + norm.eps).rsqrt().view(1, 2, 1, 1)
    torch.testing.assert_close(x.grad, target * scale)


def test_a_norm_without_running_statistics_stays_as_it_is():
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    assert prepare_running(norm) is norm


def test_a_training_switches_at_the_chosen_share():
    _, training, _ = build(running_statistics=0.5, batch_norm="broadcast")           # means nothing to one process
    switched = []
    for _ in range(2):
        for _ in training.epoch():
            switched.append([m.by_running for m in training.classifier.modules() if isinstance(m, RunningBatchNorm)])
    assert switched == [[False] * 4] * 4 + [[True] * 4] * 4
    _, training, _ = build()
    assert not any(isinstance(m, RunningBatchNorm) for m in training.classifier.modules())
