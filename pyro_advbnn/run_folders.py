"""Run folders: config.json, metrics.jsonl, checkpoint.pt (the last) and best.pt; made once, never overwritten."""
from pathlib import Path

from pyro_advbnn import checkpoints, records
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
    """Raises InputError where `folder` exists and is not an empty folder."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is not overwritten; choose another --out (train goes on with --resume)")


def read_config(folder):
    """The config of a run folder.   Raises InputError where it is none."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no run folder: it has no config.json")
    config = records.read_json(folder / "config.json")
    needed = {"dataset", "defense", "network", "settings", "images_sha256"}
    if not isinstance(config, dict) or not needed <= set(config):
        raise InputError(f"{folder} is no run folder: its config.json is not that of a training")
    return config


def save_position(folder, training, config, best):
    """Write checkpoint.pt: the classifier and all that `--resume` needs.   Raises NotFinite for lost weights."""
    training.check_weights()
    checkpoints.save(folder / "checkpoint.pt", training.classifier, config, training=training.state_dict(), best=best)


def restore_position(folder, training):
    """Set `training` to where checkpoint.pt stands, drop later lines of metrics.jsonl, return the best so far."""
    if not (folder / "checkpoint.pt").exists():
        raise InputError(f"{folder} was left before its first checkpoint, so there is nothing to go on with")
    content = checkpoints.read(folder / "checkpoint.pt")
    if "training" not in content:
        raise InputError(f"{folder / 'checkpoint.pt'} holds no training to go on with")
    training.classifier.load_state_dict(content["state"])
    training.load_state_dict(content["training"])
    metrics = records.read_jsonl(folder / "metrics.jsonl")
    records.write_jsonl(folder / "metrics.jsonl", [row for row in metrics if row["epoch"] <= training.epochs_done])
    return content["best"]


def row_fields(config, path, seed):
    """The columns of a row that say what was evaluated: the run of `config`, its checkpoint at `path`, by `seed`."""
    return {"dataset": config["dataset"], "network": config["network"], "defense": config["defense"],
            "source": "target", "seed": seed, "checkpoint": str(path)}


def load_classifier(folder, checkpoint="best", network=None, device="cpu"):
    """(classifier, config, path) of a run: its best checkpoint where there is one, or its last."""
    folder = Path(folder)
    config = read_config(folder)
    path = folder / ("best.pt" if checkpoint == "best" and (folder / "best.pt").exists() else "checkpoint.pt")
    if not path.exists():
        raise InputError(f"{folder} has no checkpoint yet")
    return checkpoints.load(path, network, device=device), config, path
