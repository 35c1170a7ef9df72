import csv
import json

import pytest
import torch

from pyro_advbnn import networks
from pyro_advbnn.benchmark import Comparison, benchmark
from pyro_advbnn.cli import commands
from pyro_advbnn.experiments import comparison, timings, workloads
from pyro_advbnn.experiments.workloads import MAKERS

TINY = ["--network=convnet", "--image_size=8", "--num_steps=1", "--num_samples=2", "--repeats=1", "--batch_sizes=2",
        "--device=cpu"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What takes seconds is made up: its own tests know it."""
    monkeypatch.setattr(comparison, "peak_memory", lambda build, device: 2**20)
    monkeypatch.setattr(workloads, "_MATRIX_SIDE", {"cpu": 4})


class Odd(torch.nn.Module):
    """A network with a parameter beside its layers."""

    def __init__(self):
        super().__init__()
        self.scale, self.layer = torch.nn.Parameter(torch.ones(())), torch.nn.Linear(192, 10)

    def forward(self, x):
        return self.layer(self.scale * x.flatten(1))


def odd_network(num_classes):
    return Odd()


def rows_of(folder):
    return json.loads((folder / "benchmark.json").read_text())["rows"]


def test_it_prints_and_records_one_table_of_all_contestants(tmp_path, capsys):
    commands.run(benchmark, [*TINY, f"--out={tmp_path / 'b'}"])
    rows = rows_of(tmp_path / "b")
    assert [(row["precision"], row["contestant"]) for row in rows] == [
        *(("fp32", name) for name in ("adv-bnn", "matmul", "deterministic", "plain-pyro", "authors", "prediction",
                                      "bare forwards", "normals")),
        *(("bf16", name) for name in ("adv-bnn", "matmul", "deterministic", "plain-pyro", "prediction", "bare forwards",
                                      "normals"))]
    assert all(row["wall_s"] > 0 and row["cpu_s"] > 0 and row["peak_memory_bytes"] == 2**20 for row in rows)
    ours, product, floor = rows[:3]
    assert ours["wall_ratio"] == pytest.approx(ours["wall_s"] / floor["wall_s"]) and floor["cpu_ratio"] == 1
    assert ours["images_per_second"] == pytest.approx(2 / ours["wall_s"])
    assert ours["matmul_share"] == pytest.approx(ours["flops"] / ours["wall_s"] / (2 * 4**3 / product["wall_s"]))
    assert all(ours[f"{part}_s"] > 0 for part in timings.PARTS) and rows[3]["attack_s"] is None
    out = capsys.readouterr().out
    assert timings.table(rows) in out and "times as fast as bare forwards + normals" in out and "as fast as authors" in out


def test_batch_sizes_and_contestants_are_those_asked_for_each_once(tmp_path):
    wanted = ["--contestants=prediction,deterministic,prediction", "--precisions=bf16,bf16", f"--out={tmp_path / 'b'}"]
    commands.run(benchmark, [*(flag for flag in TINY if "batch" not in flag), "--batch_sizes=4,2,4", *wanted])
    names = ("prediction", "bare forwards", "normals", "matmul", "deterministic")
    assert [(row["batch_size"], row["contestant"]) for row in rows_of(tmp_path / "b")] == [
        (size, name) for size in (4, 2) for name in names]
    four, two = (row["flops"] for row in rows_of(tmp_path / "b") if row["contestant"] == "deterministic")
    assert four == 2 * two > 0


def test_every_call_gets_its_batch_size_steps_draws_and_precision(monkeypatch):
    seen = []
    monkeypatch.setitem(
        MAKERS, "adv-bnn", lambda network, work: seen.append((len(work.x), work.num_steps, work.num_samples, work.precision))
        or (lambda: None))
    commands.run(benchmark, [*TINY[:-2], "--batch_sizes=3", "--contestants=adv-bnn", "--precisions=fp32,bf16"])
    assert seen == [(2, 1, 1, "fp32"), (2, 1, 1, "bf16"), (3, 1, 2, "fp32"), (3, 1, 2, "bf16")]


def test_csv_and_json_hold_the_same_rows_and_json_where_they_come_from(tmp_path):
    commands.run(benchmark, [*TINY, "--contestants=adv-bnn,plain-pyro", "--precisions=fp32", f"--out={tmp_path / 'b'}"])
    content = json.loads((tmp_path / "b" / "benchmark.json").read_text())
    with (tmp_path / "b" / "benchmark.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in content["rows"]] == lines
    assert content["settings"]["num_steps"] == 1 and content["environment"]["versions"]["torch"]
    assert content["num_weights"] == sum(p.numel() for p in networks.build_network("convnet", 10).parameters())
    assert content["rows"][0]["wall_ratio"] is None      # its floor did not run
    assert [(row["contestant"], row["other"]) for row in content["comparisons"]] == [("adv-bnn", "plain-pyro")]


def test_an_interrupt_leaves_the_batch_sizes_that_are_done_on_disk_and_on_paper(tmp_path, capsys, monkeypatch):
    measure = comparison._Compared.measure

    def interrupted(self, batch_size):
        if batch_size == 4:
            raise KeyboardInterrupt
        return measure(self, batch_size)
    monkeypatch.setattr(comparison._Compared, "measure", interrupted)
    with pytest.raises(SystemExit) as end:
        commands.run(benchmark, [*(flag for flag in TINY if "batch" not in flag), "--batch_sizes=2,4", "--precisions=fp32",
                            "--contestants=deterministic", f"--out={tmp_path / 'b'}"])
    assert end.value.code == 130 and {row["batch_size"] for row in rows_of(tmp_path / "b")} == {2}
    assert "deterministic" in capsys.readouterr().out


def test_memory_is_measured_on_a_short_call_of_the_same_precision(monkeypatch):
    seen = []
    monkeypatch.setitem(MAKERS, "adv-bnn", lambda network, work: seen.append(work))
    monkeypatch.setattr(comparison, "peak_memory", lambda build, device: build())
    settings = Comparison(network="convnet", image_size=8, device="cpu")
    comparison._Compared(settings, None, torch.device("cpu"), False)._peak_memory("bf16", "adv-bnn", 3)
    assert (seen[0].num_steps, seen[0].num_samples, seen[0].precision, len(seen[0].x)) == (2, 2, "bf16", 3)


@pytest.mark.parametrize("wrong, says", [
    ("--batch_size=2", "--batch_sizes"), ("--batch_sizes=0", "[1, 65536]"), ("--repeats=0", "[1, 10000]"),
    ("--num_samples=0", "[1, 100000]"),
    ("--precisions=fp8", "fp32, tf32, bf16"), ("--contestants=adv", "adv-bnn"), ("vgg16", "only flags"),
    ("--network=resnet18", "torchvision:NAME"), ("--device=tpu", "cpu, cuda"), ("--precisions=tf32", "tf32 needs a GPU"),
    ("--cuda_graphs=on", "needs a GPU"),
    ("--precisions=bf16", "authors"), ("--image_size=4", "8 or more"),
    ("--network=torchvision:squeezenet1_0", "fails on images (2, 3, 8, 8)"),
    ("--network=test_benchmark:odd_network", "authors takes no network with a Odd"),
])
def test_wrong_flags_are_refused_in_one_line(wrong, says, capsys, tmp_path):
    name = wrong.partition("=")[0]
    rest = [flag for flag in TINY if flag.partition("=")[0] != name]
    with pytest.raises(SystemExit) as end:
        commands.run(benchmark, [*rest, wrong, f"--out={tmp_path / 'b'}"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and error.startswith("error: ") and says in error
    assert not (tmp_path / "b").exists()


def test_an_existing_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "old").write_text("kept")
    with pytest.raises(SystemExit):
        commands.run(benchmark, [*TINY, f"--out={tmp_path}"])
    err = capsys.readouterr().err
    assert "is not overwritten; choose another --out\n" in err and [p.name for p in tmp_path.iterdir()] == ["old"]
