"""metrics.jsonl of a run: one row of numbers per epoch."""
import math
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import event_files

_WAY_ON = "mend or remove the line, or move the file away to go on without its rows"


def read(folder):
    """The rows of a run, with ascending epochs, [] where there are none; a last one that a crash cut short is left out.

    Raises InputError for anything else: the file, the line's number, what it holds, and the way on.
    """
    path = Path(folder) / "metrics.jsonl"
    rows, last = json_files.read_jsonl(path, _WAY_ON), 0
    for number, row in enumerate(rows, 1):
        flaw = _flaw(row, last)
        if flaw:
            raise InputError(f"{path}, line {number}: {flaw}; {_WAY_ON}")
        last = row["epoch"]
    return rows


@contextmanager
def writer(folder, shown=None):
    """A function that adds a row to those of a run.

    shown: of a run that is shown in TensorBoard, the number of epochs that are done; the row goes to an event file, too.
    """
    events = nullcontext() if shown is None else event_files.event_file(folder, read(folder), shown)
    with events as write_event:

        def write(row):
            json_files.append_jsonl(Path(folder) / "metrics.jsonl", row)
            if write_event:
                write_event(row)

        yield write


def missing(folder, epochs_done):
    """The epochs up to epochs_done that have no row, as a text such as "1 to 3, 5"; "" where none is missing."""
    there = {row["epoch"] for row in read(folder)} if epochs_done else set()
    lost, spans = [epoch for epoch in range(1, epochs_done + 1) if epoch not in there], []
    for epoch in lost:
        if spans and spans[-1][1] == epoch - 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    return ", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in spans)


def _flaw(row, last):
    """What is wrong with a row that comes after the one of epoch `last`, or None."""
    epoch = row.get("epoch")
    if type(epoch) is not int or epoch < 1:
        return f"expected a row with an epoch, found {repr(row)[:60]}"
    if epoch <= last:
        return f"epoch {epoch} stands {'twice' if epoch == last else f'behind epoch {last}'}"
    name = next((name for name, value in row.items() if not _is_number(value)), None)
    return None if name is None else f"{name} must be a number, got {repr(row[name])[:60]}"


def _is_number(value):
    """Whether it is None, as where nothing was measured, or a finite number."""
    try:
        return value is None or type(value) in (int, float) and math.isfinite(value)
    except OverflowError:                                # an integer of hundreds of digits
        return False
