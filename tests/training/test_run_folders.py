"""Tests of run folders where they are read: a config.json of another format."""
import json

import pytest
from hostile import copied, digests, refused_command

from pyro_advbnn import evaluate
from pyro_advbnn.train import train


@pytest.mark.parametrize("number", [0, 1, "2", None])
def test_a_config_of_another_format_is_refused_in_one_line(finished, tmp_path, capsys, number):
    run = copied(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format": number}))
    before = digests(run)
    for command in ((train, "--resume", run), (evaluate.VERBS, "accuracy", "--run", run, "--num_test", 10)):
        told = refused_command(capsys, *command)
        assert told == f"error: {run / 'config.json'} is of format {number!r}; this version reads format 4 alone\n"
    assert digests(run) == before
