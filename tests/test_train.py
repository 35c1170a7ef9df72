"""Tests of train, training, configuration and progress: resuming, run folders, refusals, what a run leaves behind."""
import html
import json
import os
import sys
import warnings
from importlib import metadata

import numpy as np
import pytest
import torch
from hostile import refused_command, write_folder
from tiny_runs import (
    STEPS_PER_EPOCH,
    TINY,
    assert_same_run,
    build,
    content,
    equal,
    interrupt_after,
    metrics,
    refusal,
    run,
    snapshot,
    tiny,
    words,
)

from pyro_advbnn import datasets, networks
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.cli import commands
from pyro_advbnn.reporting import report
from pyro_advbnn.system import files, json_files
from pyro_advbnn.system.errors import InputError, Note
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints, configuration, construction, loop, run_folders, trainer
from pyro_advbnn.training.progress import Progress
from pyro_advbnn.training.trainer import NotFinite

SOON = 1e-9                                              # minutes


@pytest.mark.parametrize("flags", [
    {"defense": "advbnn", "augmentation": "crop_flip"},
    {"defense": "advbnn", "recipe": "authors", "prior_std": 0.1},
    {"defense": "bnn", "prior": "spike_and_slab", "prior_std": 0.5, "init_std": 0.05, "weight_decay": 0.01},
    {"defense": "rse", "recipe": "paper"},
    {"defense": "none", "precision": "bf16"},
    {"defense": "advbnn", "weight_averaging": 0.9},
    {"defense": "advbnn", "weight_averaging": 0.9, "optimizer": "natural"},
    {"defense": "adv", "augmentation": "crop_flip", "weight_averaging": 0.5, "optimizer": "sgd", "weight_decay": 0.01},
    {"defense": "advrse", "awp": 0.01, "awp_start": 0.4},
    {"defense": "advbnn", "awp": 0.01, "micro_batch": 10},
], ids=lambda flags: "-".join(map(str, flags.values())))
def test_a_run_that_is_stopped_after_every_step_and_resumed_ends_bit_for_bit_as_the_run_in_one_piece(tmp_path, flags):
    flags = flags | {"batch_size": 34}
    whole, pieces = run(tmp_path / "whole", **flags), run(tmp_path / "pieces", max_minutes=SOON, **flags)
    positions = []
    while True:
        at = content(pieces)["training"]
        positions.append((at["epochs_done"], at["steps_done"]))
        if at["epochs_done"] == TINY["epochs"]:
            break
        torch.manual_seed(len(positions))                # whatever another process has done to the streams
        np.random.seed(len(positions))
        train(resume=pieces, max_minutes=SOON)
    assert positions == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert_same_run(whole, pieces)


def left_behind(folder, monkeypatch, saves=1, **flags):
    """A run that died after the rows of its epochs, but before the last of so many checkpoints was written."""
    interrupt_after(monkeypatch, saves, before_writing=True)
    with pytest.raises(KeyboardInterrupt):
        run(folder, **flags)
    monkeypatch.undo()
    return folder


def test_rows_later_than_the_checkpoint_are_dropped_when_a_run_goes_on(tmp_path, monkeypatch, finished):
    cut = left_behind(tmp_path / "cut", monkeypatch, saves=2)
    assert [row["epoch"] for row in metrics(cut)] == [1, 2] and content(cut)["training"]["epochs_done"] == 1
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3}\n')
    train(resume=cut)
    assert_same_run(finished, cut)


@pytest.mark.parametrize("flags", [
    {"defense": "advbnn", "augmentation": "crop_flip"}, {"defense": "advrse"}, {"defense": "bnn", "recipe": "authors"},
    {"defense": "advbnn", "init_from": "adv"},
], ids=lambda flags: "-".join(flags.values()))
def test_a_run_that_dies_before_its_first_checkpoint_starts_again_and_ends_as_the_run_in_one_piece(
    tmp_path, monkeypatch, flags
):
    if "init_from" in flags:
        flags = flags | {"init_from": run(tmp_path / "adv", defense="adv", epochs=1)}
    whole, cut = run(tmp_path / "whole", **flags), left_behind(tmp_path / "cut", monkeypatch, **flags)
    assert [row["epoch"] for row in metrics(cut)] == [1] and not run_folders.has_checkpoint(cut)
    torch.manual_seed(7)                                 # whatever another process has done to the stream
    train(resume=cut)
    assert_same_run(whole, cut)


def test_a_run_whose_files_are_gone_is_refused(tmp_path, capsys):
    folder = run(tmp_path / "run")
    best = (folder / "best.pt").read_bytes()
    (folder / "best.pt").unlink()
    (folder / "checkpoint.pt").write_bytes(best)
    assert "checkpoint.pt holds no training to go on with" in refusal(capsys, "--resume", folder)
    (folder / "checkpoint.pt").unlink()
    assert "its checkpoint.pt is gone" in refusal(capsys, "--resume", folder)


