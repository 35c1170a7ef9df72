"""TensorBoard's event file of a run: the numbers of metrics.jsonl once more, for those who follow their runs there."""
from contextlib import contextmanager
from pathlib import Path

from pyro_advbnn.system.errors import InputError

_LOSSES = ("loss", "nll", "kl", "kl_weight")


def require():
    """Raises InputError where the package tensorboard, an optional one, cannot be imported."""
    try:
        _summary_writer()
    except ImportError as error:
        raise InputError(f"--tensorboard needs the package tensorboard ({error}); pip install tensorboard") from None


@contextmanager
def event_file(folder, rows, epochs_done):
    """A function that adds a row of metrics.jsonl to a new event file; `rows` are those that the run has already.

    Where no older event file shows `rows`, they come first. What older ones show of epochs after epochs_done is taken back.
    """
    begun = any(Path(folder).glob("events.out.tfevents.*"))
    with _summary_writer()(folder, purge_step=epochs_done + 1) as writer:
        for row in [] if begun else rows:
            _write(writer, row)
        yield lambda row: _write(writer, row)


def tag(field):
    """The name in TensorBoard of a field of metrics.jsonl: its group and itself."""
    group = "accuracy" if field.endswith("accuracy") else "loss" if field in _LOSSES else "training"
    return f"{group}/{field}"


def _summary_writer():
    from torch.utils.tensorboard import SummaryWriter  # only here: it takes seconds, and the package may be missing

    return SummaryWriter


def _write(writer, row):
    """One point for each number of row, in single precision: TensorBoard's data server shows no points of doubles."""
    for field, value in row.items():
        if field != "epoch" and value is not None:
            writer.add_scalar(tag(field), value, row["epoch"])
    writer.flush()
