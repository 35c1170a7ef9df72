"""Tests of config.json where it is read: of another format, or beside a checkpoint of another run."""
import json

import pytest
from hostile import copied, digests, refused_command

from pyro_advbnn import evaluate
from pyro_advbnn.train import train
from pyro_advbnn.training import flags, recipes, run_config, run_folders

MALFORMED = "malformed files refused or read right"


@pytest.fixture
def run(finished, tmp_path):
    return copied(finished, tmp_path / "run")


@pytest.fixture
def refusal(run, capsys, tally):
    """A function that tells how train --resume and evaluate --run refuse the run with another config.json, in one line."""
    def tell(**more):
        config = json.loads((run / "config.json").read_text())
        changed = config | more | {"settings": config["settings"] | more.get("settings", {})}
        (run / "config.json").write_text(json.dumps(changed))
        before = digests(run)
        told = [refused_command(capsys, train, "--resume", run, "--epochs", 2),
                refused_command(capsys, evaluate.VERBS, "accuracy", "--run", run, "--num_test", 10, "--checkpoint", "last")]
        assert told[0] == told[1] and digests(run) == before
        (run / "config.json").write_text(json.dumps(config))
        tally(MALFORMED, 2)
        return told[0].removeprefix("error: ").removesuffix("\n")
    return tell


@pytest.mark.parametrize("number", [0, 1, "2", None])
def test_a_config_of_another_format_is_refused_in_one_line(run, refusal, number):
    assert refusal(format=number) == f"{run / 'config.json'} is of format {number!r}; this version reads format 4 alone"


def test_the_recipes_of_the_flag_are_those_that_there_are():
    assert flags.ANNOTATIONS["recipe"].__args__[0].__args__ == tuple(recipes.RECIPES)


@pytest.mark.parametrize(("change", "says"), [
    ({"seed": 7}, "their seed differ, 7 there and 0 here"),
    ({"network": "vgg11"}, "their network differ, 'vgg11' there and 'convnet' here"),
    ({"width": 8}, "their width differ"),
    ({"num_weights": 5}, "their num_weights differ, 5 there"),
    ({"images_sha256": "x"}, "their images_sha256 differ"),
    ({"settings": {"alpha": 7}}, "their settings.alpha differ, 7 there"),
    ({"classifier": {"kind": "noisy"}}, "their classifier differ"),
])
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(run, refusal, change, says):
    told = refusal(**change)
    assert told.startswith(f"{run / 'checkpoint.pt'} is not of the run that {run}/config.json tells of: ") and says in told


def test_what_a_resumption_may_change_is_not_compared(run):
    config = run_folders.read_config(run)
    other = config | {"patience": 3, "precision": "bf16", "device": "cuda", "settings": config["settings"] | {"epochs": 9}}
    run_config.check_same_run(run, other, "checkpoint.pt", config)
