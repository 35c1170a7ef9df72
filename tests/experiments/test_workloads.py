"""Tests of contestants: each does the work that it stands for, and its parts are."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.experiments import workloads
from pyro_advbnn.experiments.comparison import peak_memory, take_turns
from pyro_advbnn.experiments.timings import CONTESTANTS, FLOORS
from pyro_advbnn.experiments.workloads import MAKERS, necessary_flops, random_workload

CPU = torch.device("cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ab.networks.convnet(in_channels=3, width=4)


@pytest.fixture
def work():
    torch.manual_seed(1)
    return random_workload(4, 8, 3, 5, CPU)


class Counting(nn.Module):
    """Counts its calls: "gradient" where the images require one, "update" where weights do, else "forward"."""

    seen = []

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 10)

    def forward(self, x):
        weights = self.layer.weight.requires_grad and torch.is_grad_enabled()
        self.seen.append("gradient" if x.requires_grad else "update" if weights else "forward")
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("name, passes", [
    ("adv-bnn", 3 * ["gradient"] + ["update"]), ("deterministic", 3 * ["gradient"] + ["update"]),
    ("plain-pyro", 3 * ["gradient"] + ["update"]), ("prediction", 5 * ["forward"]), ("bare forwards", 5 * ["forward"]),
    ("normals", []),
])
def test_every_contestant_makes_the_passes_that_it_stands_for(name, passes):
    Counting.seen.clear()
    MAKERS[name](Counting(), random_workload(4, 2, 3, 5, CPU))()
    assert Counting.seen == passes


def test_the_authors_style_makes_as_many_passes():
    calls = []
    layer = nn.Linear(12, 10)
    layer.register_forward_hook(lambda module, inputs, output: calls.append(module.weight.requires_grad))
    MAKERS["authors"](nn.Sequential(nn.Flatten(), layer), random_workload(4, 2, 3, 5, CPU))()
    assert calls == 4 * [True]


@pytest.mark.parametrize("name", ["adv-bnn", "deterministic", "plain-pyro", "authors"])
def test_a_step_moves_its_weights_and_leaves_the_network(name, network, work, monkeypatch):
    adam, moving = torch.optim.Adam, []
    monkeypatch.setattr(torch.optim, "Adam", lambda ps, **settings: adam(moving.extend(ps) or moving, **settings))
    before = [p.detach().clone() for p in network.parameters()]
    step = MAKERS[name](network, work)
    moving = moving or list(step.classifier.parameters())
    start = [p.detach().clone() for p in moving]
    step()
    moved = [(p != q).any() for p, q in zip(moving, start, strict=True) if p.grad.abs().max() > 1e-6]
    assert moved and all(moved)                          # a bias before BatchNorm has no gradient but by rounding
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_normals_draw_as_many_as_the_network_has_weights_into_kept_memory(network, work, monkeypatch):
    drawn = []
    monkeypatch.setattr(torch, "randn", lambda shape, *, out: drawn.append((shape.numel(), out.data_ptr())))
    MAKERS["normals"](network, work)()
    assert [size for size, _ in drawn] == 5 * [sum(p.numel() for p in network.parameters())]
    assert len({memory for _, memory in drawn}) == 1


def test_the_product_of_matrices_is_computed_in_the_precision_of_its_row(network, work, monkeypatch):
    seen = []
    monkeypatch.setattr(workloads, "_MATRIX_SIDE", {"cpu": 4})
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append(a.dtype))
    for precision in ("fp32", "bf16"):
        MAKERS["matmul"](network, replace(work, precision=precision))()
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("name", ["adv-bnn", "deterministic"])
def test_a_step_is_cut_into_attack_update_and_optimizer(name, network, work, monkeypatch):
    step = MAKERS[name](network, work)
    laps = []
    monkeypatch.setattr(workloads, "Stopwatch", lambda device: SimpleNamespace(lap=laps.append))
    step()
    assert laps == ["attack", "update", "optimizer"]


def test_parts_are_medians_without_the_warm_up(network, work):
    step = MAKERS["adv-bnn"](network, work)
    steps = [{"attack": 90.0, "update": 0.0, "optimizer": 1.0},
             *({"attack": 2.0 + i, "update": 5.0 * i, "optimizer": 1.0} for i in range(3))]
    step.stopwatches = [SimpleNamespace(seconds=seconds) for seconds in steps]
    assert step.parts() == {"attack": 3.0, "update": 5.0, "optimizer": 1.0}


def test_every_call_of_a_step_has_a_stopwatch_of_its_own(network, work):
    step = MAKERS["adv-bnn"](network, work)
    take_turns({"adv-bnn": step}, 2, CPU)
    assert len(set(step.stopwatches)) == 3
    assert all(seconds > 0 for seconds in step.parts().values())


def test_flops_of_a_step_are_gradients_of_the_images_and_one_of_the_weights():
    flops = necessary_flops(nn.Sequential(nn.Flatten(), nn.Linear(12, 10, bias=False)), random_workload(4, 2, 3, 5, CPU))
    product = 2 * 4 * 12 * 10
    step = 3 * 2 * product + 2 * product                 # forward and to the images; forward and to the weights
    assert {flops[name] for name in ("adv-bnn", "deterministic", "plain-pyro", "authors")} == {step}
    assert flops["prediction"] == flops["bare forwards"] == 5 * product and set(flops) == set(MAKERS) - {"normals"}


def test_flops_count_no_comparison_of_folded_and_plain_calls():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10, bias=False))
    flops = necessary_flops(network, random_workload(4, 2, 3, 5, CPU))
    forward = 2 * 4 * (3 * 4 * 4 + 16 * 10)
    assert flops["bare forwards"] == 5 * forward
    assert flops["adv-bnn"] == 3 * 2 * forward + 2 * forward + 2 * 4 * 16 * 10         # the update needs none of the images


def test_every_row_has_a_floor_that_is_one_of_the_rows():
    assert {name for rows in CONTESTANTS.values() for name in rows} == set(FLOORS) == set(MAKERS) - {"matmul"}
    assert set(FLOORS.values()) <= set(MAKERS)


@pytest.mark.parametrize("name, num_state, gradients", [
    ("adv-bnn", 3, 2), ("deterministic", 2, 1), ("plain-pyro", 6, 2), ("authors", 6, 2)])
def test_peak_memory_of_a_step_holds_state_gradients_and_work(name, num_state, gradients):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 50_000, bias=False), nn.Linear(50_000, 10, bias=False))
    size = 4 * sum(p.numel() for p in network.parameters())
    work = random_workload(2, 2, 2, 5, CPU)
    peak = peak_memory(lambda: MAKERS[name](network, work), CPU) / size
    assert num_state + gradients <= peak
    assert peak < {"adv-bnn": 9, "deterministic": 5, "plain-pyro": 26, "authors": 18}[name]


@pytest.mark.parametrize("name", ["adv-bnn", "plain-pyro", "authors", "prediction"])
def test_two_attack_steps_and_two_draws_need_as_much_memory_as_many(name, network):
    few, many = (peak_memory(lambda n=n: MAKERS[name](network, random_workload(4, 8, n, n, CPU)), CPU) for n in (2, 5))
    assert few == pytest.approx(many, abs=4096)
