"""Tests of process_settings: who calls a command from Python finds torch and Pyro afterwards as they were before."""
import pyro
import pytest
import torch

from pyro_advbnn import evaluate
from pyro_advbnn.demo import demo
from pyro_advbnn.experiments.selection import Selection
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.train import train


def settings():
    return (torch.get_num_threads(), pyro.distributions.is_validation_enabled(), pyro.infer.util.is_validation_enabled(),
            torch.distributions.Distribution._validate_args, torch.backends.cuda.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision)


def test_nothing_is_checked_inside_and_everything_is_as_before_afterwards():
    before = settings()
    with pytest.raises(RuntimeError), process_settings(num_threads=3):
        assert settings()[:4] == (3, False, False, False)
        raise RuntimeError
    assert settings() == before and before[1] and before[3]


def test_a_command_called_from_python_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    before = settings()
    train(num_train=100, validation=20, width=2, epochs=1, num_steps=1, device="cpu", out=tmp_path / "run")
    assert settings() == before
    evaluate.accuracy(of=Selection(run=tmp_path / "run", num_test=10), epsilons=[0.0], num_samples=1)
    assert settings() == before
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(InputError):
        demo(out=tmp_path / "taken")
    with pytest.raises(InputError):
        train(resume=tmp_path / "taken")
    assert settings() == before
