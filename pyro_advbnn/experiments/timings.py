"""The rows of a benchmark: from times to medians, ratios; as text and as csv. No tensors here."""
import csv
import io
import statistics

from pyro_advbnn.cli import text_tables
from pyro_advbnn.system import files

CONTESTANTS = {name: (name,) for name in ("adv-bnn", "deterministic", "plain-pyro", "authors")} | {   # the rows of each
    "prediction": ("prediction", "bare forwards", "normals"), "evaluation": ("evaluation", "bare evaluation")}
FLOORS = dict.fromkeys(CONTESTANTS, "deterministic") | {
    "prediction": "bare forwards", "bare forwards": "bare forwards", "normals": "bare forwards",
    "evaluation": "bare evaluation", "bare evaluation": "bare evaluation"}
PARTS = ("attack", "update", "optimizer")                # of a training step
FIELDS = (
    "batch_size", "precision", "contestant", "wall_s", "cpu_s", "images_per_second", "floor", "wall_ratio", "cpu_ratio",
    "peak_memory_bytes", *(f"{part}_s" for part in PARTS),
)


def row(contestant, precision, batch_size, times, *, peak_memory=None, parts=None):
    """One row of FIELDS, its ratios still missing, from times [(wall, CPU), ...] in seconds: their medians.

    parts: {name of PARTS: seconds}.
    """
    wall, cpu = medians(times)
    known = {"batch_size": batch_size, "precision": precision, "contestant": contestant, "wall_s": wall, "cpu_s": cpu,
             "images_per_second": batch_size / wall if contestant != "normals" else None, "peak_memory_bytes": peak_memory}
    return dict.fromkeys(FIELDS) | known | {f"{part}_s": seconds for part, seconds in (parts or {}).items()}


def medians(times):
    """(wall, CPU) of [(wall, CPU), ...]."""
    return tuple(statistics.median(clock) for clock in zip(*times, strict=True))


def set_ratios(rows):
    """Fill the ratios of each row to that of its floor at its batch size and precision, where that is among `rows`."""
    for row in rows:
        floor = find(rows, FLOORS[row["contestant"]], row["batch_size"], row["precision"])
        if floor:
            row |= {"floor": floor["contestant"], "wall_ratio": row["wall_s"] / floor["wall_s"],
                    "cpu_ratio": row["cpu_s"] / floor["cpu_s"]}


def find(rows, contestant, batch_size, precision):
    """The row of that contestant, or None."""
    wanted = {"contestant": contestant, "batch_size": batch_size, "precision": precision}
    return next((row for row in rows if wanted.items() <= row.items()), None)


def comparisons(rows):
    """What the ratios to the floors leave out, a list of rows: contestant, other, batch_size, precision, other_precision,
    wall_ratio, cpu_ratio and memory_ratio, the other's times over the contestant's and the contestant's memory over the
    other's.

    Adv-BNN against the plain Pyro way of the same precision and the authors' style, float32 always; n predictions, for
    which "other" is n forwards and n draws of normals together.
    """
    found = []
    for row in rows:
        batch_size, precision = row["batch_size"], row["precision"]
        if row["contestant"] == "adv-bnn":
            others = find(rows, "plain-pyro", batch_size, precision), find(rows, "authors", batch_size, "fp32")
            found += [_compare(row, [other]) for other in others if other]
        if row["contestant"] == "prediction":
            found.append(_compare(row, [find(rows, name, batch_size, precision) for name in ("bare forwards", "normals")]))
    return found


def _compare(row, others):
    memory = others[0]["peak_memory_bytes"] if len(others) == 1 else None
    return {"contestant": row["contestant"], "other": " + ".join(other["contestant"] for other in others),
            "batch_size": row["batch_size"], "precision": row["precision"], "other_precision": others[0]["precision"],
            **{f"{clock}_ratio": sum(other[f"{clock}_s"] for other in others) / row[f"{clock}_s"] for clock in ("wall", "cpu")},
            "memory_ratio": row["peak_memory_bytes"] / memory if memory else None}


def write_csv(path, rows):
    """Replace the csv file by `rows`, in one step; an empty cell is what was not measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with files.replacing(path) as file:
        file.write(text.getvalue().encode())


def table(rows):
    """All rows as text; the ratio of each is to its floor."""
    return text_tables.table(rows, {
        "batch": lambda row: row["batch_size"],
        "precision": lambda row: row["precision"],
        "contestant": lambda row: row["contestant"],
        "ms": lambda row: _number(row["wall_s"], 1000, 1),
        "CPU ms": lambda row: _number(row["cpu_s"], 1000, 1),
        "images/s": lambda row: _number(row["images_per_second"], 1, 1),
        "ratio": lambda row: _number(row["wall_ratio"], 1, 3),
        "CPU ratio": lambda row: _number(row["cpu_ratio"], 1, 3),
        "to": lambda row: row["floor"] or "-",
        "peak MiB": lambda row: _number(row["peak_memory_bytes"], 2**-20, 1),
    })


def parts_table(rows):
    """How the time of the training steps splits, in ms and in percent of the step; "" where none was cut into parts."""
    cut = [row for row in rows if row["attack_s"] is not None]
    columns = {"batch": lambda row: row["batch_size"], "precision": lambda row: row["precision"],
               "contestant": lambda row: row["contestant"]}
    columns |= {f"{part} ms (%)": lambda row, part=part: _part(row, part) for part in PARTS}
    return text_tables.table(cut, columns) if cut else ""


def sentences(compared):
    """`comparisons` in words, one line each."""
    return "\n".join(map(_sentence, compared))


def _sentence(compared):
    where = f"batch {compared['batch_size']}, {compared['precision']}: {compared['contestant']}"
    if compared["contestant"] == "prediction":
        return (f"{where} takes {1 / compared['wall_ratio']:.3f} times as long as {compared['other']} together "
                f"(CPU time {1 / compared['cpu_ratio']:.3f})")
    memory = f"; {100 * compared['memory_ratio']:.0f} % of its peak memory" if compared["memory_ratio"] else ""
    return (f"{where} is {compared['wall_ratio']:.2f} times as fast as {compared['other']} in {compared['other_precision']} "
            f"(CPU time {compared['cpu_ratio']:.2f}){memory}")


def _part(row, part):
    seconds = row[f"{part}_s"]
    return f"{1000 * seconds:.1f} ({100 * seconds / row['wall_s']:.1f})"


def _number(value, factor, digits):
    return "-" if value is None else f"{factor * value:.{digits}f}"
