"""CIFAR-10 for real: a small VGG on 3,000 of its images learns, stops, goes on and can be evaluated."""
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_advbnn import evaluate, networks, train
from pyro_advbnn.bayes.settings import per_parameter_std
from pyro_advbnn.cli import commands
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.system import json_files
from pyro_advbnn.training import run_folders

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} with the real images is absent")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs that was stopped once on its way."""
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, SHARED / "unpack.py", folder, "cifar10"], check=True, capture_output=True)
    flags = ["--dataset=cifar10", f"--data_dir={folder}", "--network=vgg11", "--width=8", "--num_train=3500",
             "--validation=500", "--epochs=2", "--batch_size=50", "--num_steps=2", "--num_samples=2", "--learning_rate=0.005"]
    commands.run(train.train, [*flags, f"--out={folder / 'run'}", "--max_minutes=1e-9"])
    assert len(json_files.read_jsonl(folder / "run" / "metrics.jsonl")) < 2
    commands.run(train.train, ["--resume", str(folder / "run")])
    yield folder / "run"


def test_it_learns_well_above_chance_and_the_loss_falls(run):
    first, last = json_files.read_jsonl(run / "metrics.jsonl")
    assert last["nll"] < first["nll"] < math.log(10)
    assert last["held_out_accuracy"] > 0.2               # chance is 0.1, with a standard error of 0.013
    assert last["held_out_robust_accuracy"] < last["held_out_accuracy"]
    assert json_files.read_json(run / "config.json")["num_train"] == 3000


def test_the_kl_is_that_of_all_weights_computed_by_hand(run):
    classifier, config, _ = run_folders.load_classifier(run, "last")
    stds = per_parameter_std(config["classifier"]["prior_std"], networks.vgg11(width=8))
    expected = 0.0
    for name, q in classifier.posterior().items():
        mean, log_std, s0 = q.mean.double(), q.stddev.double().log(), stds[name]
        expected += (math.log(s0) - log_std + ((2 * log_std).exp() + mean**2) / (2 * s0**2) - 0.5).sum().item()
    assert classifier.kl().item() == pytest.approx(expected, rel=1e-5)
    assert sum(q.mean.numel() for q in classifier.posterior().values()) == config["num_weights"]


def test_it_is_evaluated_on_the_official_test_images(run):
    commands.run(evaluate.accuracy, ["--run", str(run), "--epsilons=0,8/256", "--num_test=200", "--num_steps=3",
                                "--num_samples=5"])
    rows = (run / "evaluation" / "accuracy.csv").read_text().splitlines()[1:]
    clean, robust = (float(row.split(",")[csv_tables.ROW_FIELDS.index("accuracy")]) for row in rows)
    assert clean > 0.15 and robust <= clean
