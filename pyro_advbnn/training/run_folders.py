"""Run folders: config.json, metrics.jsonl, checkpoint.pt (the last) and best.pt; made once, never overwritten.

A folder is a run from its config.json on. Without a checkpoint yet it is at its start.
"""
import os
import shlex
from pathlib import Path

from pyro_advbnn.system import distributed, files, json_files, locks
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import checkpoints, metrics

FORMAT = 4                                               # of config.json; another one is refused


def create(folder, config):
    """Make a run of the locked folder.   Raises InputError where it holds something already."""
    folder = Path(folder)
    refuse_existing(folder)
    _sweep(folder)
    json_files.write_json(folder / "config.json", config)


def reopen(folder, config, epochs_done):
    """Write the config of a run that goes on, and drop the lines of metrics.jsonl that are later than its checkpoint."""
    rows = metrics.read(folder)
    _sweep(folder)
    json_files.write_jsonl(folder / "metrics.jsonl", [row for row in rows if row["epoch"] <= epochs_done])
    json_files.write_json(folder / "config.json", config)


def _sweep(folder):
    """Take away the files that a killed process was writing to a locked folder."""
    for path in folder.iterdir():
        if files.is_temporary(path):
            path.unlink(missing_ok=True)


def refuse_existing(folder, hint=" (train goes on with --resume)"):
    """Raises InputError where `folder` is there and not empty, but for what a killed process left, or is no folder."""
    folder = Path(folder)
    if os.path.lexists(folder) and (not folder.is_dir() or not all(map(_is_leftover, folder.iterdir()))):
        raise InputError(f"{folder} exists already and is not overwritten; choose another --out{hint}")


def _is_leftover(path):
    return files.is_temporary(path) or path.name in (locks.NAME, locks.OWNER)


def to_resume(folder):
    """The flag that goes on with the run, as it can be typed."""
    return f"--resume {shlex.quote(str(folder))}"


def read_config(folder):
    """The config of a run folder.   Raises InputError where it is none."""
    config = json_files.read_config(folder)
    if config.get("format") != FORMAT:
        raise InputError(f"{Path(folder) / 'config.json'} is of format {config.get('format', 0)!r:.100}; this version reads "
                         f"format {FORMAT} alone")
    return config


def save_position(folder, training, config, best):
    """Collective: write checkpoint.pt, the classifier and all that `--resume` needs.   Raises NotFinite as `training.check`."""
    training.check()
    state = training.state_dict()
    if distributed.is_main():
        checkpoints.save(folder / "checkpoint.pt", training.result, config, training=state, best=best)


def has_checkpoint(folder):
    return (Path(folder) / "checkpoint.pt").exists()


def read_position(folder):
    """The content of a run's checkpoint.pt, None where there is none yet.

    Raises InputError where it is gone: by its rows the run has been past its first epoch.
    """
    if not has_checkpoint(folder):
        if any(row["epoch"] > 1 for row in metrics.read(folder)):
            raise InputError(f"{folder} has trained, but its checkpoint.pt is gone; move it back, or train in another --out")
        return None
    return _position(folder)


def restore_position(training, content, folder):
    """Set `training` to where the content of a run's checkpoint.pt stands; the best so far."""
    checkpoints.fill(training.result, content, Path(folder) / "checkpoint.pt")
    training.load_state_dict(content["training"])
    return content["best"]


def _position(folder, mmap=False):
    path = Path(folder) / "checkpoint.pt"
    content = checkpoints.read(path, mmap=mmap)
    if "training" not in content:
        raise InputError(f"{path} holds no training to go on with")
    return content


def is_finished(folder):
    """Whether a run has done all epochs of its config, or as many as its patience lets it, by checkpoint.pt."""
    if not has_checkpoint(folder):
        return False
    config, content = read_config(folder), _position(folder, mmap=True)
    epochs_done = content["training"]["epochs_done"]
    return epochs_done >= config["settings"]["epochs"] or out_of_patience(content["best"], epochs_done, config["patience"])


def out_of_patience(best, epochs_done, patience):
    """Whether `patience` epochs have gone by since the best one; never without a patience or a best."""
    return bool(patience and best and epochs_done - best["epoch"] >= patience)


def row_fields(config, path, weights):
    """The columns `csv_tables.RUN_FIELDS` of a row: the run of `config`, its checkpoint at `path` and the digest of its
    weights."""
    run, settings = path.resolve().parent.name, config["settings"]
    bayesian = config["classifier"]["kind"] == "bayesian"
    return {"run": run, "dataset": config["dataset"], "network": config["network"], "defense": config["defense"],
            "alpha": settings["alpha"] if bayesian else None, "prior_std": settings["prior_std"] if bayesian else None,
            "checkpoint": f"{run}/{path.name}", "weights": weights}


def chosen(folder, checkpoint="best"):
    """The path of a run's best checkpoint where that is asked for and there is one, else of its last."""
    name = "best.pt" if checkpoint == "best" and (Path(folder) / "best.pt").exists() else "checkpoint.pt"
    return Path(folder) / name


def load_classifier(folder, checkpoint="best", network=None, device="cpu"):
    """(classifier, config, path) of a run: its best checkpoint where there is one, or its last."""
    folder = Path(folder)
    config, path = read_config(folder), chosen(folder, checkpoint)
    if not path.exists():
        raise InputError(f"{folder} has no checkpoint")
    return checkpoints.load(path, network, device=device), config, path