def test_interrupted_before_its_first_checkpoint_a_run_says_how_to_start_it_again(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    interrupt_after(monkeypatch, 1, before_writing=True)
    with pytest.raises(SystemExit) as end:
        commands.run(train, [*map(str, words(TINY)), "--out", str(folder)])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (130, "interrupted\n")
    assert f"go on with --resume {folder} from the beginning" in out
    monkeypatch.undo()
    before = snapshot(folder)
    train(resume=folder, dry_run=True)
    assert snapshot(folder) == before                    # the row of the epoch that was lost, too
    capsys.readouterr()
    train(resume=folder, max_minutes=SOON)
    assert f"{folder} has trained nothing yet and starts from the beginning" in capsys.readouterr().out
    train(resume=folder)
    assert "starts from the beginning" not in capsys.readouterr().out


def test_a_resumption_that_is_refused_or_dry_leaves_later_rows_where_they_are(tmp_path, capsys):
    folder = run(tmp_path / "run", defense="none", patience=4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3}\n{"epoch": 4}\n')       # later than the checkpoint
    before = snapshot(folder)
    capsys.readouterr()
    assert "has done 2 epochs of 2" in refusal(capsys, "--resume", folder)
    assert "cannot be given" in refusal(capsys, "--resume", folder, "--alpha", 1)
    train(resume=folder, epochs=3, dry_run=True)
    assert json.loads(capsys.readouterr().out)["settings"]["epochs"] == 3
    assert snapshot(folder) == before
    train(resume=folder, epochs=3)
    assert [row.keys() >= {"epoch", "nll"} for row in metrics(folder)] == [True] * 3


def test_a_run_is_finished_after_all_its_epochs_and_not_before(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert not run_folders.is_finished(folder)           # there is none
    left_behind(folder, monkeypatch, defense="none")
    assert not run_folders.is_finished(folder)
    train(resume=folder, max_minutes=SOON)
    assert not run_folders.is_finished(folder)
    train(resume=folder)
    assert run_folders.is_finished(folder)
    train(resume=folder, epochs=3, max_minutes=SOON)
    assert not run_folders.is_finished(folder)


def test_checkpoints_between_epochs_ends_change_nothing(tmp_path, monkeypatch, finished):
    saves = []
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    real = run_folders.save_position
    monkeypatch.setattr(run_folders, "save_position", lambda folder, training, *others: (
        saves.append((training.epochs_done, training.steps_done)), real(folder, training, *others)))
    assert_same_run(finished, run(tmp_path / "often"))
    assert saves == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]


def test_equal_seeds_give_equal_runs_and_other_seeds_others(tmp_path, finished):
    assert_same_run(finished, run(tmp_path / "again"))
    assert not equal(content(finished)["state"], content(run(tmp_path / "other", seed=1))["state"])


def test_the_config_says_where_the_kl_is_an_estimate(tmp_path):
    config, training, _ = build(prior="scale_mixture", prior_std=0.5)
    assert config["classifier"]["kl"] == "Monte-Carlo estimate" and config["settings"]["prior"] == "scale_mixture"
    assert len(training.images) == 100


def test_a_number_of_held_out_images_that_nobody_chose_is_a_fifth_at_most():
    config, images, held_out = configuration.configure({"num_train": 100})
    assert (len(images), len(held_out), config["num_held_out"]) == (80, 20, 20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished") / "run")


def test_a_run_folder_holds_its_config_one_row_for_each_epoch_and_two_checkpoints(finished):
    assert {path.name for path in finished.iterdir()} == {".lock", "config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"}
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    layers = [name for name, module in networks.convnet().named_modules() if list(module.parameters(recurse=False))]
    for row in map(json.loads, lines):
        assert row.keys() == {
            "epoch", "nll", "kl", "batch_accuracy", "kl_weight", "loss", "train_accuracy", "train_robust_accuracy",
            "held_out_accuracy", "held_out_robust_accuracy", "learning_rate", "images_per_second",
            "peak_memory_mib", "kl_per_image", "snr",
            *(f"{name}/{layer}" for name in ("kl_per_image", "snr") for layer in layers)}
        assert row["kl_per_image"] == row["loss"] - row["nll"]
        assert all(0 <= value <= 1 for name, value in row.items() if name.endswith("accuracy"))
        assert row["nll"] < row["loss"] and row["loss"] == pytest.approx(row["nll"] + row["kl_weight"] * row["kl"])
        assert row["images_per_second"] > 0 and row["peak_memory_mib"] > 0
    for name in ("checkpoint.pt", "best.pt"):
        torch.load(finished / name, weights_only=True)
    assert not content(finished)["training"]["sums"].any()           # each row is of its epoch alone


def test_how_a_run_went_on_is_recorded_and_what_changed_is_reported(tmp_path, monkeypatch):
    """For what came before was trained otherwise: one command does not make such a run again."""
    folder = run(tmp_path / "runs" / "a", epochs=1)
    train(resume=folder, epochs=3, max_minutes=SOON)
    monkeypatch.setattr("pyro_advbnn.system.environment._git_commit", lambda: "another")
    train(resume=folder, epochs=3)
    train(resume=folder, epochs=4, micro_batch=10)
    config = json_files.read_json(folder / "config.json")
    assert (config["settings"]["epochs"], config["flags"]["epochs"], config["micro_batch"]) == (4, 4, 10)
    assert [row["epoch"] for row in metrics(folder)] == [1, 2, 3, 4]
    assert [(each["after_epoch"], each["after_step"], each["changed"]) for each in config["resumed"]] == [
        (1, 0, {"epochs": [1, 3]}), (1, 1, {}), (3, 0, {"epochs": [3, 4], "micro_batch": [None, 10]})]
    commits = [each["git_commit"] == "another" for each in (config["environment"], *(
        each["environment"] for each in config["resumed"]))]
    assert commits == [False, False, True, True]
    page = html.unescape(report.write(folder).read_text())
    commands = [line for line in page.splitlines() if "pyro_advbnn.train" in line]
    assert "--epochs 1 " in commands[0] and "--epochs 4" not in commands[0] and "micro_batch" not in commands[0]
    assert "--resume runs/a --epochs 3    # stopped after epoch 1, step 0 of the next" in commands[1]
    assert "--resume runs/a --epochs 4 --micro_batch 10    # stopped after epoch 3" in commands[2] and len(commands) == 3


def test_the_config_records_flags_versions_hardware_commit_and_seed(finished):
    config = json_files.read_json(finished / "config.json")
    assert TINY.items() <= config["flags"].items()
    assert (config["seed"], config["num_train"], config["num_held_out"], config["subset"]) == (0, 100, 20, 120)
    assert config["settings"]["epochs"] == 2
    assert config["classifier"]["kl"] == "closed form"
    assert config["num_weights"] == len(content(finished)["state"]["mean"])
    assert config["environment"]["versions"]["torch"] == metadata.version("torch")
    assert {"git_commit", "hardware", "device"} <= set(config["environment"])


def test_the_row_gives_the_rate_and_the_kl_weight_of_the_epochs_last_step(finished):
    settings, (_, last) = json_files.read_json(finished / "config.json")["settings"], metrics(finished)
    progress = (2 * STEPS_PER_EPOCH - 0.5) / (2 * STEPS_PER_EPOCH)
    cosine = 0.5 + 0.5 * np.cos(np.pi * (progress - 0.1) / 0.9)
    assert last["learning_rate"] == pytest.approx(0.01 * cosine)
    assert last["kl_weight"] == pytest.approx(settings["alpha"] / 100)


def steps_of(monkeypatch):
    """A list that takes (the labels, the parts of the loss) of every step from now on."""
    seen, real = [], trainer.step

    def step(classifier, optimizer, x, y, **how):
        seen.append((y, real(classifier, optimizer, x, y, **how)))
        return seen[-1][1]

    monkeypatch.setattr(trainer, "step", step)
    return seen


def test_the_averages_of_an_epoch_weigh_every_image_alike(monkeypatch):
    _, training, _ = build(batch_size=30)                # of 100 images the last batch has ten
    steps = steps_of(monkeypatch)
    list(training.epoch())
    assert [len(y) for y, _ in steps] == [30, 30, 30, 10]
    for name in ("nll", "kl", "loss"):
        expected = sum(len(y) * getattr(parts, name).item() for y, parts in steps) / 100
        assert training.averages()[name] == pytest.approx(expected)


def test_every_epoch_has_all_images_in_an_order_of_its_own(monkeypatch):
    _, training, _ = build()
    steps = steps_of(monkeypatch)
    for _ in range(2):
        list(training.epoch())
    first, second = (torch.cat([y for y, _ in part]) for part in (steps[:STEPS_PER_EPOCH], steps[STEPS_PER_EPOCH:]))
    assert torch.equal(first.bincount(), second.bincount()) and not torch.equal(first, second)


def test_an_epoch_is_trained_in_training_mode_whatever_mode_the_classifier_was_left_in():
    _, training, _ = build(defense="adv")
    training.classifier.eval()
    next(training.epoch())
    assert all(module.training for module in training.classifier.modules())
    assert training.classifier.network.features[1].num_batches_tracked == 1


@pytest.mark.parametrize(("defense", "best"), [("advbnn", 3), ("adv", 3), ("advrse", 3), ("none", 4), ("rse", 4), ("bnn", 4)])
def test_best_is_the_epoch_of_the_best_robust_accuracy_or_of_the_best_clean_one(tmp_path, monkeypatch, defense, best):
    held_out = iter([(0.5, 0.1), (0.3, 0.3), (0.4, 0.3), (0.9, 0.2), (0.9, 0.2)])
    states = []

    def measure(classifier, images, settings, *, seed, batch_size, precision):
        assert len(images) == 20                         # of the training set as many as are held out
        if len(measured) % 2:
            states.append({name: value.clone() for name, value in classifier.state_dict().items()})
            measured.append(seed)
            return next(held_out)
        measured.append(seed)
        return 0.0, 0.0

    measured = []
    monkeypatch.setattr(loop, "accuracies", measure)
    folder = run(tmp_path / "run", defense=defense, epochs=5)
    assert content(folder, "best.pt")["best"]["epoch"] == content(folder)["best"]["epoch"] == best
    assert measured == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]    # the training images, then those held out, by a seed of the epoch's
    assert equal(content(folder, "best.pt")["state"], states[best - 1])


def test_patience_stops_the_run_and_a_larger_one_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "accuracies", lambda *a, **k: (0.5, 0.5))
    folder = run(tmp_path / "run", epochs=6, patience=2)
    assert [row["epoch"] for row in metrics(folder)] == [1, 2, 3] and run_folders.is_finished(folder)
    capsys.readouterr()
    before = snapshot(folder)
    assert "--patience" in refusal(capsys, "--resume", folder)
    assert snapshot(folder) == before
    train(resume=folder, patience=4, max_minutes=SOON)
    assert not run_folders.is_finished(folder)
    train(resume=folder)
    assert [row["epoch"] for row in metrics(folder)] == [1, 2, 3, 4, 5]


