import re
from pathlib import Path

import pytest

from pyro_advbnn import benchmark, evaluate, reproduce, train
from pyro_advbnn.cli.commands import flag_names

TORCHRUN = {"standalone", "nproc-per-node", "nnodes", "max-restarts", "rdzv-backend", "rdzv-endpoint", "rdzv-id"}
PIP = {"no-deps", "no-build-isolation", "require-hashes", "help"}
SBATCH = {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"}
README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_library_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example, = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "classifier.pt").exists()
    assert "torch.Size([8, 1, 3, 3])" in capsys.readouterr().out


def test_every_flag_that_the_readme_names_exists():
    functions = (train.train, benchmark.benchmark, *evaluate.VERBS.values(), *reproduce.VERBS.values())
    known = {name for function in functions for name in flag_names(function)} | PIP | TORCHRUN | SBATCH
    named = set(re.findall(r"--([a-z][a-z_-]+)", README))
    assert named <= known, named - known


@pytest.mark.parametrize("name", ["demo", "test", "lint"])
def test_every_make_target_that_the_readme_names_exists(name):
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    assert f"make {name}" in README and re.search(rf"^{name}:", makefile, re.MULTILINE)
