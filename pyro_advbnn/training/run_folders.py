"""Run folders: config.json, metrics.jsonl, checkpoint.pt (the last) and best.pt; made once, never overwritten.

A folder is a run from its config.json on, and with that it has a checkpoint, of the run's start at first.
"""
import glob
import os
import secrets
import shutil
from contextlib import nullcontext
from pathlib import Path

from pyro_advbnn.system import distributed, files, json_files, locks
from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.training import checkpoints, metrics, run_config
from pyro_advbnn.training.contradictions import check_same_run


def create(folder, config, classifier, start):
    """Make the new run folder in one step, with config.json and a checkpoint of its start; its `locks.Lock`, taken.

    start: the `Training.state_dict()`.   Raises InputError where the folder holds something already or cannot be made.
    """
    folder = Path(folder)

    def write(place):
        checkpoints.save(place / "checkpoint.pt", classifier, config, training=start, best=None)
        json_files.write_json(place / "config.json", config)

    try:
        return _fill(folder, write) if folder.exists() else _make(folder, write)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror}") from None


def _make(folder, write):
    """Make a folder that is not there: it gets its name when all is in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep_beside(folder)
    unnamed = folder.with_name(f".{folder.name[:100]}.{secrets.token_hex(4)}.new")
    unnamed.mkdir()
    try:
        lock = locks.take(unnamed)
        try:
            write(unnamed)
            refuse_existing(folder)                      # another process may have made it in the meantime
            os.rename(unnamed, folder)
        except BaseException:
            lock.release()
            raise
    finally:
        shutil.rmtree(unnamed, ignore_errors=True)       # left over only where something failed
    files.sync_folder(folder.parent)
    return lock.moved(folder)


def _fill(folder, write):
    """Make a run of a folder that is there, and may be one that cannot be renamed; config.json comes last."""
    refuse_existing(folder)
    lock = locks.take(folder)
    try:
        refuse_existing(folder)                          # it may have been filled before it was locked
        _sweep(folder)
        write(folder)
    except BaseException:
        if not (folder / "config.json").exists():
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        lock.release()
        raise
    return lock


def _sweep_beside(folder):
    """Take away what a process that was killed in `_make` has left of the same folder."""
    for left in folder.parent.glob(f".{glob.escape(folder.name[:100])}.????????.new"):
        if locks.is_left_behind(left):
            shutil.rmtree(left, ignore_errors=True)


def _sweep(folder):
    """Take away the files that a killed process was writing to a locked folder."""
    for path in folder.iterdir():
        if files.is_temporary(path):
            path.unlink(missing_ok=True)


def refuse_existing(folder, hint=" (train goes on with --resume)"):
    """Raises InputError where `folder` cannot be made, or is not empty, but for what a crash left of a file or a run."""
    folder = Path(folder)
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"--out {folder} is a link that leads nowhere")
    if folder.exists() and (not folder.is_dir() or not all(map(_is_leftover, folder.iterdir()))):
        raise InputError(f"{folder} exists already and is not overwritten; choose another --out{hint}")
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
    begun = (path.with_name(locks.NAME).exists() and not path.with_name("config.json").exists())  # killed in `_fill`
    return files.is_temporary(path) or path.name == locks.NAME or (path.name == "checkpoint.pt" and begun)


def read_config(folder):
    """The config of a run folder.   Raises InputError where it is none."""
    folder = Path(folder)
    if not files.is_there(folder / "config.json"):
        raise InputError(f"{folder} is no run folder: it has no config.json")
    config = json_files.read_json(folder / "config.json")
    if not isinstance(config, dict) or not {"dataset", "defense", "settings"} <= set(config):
        raise InputError(f"{folder} is no run folder: its config.json is not that of a training")
    run_config.check(config, folder / "config.json")
    return config


def save_position(folder, training, config, best):
    """Collective: write checkpoint.pt, the classifier and all that `--resume` needs.   Raises NotFinite as `training.check`."""
    training.check()
    state = training.state_dict()
    if distributed.is_main():
        checkpoints.save(folder / "checkpoint.pt", training.result, config, training=state, best=best)


def has_position(folder):
    """Whether a run has a checkpoint; those of version 0.1.0 had none before the end of their first epoch."""
    return files.is_there(Path(folder) / "checkpoint.pt")


def refuse_lost_position(folder):
    """Raises InputError where a run has trained, as best.pt or metrics.jsonl tell, but its checkpoint.pt is gone."""
    folder = Path(folder)
    left = [name for name in ("best.pt", "metrics.jsonl") if files.is_there(folder / name)]
    if left and not has_position(folder):
        raise InputError(f"{folder} has trained, but its checkpoint.pt is gone: move {' and '.join(left)} away to begin anew")


def has_begun(folder):
    """Whether a run has a checkpoint that is later than its start."""
    return has_position(folder) and not _is_start(_position(folder, mmap=True))


def _is_start(content):
    at = content.get("training")
    return isinstance(at, dict) and all(type(at.get(name)) is int and at[name] == 0 for name in ("epochs_done", "steps_done"))


def check_position(folder, config):
    """Raises InputError where checkpoint.pt, if there is one, cannot be read or is not of the run of config."""
    if has_position(folder):
        check_same_run(folder, config, Path(folder) / "checkpoint.pt", _position(folder, mmap=True)["config"])


def restore_position(folder, training):
    """Set `training` to where checkpoint.pt stands; the best so far."""
    content = _position(folder)
    try:
        training.result.load_state_dict(content["state"])
        training.load_state_dict(content["training"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{Path(folder) / 'checkpoint.pt'} does not fit the run: {reason(error)}") from None
    return content["best"]


def _position(folder, mmap=False):
    path = Path(folder) / "checkpoint.pt"
    content = checkpoints.read(path, mmap=mmap)
    if not isinstance(content.get("training"), dict) or "best" not in content:
        raise InputError(f"{path} holds no training to go on with")
    done = [content["training"].get(name) for name in ("epochs_done", "steps_done")]
    if not all(type(number) is int and number >= 0 for number in done) or not _is_best(content["best"]):
        raise InputError(f"{path} is damaged: it does not say how far the training is")
    return content


def _is_best(best):
    names = ("epoch", "accuracy", "robust_accuracy")
    return best is None or isinstance(best, dict) and all(type(best.get(name)) in (int, float) for name in names)


def trouble_with_best(folder, config):
    """Why best.pt cannot be evaluated though checkpoint.pt tells of a best epoch, and what follows from it; "" where it can."""
    path = Path(folder) / "best.pt"
    if not has_position(folder) or not checkpoints.read(path.with_name("checkpoint.pt"), mmap=True).get("best"):
        return ""
    if not files.is_there(path):
        return f"{path} is gone: evaluate takes the last checkpoint until a better epoch comes"
    try:
        check_same_run(folder, config, path, checkpoints.read(path, mmap=True)["config"])
    except InputError as error:
        return f"{error}: evaluate refuses it until a better epoch comes"
    return ""


def reopen(folder, config, classifier, position):
    """Write the config of a run that goes on, and drop the lines of metrics.jsonl that are later than its position."""
    rows = metrics.read(folder)
    _sweep(folder)
    if not has_position(folder):
        checkpoints.save(folder / "checkpoint.pt", classifier, config, training=position, best=None)
    json_files.write_jsonl(folder / "metrics.jsonl", [row for row in rows if row["epoch"] <= position["epochs_done"]])
    json_files.write_json(folder / "config.json", config)


def metrics_writer(folder, config):
    """A context: a function that adds a row to metrics.jsonl and, where config asks, to TensorBoard's event file; on rank 0."""
    if not distributed.is_main():
        return nullcontext(lambda row: None)
    asked = config["tensorboard"]
    return metrics.writer(folder, _position(folder, mmap=True)["training"]["epochs_done"] if asked else None)


