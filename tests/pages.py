"""The README, the pages of docs/ and the records of runs/, that tests of what the pages say share."""
import csv
import functools
import gzip
import json
import math
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs"
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def table(page, *columns):
    """The rows, {column: cell}, of the one table of a page that has these columns; cells without their markup."""
    tables = map(_rows, re.findall(r"(?:^\|.*\n)+", PAGES[page], re.MULTILINE))
    found = [rows for rows in tables if set(columns) <= set(rows[0])]
    assert len(found) == 1, (page, columns)
    return found[0]


def _rows(text):
    header, _, *lines = [[cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]
                         for line in text.splitlines()]
    return [dict(zip(header, cells, strict=True)) for cells in lines]


def section(page, heading):
    """The text under a heading, up to the next one of its level, on one line."""
    level = heading.partition(" ")[0]
    return " ".join(re.split(rf"\n#{{1,{len(level)}}} ", PAGES[page].partition(f"\n{heading}\n")[2])[0].split())


@functools.cache
def records(name):
    """The rows, to be read alone, of a csv file of runs/, packed or not, or the lines of a jsonl file."""
    path = RUNS / name
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        return [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(csv.DictReader(file))


def one(rows, **fields):
    """The one record with these fields."""
    found = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    assert len(found) == 1, fields
    return found[0]


def percent(share):
    return f"{100 * float(share):.1f}"


def mean_percent(values):
    return percent(sum(values) / len(values))


def best_epoch(course):
    return max(course, key=lambda epoch: (epoch["held_out_robust_accuracy"], epoch["held_out_accuracy"]))


def both_accuracies(epoch, split):
    return " / ".join(percent(epoch[f"{split}_{name}"]) for name in ("accuracy", "robust_accuracy"))


def apart(ours, theirs):
    """How far runs are above others, each right or wrong on the same images: the mean, image by image, and half its 95 %
    interval over the images, in %."""
    shares = [[statistics.mean(rights) for rights in zip(*runs, strict=True)] for runs in (ours, theirs)]
    differences = [a - b for a, b in zip(*shares, strict=True)]
    half = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{100 * statistics.mean(differences):+.1f} ± {100 * half:.1f}"