def test_nothing_held_out_leaves_no_best_and_trains_on_every_image(tmp_path):
    folder = run(tmp_path / "run", validation=0)
    assert not (folder / "best.pt").exists() and content(folder)["best"] is None
    assert json_files.read_json(folder / "config.json")["num_train"] == 120
    assert all(row["held_out_accuracy"] is None and row["held_out_robust_accuracy"] is None for row in metrics(folder))
    train(resume=folder, epochs=3)
    assert len(metrics(folder)) == 3


def test_max_minutes_stops_between_steps_with_a_checkpoint_and_says_how_to_go_on(tmp_path, capsys):
    folder = run(tmp_path / "a run", max_minutes=SOON)
    out = capsys.readouterr().out
    assert "stopped in epoch 1 after step 1" in out and f"go on with --resume '{folder}'" in out
    assert content(folder)["training"]["steps_done"] == 1 and metrics(folder) == []


def test_training_never_opens_the_test_split(tmp_path, monkeypatch):
    real, opened = datasets.load, []
    monkeypatch.setattr(datasets, "load", lambda *a, **k: (opened.append(a[1]), real(*a, **k))[1])
    folder = run(tmp_path / "run", epochs=1)
    train(resume=folder, epochs=2)
    assert opened == ["train", "train"]


def test_the_images_held_out_are_not_trained_on():
    _, training, held_out = build()
    assert (len(training.images), len(held_out)) == (100, 20)
    rows = {image.numpy().tobytes() for image in training.images.images}
    assert not rows & {image.numpy().tobytes() for image in held_out.images}