def is_finished(folder):
    """Whether a run has done all epochs of its config, or as many as its patience lets it, by checkpoint.pt."""
    if not has_position(folder):
        return False
    config, content = read_config(folder), _position(folder, mmap=True)
    epochs_done = content["training"]["epochs_done"]
    return epochs_done >= config["settings"]["epochs"] or out_of_patience(content["best"], epochs_done, config["patience"])


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


def chosen(folder, checkpoint="best"):
    """The path of a run's best checkpoint where that is asked for and there is one, else of its last."""
    name = "best.pt" if checkpoint == "best" and files.is_there(Path(folder) / "best.pt") else "checkpoint.pt"
    return Path(folder) / name


def load_classifier(folder, checkpoint="best", network=None, device="cpu"):
    """(classifier, config, path) of a run: its best checkpoint where there is one, or its last."""
    folder = Path(folder)
    config, path = read_config(folder), chosen(folder, checkpoint)
    if not files.is_there(path):
        raise InputError(f"{folder} has no checkpoint yet")
    content = checkpoints.read(path, mmap=True)
    if _is_start(content):
        raise InputError(f"{folder} has trained nothing yet: its checkpoint is that of its start")
    check_same_run(folder, config, path, content["config"])
    return checkpoints.load(path, network, device=device), config, path
