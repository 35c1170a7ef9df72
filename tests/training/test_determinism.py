"""Tests that equal seeds give equal bits, and that what only looks at a training does not change it."""
import os

import pytest
import torch
from tiny_runs import STEPS_PER_EPOCH, TINY, assert_same_run, content, equal, metrics, refusal, run, words

from pyro_advbnn.cli import commands
from pyro_advbnn.system import json_files
from pyro_advbnn.system.devices import describe_device, is_nondeterministic, only_deterministic
from pyro_advbnn.train import train
from pyro_advbnn.training import configuration, loop


@pytest.fixture(autouse=True)
def process_as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def weights(path):
    return content(path)["state"], content(path)["training"]["optimizer"]


def settings():
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory)


def test_inside_only_deterministic_algorithms_are_taken_and_afterwards_all_is_as_before(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = settings()
    with only_deterministic(True):
        assert settings() == (True, False, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError) as raised:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
        assert is_nondeterministic(raised.value)
    assert settings() == before
    with only_deterministic(False):
        assert settings() == before


@pytest.mark.parametrize("flags", [{"defense": "advbnn", "augmentation": "crop_flip"}, {"defense": "advrse"},
                                   {"defense": "bnn", "prior": "scale_mixture", "prior_std": 0.5, "precision": "bf16"},
                                   {"defense": "adv", "optimizer": "sgd", "micro_batch": 10},
                                   {"defense": "bnn", "optimizer": "natural", "micro_batch": 10}], ids=str)
def test_equal_seeds_give_equal_bits_and_on_a_cpu_the_same_ones_as_without_the_flag(flags, tmp_path):
    assert_same_run(*(run(tmp_path / str(flag), deterministic=flag, **flags) for flag in (True, False)))


def test_the_flag_is_recorded_kept_by_a_resumption_and_cannot_change_there(tmp_path, capsys, monkeypatch):
    a, b = (run(tmp_path / name, deterministic=flag) for name, flag in (("a", True), ("b", None)))
    assert [json_files.read_json(path / "config.json")["deterministic"] for path in (a, b)] == [True, False]
    capsys.readouterr()
    for path, flag in (a, "false"), (b, "true"):
        line = refusal(capsys, "--resume", path, "--epochs", 3, "--deterministic", flag)
        assert "--deterministic cannot be given with --resume" in line
    seen = []
    monkeypatch.setattr(loop.Course, "run", lambda *a: seen.append(settings()[0]))
    for path in a, b:
        train(resume=path, epochs=3)
    assert seen == [True, False]


def test_an_operation_without_a_deterministic_algorithm_stops_the_training_in_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "putting.py").write_text("""
from torch import nn, arange
class Putting(nn.Linear):
    def forward(self, x):
        logits = super().forward(x.flatten(1))
        return logits.clone().put_(arange(logits.numel()), logits.flatten())
def putting(num_classes):
    return Putting(64, num_classes)
""")
    monkeypatch.syspath_prepend(tmp_path)
    flags = TINY | {"network": "putting:putting", "defense": "none", "out": tmp_path / "run"}
    for name in ("width", "alpha", "init_std", "num_samples"):        # the network or the defense has no use for them
        del flags[name]
    with pytest.raises(SystemExit) as end:
        commands.run(train, [*map(str, words(flags)), "--deterministic"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1
    assert err.startswith("error: --deterministic: put_ does not have a deterministic implementation")
    train(**flags | {"out": tmp_path / "other"})


def test_a_resumption_on_another_device_or_with_other_threads_says_that_bits_will_differ(tmp_path, capsys, monkeypatch):
    for name, told in ("a", True), ("b", False):
        path = run(tmp_path / name, deterministic=told, epochs=1)
        assert "same bits" not in capsys.readouterr().out
        began = describe_device(torch.device("cpu"))
        with monkeypatch.context() as other:
            other.setattr(torch, "get_num_threads", lambda: 77)
            train(resume=path, epochs=2)
        out = capsys.readouterr().out
        assert (f"note: the run began on {began}, this is cpu, 77 threads: its end will not have the same bits" in out) == told


LOOKING = {
    "more draws in held-out predictions": {"num_samples": 5},
    "patience": {"patience": 2},
    "time": {"max_minutes": 1000},
}


@pytest.fixture(scope="module", params=["advbnn", "advrse"])
def plain(request, tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain") / "run", defense=request.param, augmentation="crop_flip")


@pytest.mark.parametrize("flags", LOOKING.values(), ids=LOOKING)
def test_looking_at_a_training_in_another_way_leaves_its_bits(plain, flags, tmp_path):
    defense = json_files.read_json(plain / "config.json")["defense"]
    other = run(tmp_path / "other", defense=defense, augmentation="crop_flip", **flags)
    assert equal(weights(plain), weights(other)) and equal(content(plain)["training"]["rng"], content(other)["training"]["rng"])
    assert [row["nll"] for row in metrics(plain)] == [row["nll"] for row in metrics(other)]


@pytest.mark.parametrize("held_out", [0, 1, 19])
@pytest.mark.parametrize("plain", ["advbnn"], indirect=True)
def test_how_many_images_are_measured_on_leaves_the_bits_of_a_training_on_the_same_images(
        plain, held_out, tmp_path, monkeypatch):
    real = configuration.load_images

    def load_images(*arguments, **settings):
        images, held, digest = real(*arguments, **settings)
        return images, held.take(range(held_out)) if held_out else None, digest

    monkeypatch.setattr(configuration, "load_images", load_images)
    assert equal(weights(plain), weights(run(tmp_path / "other", augmentation="crop_flip")))


@pytest.mark.parametrize("defense", ["advbnn", "advrse"])
def test_how_often_is_measured_and_saved_leaves_the_bits(defense, tmp_path, monkeypatch):
    plain, steps = run(tmp_path / "plain", defense=defense), []
    real, measure = loop.Progress.step, loop.accuracies

    def step(progress, num_images):
        real(progress, num_images)
        training = progress.training
        steps.append(measure(training.classifier, training.images.take(range(30)), training.settings, seed=len(steps)))

    monkeypatch.setattr(loop.Progress, "step", step)
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    assert equal(weights(plain), weights(run(tmp_path / "often", defense=defense))) and len(steps) == 2 * STEPS_PER_EPOCH