def test_another_seed_takes_another_part_of_the_training_images():
    digests = {configuration.load_images("digits", None, None, 120, 20, seed, "cpu")[2] for seed in (0, 1)}
    assert len(digests) == 2


def test_without_out_the_run_folder_is_named_by_data_set_and_defence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(**tiny("none") | {"epochs": 1, "defense": "none"})
    folder, = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-none-2") and (folder / "checkpoint.pt").exists()


def test_a_dry_run_prints_the_config_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(**TINY, dry_run=True)
    config = json.loads(capsys.readouterr().out)
    assert config["num_train"] == 100 and config["settings"]["width"] == 4
    assert list(tmp_path.iterdir()) == []


def test_the_first_lines_say_what_was_resolved(tmp_path, capsys):
    run(tmp_path / "run", epochs=1, defense="advbnn")
    out = capsys.readouterr().out
    for part in ("advbnn on digits", "N = 100", "20 held out", "1,206 weights", "alpha 0.02 / N", "cosine", "device cpu"):
        assert part in out
    assert "cannot reach" not in out


@pytest.mark.parametrize(("counts", "held_out", "told"), [
    ((60, 20), 16, "the classes have from 16 (1) to 48 (0) training images; held-out accuracy is not balanced"),
    ((60, 20), 0, "the classes have from 20 (1) to 60 (0) training images\n"), ((40, 25), 16, "")])
