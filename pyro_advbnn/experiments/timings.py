"""The rows of a benchmark: from times to medians, ratios and shares; as text. No tensors here."""
import statistics

from pyro_advbnn.cli import text_tables

CONTESTANTS = {name: (name,) for name in ("adv-bnn", "deterministic", "plain-pyro", "authors")} | {
    "prediction": ("prediction", "bare forwards", "normals")}                                          # the rows of each
FLOORS = dict.fromkeys(CONTESTANTS, "deterministic") | dict.fromkeys(CONTESTANTS["prediction"], "bare forwards")
PARTS = ("attack", "update", "optimizer")                # of a training step
_OTHERS = {"adv-bnn": [("plain-pyro",), ("authors",)], "prediction": [("bare forwards", "normals")]}   # of `comparisons`
FIELDS = (
    "batch_size", "precision", "contestant", "wall_s", "cpu_s", "images_per_second", "floor", "wall_ratio", "cpu_ratio",
    "flops", "flops_per_second", "matmul_share", "peak_memory_bytes", *(f"{part}_s" for part in PARTS),
)


def row(contestant, precision, batch_size, times, *, flops=None, peak_memory=None, parts=None):
    """One row of FIELDS, its ratios and its share still missing, from times [(wall, CPU), ...] in seconds: their medians.

    flops: of one call. parts: {name of PARTS: seconds}.
    """
    wall, cpu = (statistics.median(clock) for clock in zip(*times, strict=True))
    known = {"batch_size": batch_size, "precision": precision, "contestant": contestant, "wall_s": wall, "cpu_s": cpu,
             "images_per_second": batch_size / wall if contestant not in ("normals", "matmul") else None,
             "flops": flops, "flops_per_second": flops and flops / wall, "peak_memory_bytes": peak_memory}
    return dict.fromkeys(FIELDS) | known | {f"{part}_s": seconds for part, seconds in (parts or {}).items()}


def set_ratios(rows):
    """Fill the ratios of each row to that of its floor at its batch size and precision, where that is among `rows`.

    Likewise its share of the FLOP/s of matrix products. A convolution may pass these where another library computes it.
    """
    for row in rows:
        floor, product = (find(rows, name, row["batch_size"], row["precision"])
                          for name in (FLOORS.get(row["contestant"]), "matmul"))
        if product and row["flops"]:
            row["matmul_share"] = row["flops_per_second"] / product["flops_per_second"]
        if floor:
            row |= {"floor": floor["contestant"], "wall_ratio": row["wall_s"] / floor["wall_s"],
                    "cpu_ratio": row["cpu_s"] / floor["cpu_s"]}


def find(rows, contestant, batch_size, precision):
    """The row of that contestant, or None."""
    wanted = {"contestant": contestant, "batch_size": batch_size, "precision": precision}
    return next((row for row in rows if wanted.items() <= row.items()), None)


def comparisons(rows):
    """What the ratios to the floors leave out, a list of rows: contestant, other, batch_size, precision, and the times of the
    other over the contestant's, wall_ratio and cpu_ratio.

    Adv-BNN against the plain Pyro way and the authors' style, float32 always; n predictions against n forwards and n draws
    of normals together.
    """
    found = []
    for row in rows:
        for others in _OTHERS.get(row["contestant"], ()):
            precisions = ["fp32" if name == "authors" else row["precision"] for name in others]
            other = [find(rows, name, row["batch_size"], precision) for name, precision in zip(others, precisions, strict=True)]
            if all(other):
                found.append({name: row[name] for name in ("contestant", "batch_size", "precision")} | {
                    "other": " + ".join(others),
                    **{f"{clock}_ratio": sum(each[f"{clock}_s"] for each in other) / row[f"{clock}_s"]
                       for clock in ("wall", "cpu")}})
    return found


def table(rows):
    """All rows as text; the ratio of each is to its floor, the parts of a step are in percent of it."""
    def number(name, digits, factor=1):
        return lambda row: text_tables.decimal(None if row[name] is None else factor * row[name], digits)

    def part(name):
        return lambda row: text_tables.share(None if row[name] is None else row[name] / row["wall_s"])

    return text_tables.table(rows, {
        "batch": lambda row: row["batch_size"], "precision": lambda row: row["precision"],
        "contestant": lambda row: row["contestant"], "ms": number("wall_s", 1, 1000), "CPU ms": number("cpu_s", 1, 1000),
        "images/s": number("images_per_second", 1), "ratio": number("wall_ratio", 3), "CPU ratio": number("cpu_ratio", 3),
        "to": lambda row: row["floor"] or text_tables.NONE, "GFLOP/s": number("flops_per_second", 0, 1e-9),
        "of matmul %": lambda row: text_tables.share(row["matmul_share"]), "peak MiB": number("peak_memory_bytes", 1, 2**-20),
        **{f"{name} %": part(f"{name}_s") for name in PARTS}})


def sentences(compared):
    """`comparisons` in words, one line each."""
    return "\n".join(f"batch {row['batch_size']}, {row['precision']}: {row['contestant']} is {row['wall_ratio']:.2f} times as "
                     f"fast as {row['other']}{_in_float32(row)} (CPU time {row['cpu_ratio']:.2f})" for row in compared)


def _in_float32(row):
    return " in fp32" if row["other"] == "authors" and row["precision"] != "fp32" else ""
