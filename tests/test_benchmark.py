import json

import pytest
import torch

from pyro_advbnn import cli
from pyro_advbnn.benchmark import _bare_evaluation as bare_evaluation
from pyro_advbnn.benchmark import benchmark

TINY = ["--network=convnet", "--image_size=8", "--num_steps=1", "--repeats=1", "--batch_sizes=2,4", "--device=cpu"]


def test_it_prints_and_records_ratios_to_the_deterministic_step(tmp_path, capsys):
    cli.run(benchmark, [*TINY, f"--out={tmp_path / 'b'}"])
    content = json.loads((tmp_path / "b" / "benchmark.json").read_text())
    assert [(row["classifier"], row["batch_size"]) for row in content["rows"]] == [
        ("deterministic", 2), ("Adv-BNN", 2), ("deterministic", 4), ("Adv-BNN", 4)]
    for floor, row in zip(content["rows"][::2], content["rows"][1::2], strict=True):
        assert floor["wall_ratio"] == floor["cpu_ratio"] == 1
        assert row["wall_ratio"] == pytest.approx(row["wall_s"] / floor["wall_s"])
        assert row["wall_s"] > 0 and row["cpu_s"] > 0
    assert "ratio" in capsys.readouterr().out


def test_an_evaluation_is_measured_against_as_many_passes_of_the_bare_network(tmp_path, capsys):
    cli.run(benchmark, [*TINY, "--parts=evaluation", f"--out={tmp_path / 'b'}"])
    content = json.loads((tmp_path / "b" / "benchmark.json").read_text())
    assert content["rows"] == []
    assert [(row["classifier"], row["batch_size"]) for row in content["evaluations"]] == [
        (name, size) for size in (2, 4) for name in ("bare network", "deterministic", "Adv-BNN")]
    for row in content["evaluations"][:3]:
        assert row["wall_ratio"] == pytest.approx(row["wall_s"] / content["evaluations"][0]["wall_s"])
    assert "20 gradients and 20 forward passes" in capsys.readouterr().out


def test_the_bare_evaluation_makes_the_passes_that_it_stands_for():
    calls = []
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    network.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].requires_grad))
    bare_evaluation(network, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), 20, 7)
    assert calls == [True] * 20 + [False] * 7


def test_state_is_six_floats_per_weight_for_adv_bnn_and_three_without(tmp_path):
    cli.run(benchmark, ["--network=vgg11", "--num_steps=1", "--repeats=1", "--batch_sizes=2", "--device=cpu",
                        f"--out={tmp_path / 'b'}"])
    memory = json.loads((tmp_path / "b" / "benchmark.json").read_text())["floats_per_weight"]
    state, gradients_and_work = memory["Adv-BNN"]
    assert state == 6 and memory["deterministic"][0] == 3
    assert 4 < gradients_and_work <= 6                   # 2 for the gradients, at most 4 to work with


@pytest.mark.parametrize("wrong", ["--batch_size=2", "--batch_sizes=0", "--repeats=0", "--precision=fp8", "vgg16",
                                   "--network=resnet18", "--device=tpu"])
def test_wrong_flags_are_refused_in_one_line(wrong, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        cli.run(benchmark, [wrong, f"--out={tmp_path / 'b'}"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and error.startswith("error: ")
    assert not (tmp_path / "b").exists()
