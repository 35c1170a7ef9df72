"""Tests of what a comparison measures: known times and bytes come out as they are."""
import gc
import time
from types import SimpleNamespace

import torch

from pyro_advbnn.experiments import workloads
from pyro_advbnn.experiments.comparison import peak_memory, take_turns
from pyro_advbnn.experiments.workloads import Stopwatch

CPU = torch.device("cpu")


def test_calls_take_turns_and_the_first_round_is_not_counted():
    order, seen = [], []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = take_turns(calls, 2, CPU, progress=seen.append)
    assert order == list("ababab") == seen
    assert {name: len(measured) for name, measured in times.items()} == {"a": 2, "b": 2}
    (wall, cpu), = take_turns({"asleep": lambda: time.sleep(0.5)}, 1, CPU)["asleep"]
    assert cpu < wall / 2                                # threads of earlier tests may spin for a while


def test_a_stopwatch_gives_each_lap_what_passed_since_the_one_before(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(workloads, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    stopwatch = Stopwatch(CPU)
    for name in ("attack", "update", "optimizer"):
        stopwatch.lap(name)
    assert stopwatch.seconds == {"attack": 1.0, "update": 2.0, "optimizer": 4.0}


def test_peak_memory_is_state_and_the_most_held_in_the_second_call_and_nothing_is_printed(capfd):
    def build():
        state, calls = torch.zeros(1000), []

        def call():
            calls.append(1)
            if len(calls) == 1:
                return torch.zeros(5000)                 # the warm-up does not count
            first = torch.zeros(500)
            del first
            return torch.zeros(300), torch.zeros(150), state
        return call
    assert peak_memory(build, CPU) == 4 * 1500
    assert capfd.readouterr() == ("", "")                # the profiler writes about GPUs that are not there


def test_what_lives_elsewhere_does_not_count():
    kept = [torch.zeros(100_000)]

    def build():
        state = torch.zeros(1000)

        def call():
            assert len(kept[0]) == 100_000
            return state.neg()
        return call
    assert peak_memory(build, CPU) == peak_memory(build, CPU) == 4 * 2000


def test_garbage_of_earlier_measurements_is_not_given_back_while_memory_is_counted():
    def build_a_cycle():
        cycle = [torch.zeros(100_000)]
        cycle.append(cycle)
        return lambda: None

    def build():
        state = torch.zeros(1000)
        gc.collect()
        return state.neg
    peak_memory(build_a_cycle, CPU)
    assert peak_memory(build, CPU) == 4 * 2000