def test_classes_of_very_different_size_are_told_with_what_held_out_accuracy_then_means(
        counts, held_out, told, tmp_path, capsys):
    labels = np.repeat(np.arange(2), counts)
    images = np.zeros((len(labels), 8, 8, 1), np.uint8)
    np.savez(tmp_path / "rare.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    flags = {"defense": "none", "num_train": None, "validation": held_out, "epochs": 1, "dataset": "npz"}
    run(tmp_path / "run", data_dir=tmp_path / "rare.npz", **flags)
    out = capsys.readouterr().out
    assert told in out if told else "the classes have" not in out


def test_noise_and_pgd_training_together_are_said_to_be_just_that(tmp_path, capsys):
    folder = run(tmp_path / "run", epochs=1, defense="advrse", attack_samples=3)
    out = capsys.readouterr().out
    assert "advrse on digits" in out and "3 draws per gradient" in out and "KL" not in out and "kl " not in out
    classifier, _, _ = run_folders.load_classifier(folder)
    x = torch.rand(2, 1, 8, 8)
    assert not torch.equal(classifier(x), classifier(x))


def test_an_attack_that_cannot_reach_the_ball_is_told_once(tmp_path, capsys):
    run(tmp_path / "run", step_size=0.007)
    assert capsys.readouterr().out.count("cannot reach the border") == 1


# Starting from another run, and networks of the user's own

OWN = """
from torch import nn
calls = []
def small(num_classes):
    calls.append(num_classes)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
"""


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    yield "own_networks:small"
    sys.modules.pop("own_networks", None)


def assert_starts_at(classifier, network):
    means = {name: normal.mean for name, normal in classifier.posterior().items()}
    assert equal(means, {name: p.detach() for name, p in network.named_parameters()})
    assert equal(dict(classifier.network.named_buffers()), dict(network.named_buffers()))


def test_the_posterior_mean_starts_at_exactly_the_network_of_another_run(tmp_path):
    source = run(tmp_path / "adv", defense="adv")
    network = checkpoints.load(source / "best.pt").mean_network()
    _, training, _ = build(defense="advbnn", init_from=source)
    assert_starts_at(training.classifier, network)
    assert network.features[1].running_mean.abs().sum() > 0
    assert (training.epochs_done, training.steps_done) == (0, 0)
    run(tmp_path / "advbnn", defense="advbnn", init_from=source, epochs=1)
    source.rename(tmp_path / "gone")                     # a run that began elsewhere can be resumed without it
    train(resume=tmp_path / "advbnn", epochs=2)


def test_of_a_posterior_a_run_starts_at_the_mean(finished):
    source = checkpoints.load(finished / "best.pt")
    assert source.posterior()
    assert_starts_at(build(init_from=finished)[1].classifier, source.mean_network())


def test_a_std_that_is_a_share_of_each_weight_is_one_of_the_other_runs_and_is_resumed(tmp_path):
    source = run(tmp_path / "adv", defense="adv", epochs=1)
    flags = {"defense": "advbnn", "init_from": source, "init_std": "share/10"}
    classifier = build(**flags)[1].classifier
    expected = BayesianClassifier(checkpoints.load(source / "best.pt").mean_network(), init_std="share/10")
    assert torch.equal(classifier.log_std, expected.log_std)
    folder = run(tmp_path / "advbnn", **flags, epochs=1)
    before = content(folder)["state"]
    source.rename(tmp_path / "gone")
    assert equal(checkpoints.load(folder / "checkpoint.pt").state_dict(), before)
    train(resume=folder, epochs=2)
    assert (content(folder)["state"]["log_std"] - before["log_std"]).abs().max() < 0.5 < expected.log_std.std()


def test_a_run_starts_at_a_network_of_the_users_own(tmp_path, own_network):
    flags = {"network": own_network, "width": None}
    source = run(tmp_path / "adv", defense="adv", **flags)
    _, training, _ = build(defense="advbnn", init_from=source, **flags)
    same_architecture = training.classifier.mean_network()
    assert_starts_at(training.classifier, checkpoints.load(source / "best.pt", same_architecture).network)


def test_a_start_from_a_network_that_has_learnt_from_held_out_images_is_noted(finished):
    with pytest.warns(Note, match="held-out accuracies may be too high"):
        build(init_from=finished, seed=1)
    with warnings.catch_warnings(action="error"):
        build(init_from=finished)


def test_a_start_from_a_network_with_noise_takes_its_weights_alone(tmp_path):
    noisy = run(tmp_path / "rse", defense="rse", epochs=1)
    _, training, _ = build(defense="advbnn", init_from=noisy)
    assert_starts_at(training.classifier, checkpoints.load(noisy / "best.pt").mean_network())
    assert "noise_before" not in training.classifier.settings()


@pytest.mark.parametrize("flags", [{"width": 5}, {"network": "vgg16", "dataset": "npz"}], ids=["width", "network"])
def test_a_start_from_another_architecture_is_refused(tmp_path, finished, flags):
    if flags.get("dataset"):
        flags = flags | {"data_dir": colours(tmp_path), "num_train": None, "validation": 4}
    with pytest.raises(InputError, match=r"is not the one that is to be trained: \S+ has the shape \(.*\) there, \(.*\) here"):
        build(init_from=finished, **flags)


ODD = """
import threading
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

def soft(n):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.Softmax(1))

def wide(n):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n + 1))

def lazy(n):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(n))

def bare(n):
    return nn.Flatten()

class Broken(nn.Linear):
    def forward(self, x):
        raise AssertionError

def broken(n):
    return Broken(2, n)

def closure(n):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, n))
    convolution = network[0]
    convolution.forward = lambda x: nn.functional.conv2d(x, convolution.weight, convolution.bias)
    return network

class Unused(nn.Sequential):
    def __init__(self, n):
        super().__init__(nn.Flatten(), nn.Linear(64, n))
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self[1](self[0](x))

class UsedInTraining(Unused):
    def forward(self, x):
        return super().forward(x) + (self.head(self[0](x)).mean() if self.training else 0)

class SplitNorm(nn.BatchNorm2d):
    def __init__(self, channels):                        # as of AdvProp: a norm of its own for the second half of a batch
        super().__init__(channels)
        self.other = nn.BatchNorm2d(channels)

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        first, second = x.chunk(2)
        return torch.cat([super().forward(first), self.other(second)])

def split(n):
    return nn.Sequential(nn.Conv2d(1, 4, 3), SplitNorm(4), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, n))

class Experts(Unused):
    def __init__(self, n):
        super().__init__(n)
        self.head = nn.Linear(64, n)                     # for all but the first eight images

    def forward(self, x):
        x = self[0](x)
        return torch.cat([self[1](x[:8]), self.head(x[8:])] if len(x) > 8 else [self[1](x)])

def frozen(n):
    network = Unused(n)
    network.head.requires_grad_(False)
    return network

class Reads(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.convolution, self.end = nn.Conv2d(1, 4, 3), nn.Linear(4, n)

    def forward(self, x):
        return self.end(nn.functional.conv2d(x, self.convolution.weight, self.convolution.bias).amax((2, 3)))

class ReadsToo(Reads):
    def forward(self, x):
        return self.end((self.convolution(x) * self.convolution.weight.mean()).amax((2, 3)))

class Cosines(nn.Linear):
    def __init__(self, n):
        super().__init__(64, n, bias=False)
        nn.init.uniform_(self.weight)

    def forward(self, x):
        return nn.functional.linear(nn.functional.normalize(x.flatten(1)), nn.functional.normalize(self.weight))

class Recurrent(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.rows, self.end = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, n)

    def forward(self, x):
        return self.end(self.rows(x[:, 0])[0][:, -1])

class Mixed(nn.Sequential):
    def __init__(self, n):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, n).double())

    def forward(self, x):
        return self[2](self[1](self[0](x)).double())

class Later(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.layer = nn.Linear(64, n)

    def forward(self, x):
        return checkpoint(self.layer, x.flatten(1), use_reentrant=False)

def parallel(n):
    return nn.DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(64, n)))

class Locked(nn.Sequential):
    def __init__(self, n):
        super().__init__(nn.Flatten(), nn.Linear(64, n))
        self.lock = threading.Lock()
"""


@pytest.fixture
def odd_networks(tmp_path, monkeypatch):
    (tmp_path / "odd_networks.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_networks", raising=False)


@pytest.mark.parametrize(("name", "words"), [
    ("soft", "must return logits, these are probabilities"), ("wide", "here (1, 10), got a tensor (1, 11)"),
    ("lazy", "has no shape yet"), ("bare", "has no parameters"),
    ("Later", "cannot be called with weights that are drawn anew in each call"),
    ("broken", "the network cannot take images of (1, 8, 8): AssertionError"), ("Recurrent", "recurrent layers"),
    ("closure", "training leaves out 0.weight, 0.bias, a tensor (4,) from outside"),
    ("closure --defense=rse", "training leaves out 0.weight, 0.bias, a tensor (4,) from outside"),
    ("closure --defense=none --weight_averaging=0.9", "training leaves out 0.weight"),
    ("Unused", "training leaves out head.weight, head.bias"), ("Unused --defense=adv", "freeze by requires_grad_(False)"),
    ("bare --defense=rse", "no parameters"), ("Reads --defense=advrse", "layers that the network does not call"),
    ("parallel", "a DataParallel wraps: pass its .module"), ("parallel --defense=none", "pass its .module"),
    ("Locked", "its attribute lock cannot: cannot pickle"),
    ("frozen --kl_over=last", "kl_over='last' counts nothing: the last layer is deterministic")])
def test_networks_that_cannot_be_trained_are_refused_before_any_work(tmp_path, odd_networks, capsys, name, words):
    flags = f"--network=odd_networks:{name} --num_train=100".split()
    told = refused_command(capsys, train, *flags, "--out", tmp_path / "run")
    assert words in told and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "defense", "told"), [
    ("Recurrent", "adv", ""), ("Mixed", "adv", ""), ("Recurrent", "rse", "noise before 1 Linear"),
    ("frozen", "advbnn", ""), ("UsedInTraining", "bnn", ""), ("Experts", "adv", ""), ("split", "adv", ""),
    ("Reads", "bnn", ""), ("ReadsToo", "advrse", "noise before 1 Conv2d"),
    ("Cosines", "adv", "note: the classifier's logits all lie between 0 and 1"), ("Cosines", "bnn", "note: the")])
