"""Tests of config.json where it is read: keys given twice or known to nobody, and a number of weights that is wrong."""
import json
import shutil

import pytest
import torch
from hostile import copied, digests, refused_command

from pyro_advbnn import __version__, evaluate
from pyro_advbnn.cli import commands
from pyro_advbnn.train import train
from pyro_advbnn.training import contradictions, run_config, run_folders

MALFORMED = "malformed files refused or read right"


@pytest.fixture
def run(finished, tmp_path):
    return copied(finished, tmp_path / "run")


@pytest.fixture
def refusal(run, capsys, tally):
    """A function that tells how train --resume and evaluate --run refuse the run with another config.json, in one line."""
    def tell(text):
        (run / "config.json").write_text(text)
        before = digests(run)
        told = [refused_command(capsys, train, "--resume", run, "--epochs", 2),
                refused_command(capsys, evaluate.VERBS, "accuracy", "--run", run, "--num_test", 10)]
        assert told[0] == told[1].replace("best.pt", "checkpoint.pt") and digests(run) == before
        tally(MALFORMED, 2)
        return told[0].removeprefix("error: ").removesuffix("\n")
    return tell


def changed(run, **more):
    config = json.loads((run / "config.json").read_text())
    settings = more.pop("settings", {})
    return json.dumps(config | more | {"settings": config["settings"] | settings}, indent=2)


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "356", [356], 10**30])
def test_a_number_of_weights_that_is_none_is_refused(run, refusal, value):
    assert refusal(changed(run, num_weights=value)).startswith(
        f"{run / 'config.json'}: num_weights must be an integer in [1, 1000000000000], got {value!r}")


def test_a_number_of_weights_that_is_not_the_checkpoints_is_refused(run, refusal):
    there = run_folders.read_config(run)["num_weights"]
    assert refusal(changed(run, num_weights=there + 1)) == (
        f"{run / 'checkpoint.pt'} is not of the run that {run}/config.json tells of: their num_weights differ, "
        f"{there + 1} there and {there} here")


def test_of_a_classifier_and_a_list_that_are_not_the_checkpoints_the_entries_that_differ_are_told_whole(run, refusal):
    config = run_folders.read_config(run)
    there = config["classifier"]
    assert refusal(changed(run, classifier=there | {"init_std": "fan_in/3", "kl_over": "nothing"})).endswith(
        f"tells of: their classifier differ, init_std: 'fan_in/3' there and {there['init_std']!r} here, "
        f"kl_over: 'nothing' there and {there['kl_over']!r} here")
    assert refusal(json.dumps(config | {"class_names": [*config["class_names"][:9], "ten"]}, indent=2)).endswith(
        "their class_names differ, 9: 'ten' there and '9' here")


@pytest.mark.parametrize("name, value, told", [
    ("deterministic", True, "their deterministic differ, True there and False here"),
    ("init_from", "runs/other", "their init_from differ, 'runs/other' there and None here"),
    ("recipe_settings", {"epochs": 1}, "their recipe_settings differ, "),
    ("flags", {"alpha": 7}, "their flags differ, alpha: 7 there and "),
    ("environment", {"normals": "otherwise"}, "their environment.normals differ, 'otherwise' there and "),
])
def test_what_no_resumption_may_change_is_compared_with_the_checkpoint(run, refusal, name, value, told):
    config = run_folders.read_config(run)
    value = config[name] | value if isinstance(value, dict) and name != "recipe_settings" else value
    assert f"config.json tells of: {told}" in refusal(json.dumps(config | {name: value}, indent=2))


def test_what_a_resumption_may_change_is_not_compared(run):
    config = run_folders.read_config(run)
    flags = config["flags"] | dict.fromkeys(contradictions.MAY_CHANGE_ON_RESUME, "other")
    other = config | {"world_size": 4, "patience": 3, "precision": "bf16", "flags": flags, "device": "cuda",
                      "settings": config["settings"] | {"epochs": 9}}
    contradictions.check_same_run(run, other, "checkpoint.pt", config)
    for odd in (None, "x", [1]):
        contradictions.check_same_run(run, config, "checkpoint.pt", config | dict.fromkeys(("flags", "environment"), odd))


@pytest.mark.parametrize("name", ["num_weights", "recipe", "recipe_settings", "environment"])
def test_what_every_training_writes_must_be_there(run, refusal, name):
    config = json.loads((run / "config.json").read_text())
    del config[name]
    assert refusal(json.dumps(config)) == f"{run / 'config.json'} lacks {name}"


@pytest.mark.parametrize("old, new, says", [
    ('  "seed": 0', '  "seed": 0,\n  "seed": 1', "'seed' is given twice, as 0 and 1"),
    ('    "epochs": 1\n', '    "epochs": 1,\n    "epochs": 1\n', "'epochs' is given twice, as 1 and 1"),
    ('    "kind": "bayesian"', '    "kind": "bayesian", "kind": "noisy"', "'kind' is given twice, as 'bayesian' and 'noisy'"),
    ('  "patience": null', '  "patience": null, "patience": null, "patience": 3', "twice, as None and None and 3"),
])
def test_a_key_that_is_given_twice_is_refused_wherever_it_stands(run, refusal, old, new, says):
    text = (run / "config.json").read_text()
    assert old in text
    text = text.replace(old, new)
    told = refusal(text)
    assert told.startswith(f"{run / 'config.json'}, line") and told.endswith(f"{says}; keep one of them")
    assert str(line_of(text, new.split(":")[0])) in told.partition(": ")[0]


