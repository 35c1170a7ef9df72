"""Tests of metrics.jsonl where a run goes on: rows of epochs that are done again are replaced, lost ones stay lost."""
import pytest
from hostile import copied

from pyro_advbnn.system import json_files
from pyro_advbnn.train import train


@pytest.mark.parametrize(("left", "after"), [([1, 2], [1, 2, 3]), ([1], [1, 2, 3]), ([], [2, 3])])
def test_a_run_that_goes_on_has_one_row_for_each_epoch_of_which_any_is_left(finished, tmp_path, left, after):
    """Of a run of one epoch; a file may have been copied before, and a killed run may have written a row more."""
    run = copied(finished, tmp_path / "run")
    json_files.write_jsonl(run / "metrics.jsonl", [{"epoch": epoch} for epoch in left])
    train(resume=run, epochs=3)
    rows = json_files.read_jsonl(run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == after and all("nll" in row for row in rows[-2:])