def test_networks_that_are_only_odd_are_trained(tmp_path, odd_networks, capsys, name, defense, told):
    flags = f"--network=odd_networks:{name} --num_train=60 --validation=10 --epochs=1 --num_steps=1 --defense={defense}"
    commands.run(train, [*flags.split(), f"--out={tmp_path / 'run'}"])
    out = capsys.readouterr().out
    assert told in out and out.count("note: ") == told.count("note: ")


@pytest.mark.parametrize("defense", ["advbnn", "none"])
def test_the_trial_draws_nothing_from_the_streams_of_the_training(monkeypatch, defense):
    states = []
    for trial in (construction._try_gradient, lambda *arguments: None):
        monkeypatch.setattr(construction, "_try_gradient", trial)
        _, training, _ = build(defense=defense)
        next(training.epoch())
        states.append(training.classifier.state_dict())
    assert equal(*states)


def test_a_network_of_the_users_own_is_imported_again_only_where_the_flag_is_given_again(tmp_path, own_network, capsys):
    folder = run(tmp_path / "run", network=own_network, width=None)
    sys.modules.pop("own_networks")
    capsys.readouterr()
    assert f"give --network {own_network} again" in refusal(capsys, "--resume", folder, "--epochs", 3)
    assert "own_networks" not in sys.modules
    train(resume=folder, epochs=3, network=own_network)
    assert len(metrics(folder)) == 3
    capsys.readouterr()
    assert "not own_networks:other" in refusal(capsys, "--resume", folder, "--network", "own_networks:other")


def colours(folder, classes=2, size=(32, 32)):
    random = np.random.RandomState(0)
    arrays = {f"{kind}_{split}": value for split in ("train", "test") for kind, value in (
        ("x", random.randint(0, 256, (24, *size, 3)).astype(np.uint8)), ("y", np.arange(24) % classes))}
    np.savez(folder / "colours.npz", **arrays)
    return folder / "colours.npz"


def test_a_torchvision_network_trains_on_images_of_ones_own(tmp_path):
    flags = {"dataset": "npz", "data_dir": colours(tmp_path), "network": "torchvision:resnet18", "width": None}
    folder = run(tmp_path / "run", **flags, num_train=None, validation=4, batch_size=10, epochs=1, num_steps=1)
    assert json_files.read_json(folder / "config.json")["num_weights"] == 11_177_538
    assert len(metrics(folder)) == 1


def test_batches_and_held_out_images_are_attacked_by_pgd_as_the_settings_say():
    flags = {"epsilon": 0.5, "step_size": 0.2, "num_steps": 5}
    assert build(**flags, attack_samples=3)[1].attack == PGD(0.5, 0.2, 5, 3)
    _, training, held_out = build(defense="adv", **flags)
    images, linear = held_out.in_memory(), Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    told = datasets.Images(images.images, linear(images.images / 255).argmax(-1), images.class_names)
    clean, robust = loop.accuracies(linear, told, training.settings, seed=0)
    assert clean == 1 and robust == 0


@pytest.mark.parametrize(("flags", "named"), [
    ({"batch_size": 10}, "--batch_size 10 leaves one of the 21 images alone"), ({"batch_size": 1}, "--batch_size 1 leaves one"),
    ({"batch_size": 9, "micro_batch": 4}, "--batch_size 9 with --micro_batch 4 leaves one of the 21"),
    ({"batch_size": 7, "micro_batch": 1}, "--batch_size 7 with --micro_batch 1 leaves one of the 21")])
def test_an_image_alone_is_refused_where_the_network_cannot_be_trained_on_it(flags, named, tmp_path, capsys):
    flags |= {"dataset": "npz", "data_dir": colours(tmp_path), "validation": 3}
    line = refusal(capsys, *words(flags | {"network": "torchvision:resnet18", "out": tmp_path / "run"}))
    assert named in line and "more than 1 value per channel" in line
    assert not (tmp_path / "run").exists()
    _, training, _ = build(**flags | {"network": "vgg11", "num_train": None, "defense": "none"})
    list(training.epoch())                               # features of 2x2 are enough


