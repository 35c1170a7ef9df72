"""metrics.jsonl of a run, one row of numbers per epoch; and TensorBoard's event file, which shows them once more."""
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError

_LOSSES = ("loss", "nll", "kl", "kl_weight", "kl_per_image")


def read(folder):
    """The rows of a run, [] where there are none."""
    return json_files.read_jsonl(Path(folder) / "metrics.jsonl")


@contextmanager
def writer(folder, shown):
    """A function that adds a row to those of a run.

    shown: of a run that is shown in TensorBoard, the number of epochs that are done; the row goes to a new event file, too.
    Where no older one shows the rows that there are, they come first; what older ones show of later epochs is taken back.
    """
    begun = any(Path(folder).glob("events.out.tfevents.*"))
    with nullcontext() if shown is None else _summary_writer()(folder, purge_step=shown + 1) as events:
        for row in read(folder) if events and not begun else []:
            _show(events, row)

        def write(row):
            json_files.append_jsonl(Path(folder) / "metrics.jsonl", row)
            if events:
                _show(events, row)

        yield write


def require_tensorboard():
    """Raises InputError where the package tensorboard, an optional one, cannot be imported."""
    try:
        _summary_writer()
    except ImportError as error:
        raise InputError(f"--tensorboard needs the package tensorboard ({error}); pip install tensorboard") from None


def tag(field):
    """The name in TensorBoard of a field of metrics.jsonl: its group and itself; those of layers have groups of their own."""
    if "/" in field:
        return field
    group = "accuracy" if field.endswith("accuracy") else "loss" if field in _LOSSES else "training"
    return f"{group}/{field}"


def _summary_writer():
    from torch.utils.tensorboard import SummaryWriter  # only here: it takes seconds, and the package may be missing

    return SummaryWriter


def _show(events, row):
    """One point for each number of row, in single precision: TensorBoard's data server shows no points of doubles."""
    for field, value in row.items():
        if field != "epoch" and value is not None:
            events.add_scalar(tag(field), value, row["epoch"])
    events.flush()
