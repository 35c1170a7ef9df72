"""Run folders: config.json, metrics.jsonl, checkpoint.pt (the last) and best.pt; made once, never overwritten."""
import os
import re
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pyro_advbnn import checkpoints, distributed, event_files, records, run_configs
from pyro_advbnn.contradictions import check_same_run
from pyro_advbnn.errors import InputError


def create(folder, config):
    """Make the new run folder and write config.json.   Raises InputError where it holds something already."""
    folder = Path(folder)
    refuse_existing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        records.write_json(folder / "config.json", config)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror}") from None
    return folder


def refuse_existing(folder):
    """Raises InputError where `folder` cannot be made, or is not empty, but for what a crash left of a file."""
    folder = Path(folder)
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"--out {folder} is a link that leads nowhere")
    if folder.exists() and (not folder.is_dir() or not all(map(_is_leftover, folder.iterdir()))):
        raise InputError(f"{folder} exists already and is not overwritten; choose another --out (train goes on with --resume)")
    check_writable(folder)


def check_writable(folder):
    """Raises InputError where `folder` cannot be written to, or cannot be made; makes nothing."""
    for place in (folder, *folder.absolute().parents):
        if os.path.lexists(place):                       # a link that leads nowhere is something, too
            break
    if not place.is_dir():
        raise InputError(f"{folder} cannot be made: {place} is no folder")
    if not os.access(place, os.W_OK):
        raise InputError(f"{folder} cannot be made: {place} cannot be written to" if place != folder else
                         f"{folder} cannot be written to")


def _is_leftover(path):
    return bool(re.fullmatch(r"\..+\.\d+\.tmp", path.name))  # the temporary files of `records.replacing`


def read_config(folder):
    """The config of a run folder.   Raises InputError where it is none."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no run folder: it has no config.json")
    config = records.read_json(folder / "config.json")
    if not isinstance(config, dict) or not {"dataset", "defense", "settings"} <= set(config):
        raise InputError(f"{folder} is no run folder: its config.json is not that of a training")
    run_configs.check(config, folder / "config.json")
    return config


def save_position(folder, training, config, best):
    """Collective: write checkpoint.pt, the classifier and all that `--resume` needs.   Raises NotFinite for lost weights."""
    training.check_weights()
    state = training.state_dict()
    if distributed.is_main():
        checkpoints.save(folder / "checkpoint.pt", training.classifier, config, training=state, best=best)


def has_position(folder):
    """Whether a run got as far as its first checkpoint."""
    return (Path(folder) / "checkpoint.pt").exists()


def check_position(folder, config):
    """Raises InputError where checkpoint.pt, if there is one, cannot be read or is not of the run of config."""
    if has_position(folder):
        check_same_run(folder, config, Path(folder) / "checkpoint.pt", _position(folder, mmap=True)["config"])


def restore_position(folder, training):
    """Set `training` to where checkpoint.pt stands; the best so far."""
    content = _position(folder)
    training.classifier.load_state_dict(content["state"])
    training.load_state_dict(content["training"])
    return content["best"]


def _position(folder, mmap=False):
    path = Path(folder) / "checkpoint.pt"
    content = checkpoints.read(path, mmap=mmap)
    if "training" not in content:
        raise InputError(f"{path} holds no training to go on with")
    return content


def reopen(folder, config, epochs_done):
    """Write the config of a run that goes on, and drop the lines of metrics.jsonl that are later than its position."""
    metrics = records.read_jsonl(folder / "metrics.jsonl")
    records.write_jsonl(folder / "metrics.jsonl", [row for row in metrics if row["epoch"] <= epochs_done])
    records.write_json(folder / "config.json", config)


@contextmanager
def metrics_writer(folder, config):
    """A function that adds a row to metrics.jsonl and, where config asks for it, to TensorBoard's event file; on rank 0."""
    if not distributed.is_main():
        yield lambda row: None
        return
    path = folder / "metrics.jsonl"
    events = event_files.event_file(folder, records.read_jsonl(path)) if config["tensorboard"] else nullcontext()
    with events as write_event:

        def write(row):
            records.append_jsonl(path, row)
            if write_event:
                write_event(row)

        yield write


def is_finished(folder):
    """Whether a run has done all epochs of its config, or as many as its patience lets it, by checkpoint.pt."""
    if not has_position(folder):
        return False
    config, content = read_config(folder), _position(folder, mmap=True)
    epochs_done = content["training"]["epochs_done"]
    return epochs_done >= config["settings"]["epochs"] or out_of_patience(content["best"], epochs_done, config.get("patience"))


def out_of_patience(best, epochs_done, patience):
    """Whether `patience` epochs have gone by since the best one; never without a patience or a best."""
    return bool(patience and best and epochs_done - best["epoch"] >= patience)


def row_fields(config, path, weights):
    """The columns `tables.RUN_FIELDS` of a row: the run of `config`, its checkpoint at `path` and the digest of its weights."""
    run, settings = path.resolve().parent.name, config["settings"]
    bayesian = config["classifier"]["kind"] == "bayesian"
    return {"run": run, "dataset": config["dataset"], "network": config["network"], "defense": config["defense"],
            "alpha": settings["alpha"] if bayesian else None, "prior_std": settings["prior_std"] if bayesian else None,
            "checkpoint": f"{run}/{path.name}", "weights": weights}


def load_classifier(folder, checkpoint="best", network=None, device="cpu"):
    """(classifier, config, path) of a run: its best checkpoint where there is one, or its last."""
    folder = Path(folder)
    config = read_config(folder)
    path = folder / ("best.pt" if checkpoint == "best" and (folder / "best.pt").exists() else "checkpoint.pt")
    if not path.exists():
        raise InputError(f"{folder} has no checkpoint yet")
    content = checkpoints.read(path, mmap=True)
    check_same_run(folder, config, path, content["config"])
    return checkpoints.load(path, network, device=device), config, path