def test_the_last_good_checkpoint_is_the_one_before_the_step_and_a_run_can_go_on_from_it(
        tmp_path, monkeypatch, capsys, finished):
    real = loop.Course.finish_epoch

    def finish_and_break(course, write_row):
        real(course, write_row)
        course.training.classifier.log_std.data.fill_(float("nan"))

    monkeypatch.setattr(loop.Course, "finish_epoch", finish_and_break)
    with pytest.raises(SystemExit) as end:
        commands.run(train, [*map(str, words(TINY)), "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "at step 1 of epoch 2" in err
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoint.pt'}" in err and err.count("\n") == 1
    monkeypatch.undo()
    train(resume=tmp_path / "run")
    assert_same_run(finished, tmp_path / "run")


def test_weights_that_are_lost_at_an_epochs_end_are_never_saved(tmp_path, monkeypatch):
    config, training, _ = build()
    real, steps = training._step, []

    def step(x, y):
        real(x, y)
        steps.append(1)
        if len(steps) == STEPS_PER_EPOCH:
            training.classifier.mean.data[3] = float("inf")

    monkeypatch.setattr(training, "_step", step)
    with pytest.raises(NotFinite, match="mean is not finite after step 4 of epoch 1"):
        list(training.epoch())
    with pytest.raises(NotFinite):
        run_folders.save_position(tmp_path, training, config, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "message"), [
    ("--epoch 2", "did you mean --epochs?"),
    ("--learning_rate 0", "--learning_rate must be a number > 0"),
    ("--defense advbn", "--defense must be one of none, adv, rse, bnn, advbnn, advrse, got 'advbn'"),
    ("--optimizer natural --defense adv", "--optimizer natural needs a posterior, and --defense adv has none"),
    ("--optimizer natural --alpha 0", "--alpha 0 needs --optimizer adam or sgd: natural divides by alpha"),
    ("--optimizer natural --alpha 1e-300 --prior_std 1", "num_train / alpha must lie in [0, 1e+30]"),
    ("--optimizer natural --weight_decay 0.1", "--weight_decay means nothing for --optimizer natural: the means have a prior"),
    ("--optimizer sgd --rho 0.1", "--rho means nothing for --optimizer sgd"),
    ("--precision tf32 --device cpu", "precision tf32 needs a GPU"),
    ("--cuda_graphs on --device cpu", "--cuda_graphs on needs a GPU"),
    ("--prior_std nonsense", "--prior_std must be auto, a number > 0, fan_in, or a multiple such as fan_in/10, got 'nons"),
    ("--prior spike_and_slab", "prior spike_and_slab needs prior_std to be one number > 0, got 'auto'"),
    ("--init_std 50", "init_std must lie between 1e-08 and 10"),
    ("--init_std share/10", "--init_std share/10 needs --init_from: it is a share of each weight of a trained network"),
    ("--init_std share/0", "--init_std must be a number > 0, fan_in, or a multiple such as fan_in/10 (of each weight's size: "),
    ("--prior_std share/10 --init_from nowhere",
     "--prior_std must be auto, a number > 0, fan_in, or a multiple such as fan_in/10"),
    ("--network vgg --dataset npz --data_dir nowhere.npz", "network must be one of vgg11"),   # no image is needed to tell
    ("--network vgg16", "the network cannot take images of (1, 8, 8): the network takes images of 32 or more"),
    ("--network torchvision:nonsense", "torchvision has no classification model 'nonsense'"),
    ("--network torchvision:resnet18", "takes 3 channels, the images have 1"),
    ("--network torchvision:resnet18 --width 8 --dataset npz --data_dir nowhere.npz", "width is only for"),
    ("--network no_such_module:function", "cannot be built"),
    ("--num_train 1438", "--num_train 1438 is more than the 1437 training images of digits"),
    ("--num_train 100 --validation 100", "--validation 100 leaves a class no image to train on: of 100 images 90 at most can"),
    ("--patience 2 --validation 0", "--patience 2 needs held-out images"),
    ("--patience 2 --num_train 10", "--patience 2 needs held-out images"),
    ("--awp_start 0.5", "--awp_start means nothing without --awp"),
    ("--dataset folder --data_dir nowhere --workers 2 --loading memory", "--workers means nothing for --loading memory"),
    ("--device gpu", "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    ("--device cuda:01", "--device must be auto, cpu, cuda or cuda:N, got 'cuda:01'"),
    ("--dataset npz", "dataset npz needs --data_dir"),
    ("--dataset npz --data_dir nowhere.npz", "nowhere.npz: no such file"),
    ("--image_size 16", "--image_size is only for dataset folder"),
    ("--init_from nowhere", "nowhere is no run folder: it has no config.json"),
    ("--resume nowhere", "nowhere is no run folder: it has no config.json"),
])
def test_what_cannot_be_done_is_refused_in_one_line_before_anything_is_made(
    given, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *given.split())
    assert list(tmp_path.iterdir()) == []


def test_workers_that_images_in_memory_have_no_use_for_do_not_hinder_to_resume(tmp_path):
    data = write_folder(tmp_path / "data", {"train/cat": 30, "train/dog": 30})
    of_folder = {"dataset": "folder", "data_dir": data, "image_size": 8, "workers": 2}
    folder = run(tmp_path / "run", num_train=60, validation=10, network="convnet", epochs=1, **of_folder)
    assert json_files.read_config(folder)["loading"] == "memory"
    train(resume=folder, epochs=2, workers=1)
    assert len(metrics(folder)) == 2


@pytest.mark.parametrize(("images", "flags", "message"), [
    ({"classes": 1}, [], "DATA: there must be at least two classes to tell apart, got '0' alone"),
    ({"size": (32, 24)}, ["--augmentation", "resized_crop"], "augmentation resized_crop needs square images, got 24x32")])
def test_images_that_no_training_can_take_are_refused_before_a_run_folder_is_made(images, flags, message, tmp_path, capsys):
    data = colours(tmp_path, **images)
    line = refusal(capsys, "--dataset", "npz", "--data_dir", data, *flags, "--out", tmp_path / "run")
    assert message.replace("DATA", str(data)) in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_refused_and_unchanged(tmp_path, capsys, finished):
    before = snapshot(finished)
    assert "is not overwritten; choose another --out (train goes on with --resume)" in refusal(
        capsys, *words(TINY), "--out", finished)
    assert snapshot(finished) == before
    (tmp_path / "file").write_text("mine")
    assert "is not overwritten" in refusal(capsys, *words(TINY), "--out", tmp_path / "file")
    assert "cannot be written: Not a directory" in refusal(capsys, *words(TINY), "--out", tmp_path / "file" / "run")
    (tmp_path / "empty").mkdir()
    assert (run(tmp_path / "empty", epochs=1, defense="none") / "checkpoint.pt").exists()


def test_a_folder_with_nothing_but_a_file_that_a_crash_left_unfinished_is_taken(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    folder = tmp_path / "run"
    folder.mkdir()
    with files.replacing(folder / "config.json"):
        leftover, = folder.iterdir()
        content = leftover.name
    (folder / "config.json").unlink()
    for name in (content, f"x{content}", ".config.json.tmp"):
        (folder / name).write_text("{")
    assert "is not overwritten" in refusal(capsys, *words(TINY), "--out", folder)
    (folder / f"x{content}").unlink()
    assert "is not overwritten" in refusal(capsys, *words(TINY), "--out", folder)
    (folder / ".config.json.tmp").unlink()
    run(folder, epochs=1, defense="none")
    assert run_folders.is_finished(folder)


@pytest.mark.parametrize(("given", "message"), [
    ([], "has done 2 epochs of 2; a larger --epochs goes on"),
    (["--epochs", 2], "has done 2 epochs of 2"),
    (["--epochs", 3, "--alpha", 1], "--alpha cannot be given with --resume"),
    (["--epochs", 3, "--defense", "adv"], "--defense cannot be given with --resume"),
    (["--epochs", 3, "--out", "elsewhere"], "--out cannot be given with --resume"),
    (["--epochs", 3, "--seed", 0], "--seed cannot be given with --resume"),
    (["--epochs", 3, "--network", "vgg16"], "the run has the network convnet, not vgg16"),
])
def test_a_resumption_that_contradicts_the_run_is_refused_and_changes_nothing(given, message, finished, capsys):
    before = snapshot(finished)
    assert message in refusal(capsys, "--resume", finished, *given)
    assert snapshot(finished) == before


def test_other_images_than_those_that_the_run_began_with_are_refused(tmp_path, capsys):
    data = colours(tmp_path)
    flags = {"network": "convnet", "num_train": None, "validation": 4, "epochs": 1}
    folder = run(tmp_path / "run", dataset="npz", data_dir=data, **flags)
    with np.load(data) as stored:
        arrays = dict(stored)
    arrays["x_train"][0, 0, 0, 0] ^= 1
    np.savez(data, **arrays)
    capsys.readouterr()
    assert "not those that the run began with" in refusal(capsys, "--resume", folder, "--epochs", 2)


def test_the_memory_of_a_training_is_that_of_its_copies_of_the_weights(monkeypatch):
    network = "convnet", 10, 1, 4                        # 1,206 weights
    for defense, copies in (("advbnn", 10), ("bnn", 10), ("adv", 3), ("rse", 3)):
        monkeypatch.setattr(construction, "available_memory", lambda copies=copies: 4 * 1206 * copies)
        construction.check_memory(network, defense, torch.device("cpu"))
        monkeypatch.setattr(construction, "available_memory", lambda copies=copies: 4 * 1206 * copies - 1)
        construction.check_memory(network, defense, torch.device("cuda"))
        with pytest.raises(InputError, match="takes .* GiB in training"):
            construction.check_memory(network, defense, torch.device("cpu"))


ROW = {"epoch": 1, "nll": 0.1, "kl": 1.0, "batch_accuracy": 0.1, "train_accuracy": 0.1, "train_robust_accuracy": 0.1,
       "held_out_accuracy": None, "images_per_second": 1.0, "kl_per_image": 0.25, "snr": 9.0}


def test_a_training_tells_once_that_running_statistics_do_not_fit_its_wide_draws(tmp_path, capsys):
    """What a long training with much KL comes to: right on batches normalised by themselves, at chance in prediction.

    After few steps it is the running statistics that are behind.
    """
    for statistics in ("draw", "mean"):
        config, training, _ = build(batch_statistics=statistics)
        progress = Progress(config, training, tmp_path)
        for batches, predicted, told in ((0.9, 0.7, 0), (0.9, 0.3, 1), (0.9, 0.1, 0)):
            progress.epoch(ROW | {"batch_accuracy": batches, "train_accuracy": predicted})
            count = capsys.readouterr().out.count("on attacked batches in training, but 30 % in predictions on clean training "
                                                  "images: BatchNorm's running statistics do not fit draws this wide")
            assert count == (told if statistics == "draw" else 0)
    for defense, batches in (("advbnn", "attacked batches"), ("bnn", "batches")):
        config, training, _ = build(defense=defense, batch_statistics="draw")
        Progress(config, training, tmp_path).epoch(ROW | {"batch_accuracy": 0.9, "snr": 160.0})
        out = capsys.readouterr().out
        assert f"90 % right on {batches} in training" in out and "lag behind after so few steps; more --epochs" in out


def test_an_epoch_tells_nats_per_image_and_signal_to_noise_and_once_that_the_posterior_collapses(tmp_path, capsys):
    config, training, _ = build()
    progress = Progress(config, training, tmp_path)
    for snr, told in ((0.9, 0), (0.4, 1), (0.3, 0)):
        progress.epoch(ROW | {"snr": snr})
        out = capsys.readouterr().out
        assert f"  kl 0.25 per image  snr {snr}  " in out and out.count("more noise than signal") == told


def test_accuracies_are_printed_clean_before_attacked(tmp_path, capsys):
    config, training, _ = build()
    progress = Progress(config, training, tmp_path)
    best = {"held_out_accuracy": 0.3, "held_out_robust_accuracy": 0.2}
    progress.epoch(ROW | {"train_accuracy": 0.5, "train_robust_accuracy": 0.4} | best)
    progress.finished({"epoch": 2, "accuracy": 0.3, "robust_accuracy": 0.2})
    out = capsys.readouterr().out
    assert "train  50.0 / 40.0 %  held out  30.0 / 20.0 % (clean / PGD)" in out
    assert "best on the held-out images: epoch 2, clean 30.0 %, PGD 20.0 %" in out


@pytest.mark.parametrize("last, told", [
    ({}, 1), ({"epoch": 1}, 0), ({"nll": 2.2}, 0), ({"train_accuracy": 0.3}, 0), ({"snr": 0.1}, 0), (None, 0)])
def test_a_training_that_ends_at_the_loss_of_chance_names_the_learning_rate(tmp_path, capsys, last, told):
    config, training, _ = build()
    progress = Progress(config, training, tmp_path)
    if last is not None:                                 # else a run that was over before
        progress.epoch(ROW | {"epoch": 2, "nll": 2.29} | last)
    assert "of chance" not in capsys.readouterr().out
    progress.finished(None)
    assert capsys.readouterr().out.count("chance, ln 10 = 2.303; a --learning_rate below 0.01 may help") == told