def test_a_key_that_no_training_writes_is_refused_with_its_line(run, refusal):
    path, texts = run / "config.json", [changed(run, num_wieghts=1), changed(run, settings={"epohcs": 3})]
    for text, name, full_name in zip(texts, ("num_wieghts", "epohcs"), ("num_wieghts at the top level", "settings.epohcs")):
        assert refusal(text) == f"{path}, line {line_of(text, name)}: no training writes {full_name}; remove it"


def test_a_stray_key_is_told_with_its_own_line_where_others_are_called_the_same(run, refusal):
    text, other, path = changed(run, epochs=9), changed(run, settings={"seed": 9}), run / "config.json"
    assert text.count('"epochs"') > 2
    number = next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith('  "epochs"'))
    assert refusal(text) == f"{path}, line {number}: no training writes epochs at the top level; remove it"
    number = line_of(other, '    "seed": 9')
    assert refusal(other) == f"{path}, line {number}: no training writes settings.seed; remove it"


def test_a_key_that_would_garble_the_terminal_is_shown_as_text(run, refusal):
    assert "no training writes \\x1b[2J at the top level; remove it" in refusal(changed(run, **{"\x1b[2J": 1}))


def test_a_training_writes_no_key_that_is_not_known(finished):
    assert run_config.unknown(run_folders.read_config(finished)) == []


@pytest.mark.parametrize("version, newer", [
    ("999", True), (__version__ + ".1", True), ("99.0.0.dev1", True), (__version__, False), (__version__ + "rc1", False),
    ("0.0.9", False), ("", False), ("x", False), ("٣", False), ("9" * 5000, None), (None, False), (3, True), ([], False)])
def test_versions_are_compared_as_numbers(version, newer):
    config = {"environment": {"versions": {"pyro-advbnn": version}}}
    assert newer is None or run_config.is_newer(config) == newer
    run_config.is_newer(config)
    assert not run_config.is_newer({"environment": {}}) and not run_config.is_newer({"environment": {"versions": 1}})


def test_what_a_newer_version_says_more_is_kept_and_noted(run, capsys):
    config = json.loads((run / "config.json").read_text())
    config["environment"]["versions"]["pyro-advbnn"] = "99.1"
    config |= {"new": 1, "settings": config["settings"] | {"newer": 2}}
    (run / "config.json").write_text(json.dumps(config))
    commands.run(evaluate.VERBS, ["accuracy", "--run", str(run), "--num_test", "10", "--num_steps", "1", "--num_samples", "1"])
    capsys.readouterr()
    train(resume=run, epochs=2)
    assert (f"note: {run / 'config.json'} is of version 99.1; this one, {__version__}, keeps but does not know new, "
            "settings.newer\n") in capsys.readouterr().out
    kept = run_folders.read_config(run)
    assert (kept["new"], kept["settings"]["newer"]) == (1, 2)


def test_a_best_checkpoint_that_is_gone_is_told_by_train_and_evaluate(run, capsys):
    told = f"note: {run / 'best.pt'} is gone: evaluate takes the last checkpoint until a better epoch comes\n"
    words = ["accuracy", "--run", str(run), "--num_test", "10", "--num_steps", "1", "--num_samples", "1"]
    commands.run(evaluate.VERBS, words)
    assert "note: " not in capsys.readouterr().out
    (run / "best.pt").unlink()
    commands.run(evaluate.VERBS, words)
    assert told in capsys.readouterr().out
    commands.run(evaluate.VERBS, [*words, "--checkpoint", "last"])
    assert "is gone" not in capsys.readouterr().out
    train(resume=run, epochs=2)
    assert told in capsys.readouterr().out


def test_the_checkpoint_that_a_training_starts_at_is_told(run, tmp_path, capsys):
    flags = {"num_train": 100, "width": 2, "epochs": 1, "num_steps": 1, "validation": 20, "device": "cpu"}
    train(init_from=run, out=tmp_path / "first", **flags)
    assert f"the weights start at {run / 'best.pt'}\n" in capsys.readouterr().out
    (run / "best.pt").unlink()
    train(init_from=run, out=tmp_path / "second", **flags)
    told = f"the weights start at {run / 'checkpoint.pt'}: {run / 'best.pt'}, which it tells of, is gone\n"
    assert told in capsys.readouterr().out
    shutil.rmtree(run)
    train(resume=tmp_path / "second", epochs=2)
    assert "the weights start" not in capsys.readouterr().out


def test_a_best_checkpoint_of_another_run_is_told_by_train(run, capsys):
    content = torch.load(run / "best.pt", weights_only=True)
    torch.save(content | {"config": content["config"] | {"seed": 7}}, run / "best.pt")
    train(resume=run, epochs=2)
    assert (f"note: {run / 'best.pt'} is not of the run that {run}/config.json tells of: their seed differ, "
            "0 there and 7 here: evaluate refuses it until a better epoch comes\n") in capsys.readouterr().out
