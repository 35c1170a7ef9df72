"""One self-contained HTML page from the records of runs and evaluations: nothing is computed, loaded or fetched.

What the records say is collected here; report.html.j2 is the page, which escapes every text that comes from them.
"""
import base64
import re
from pathlib import Path

import jinja2

from pyro_advbnn.cli import help
from pyro_advbnn.cli.text_tables import NONE, count, counted, decimal, duration, share, shown
from pyro_advbnn.reporting import csv_tables, paper, run_descriptions, summaries
from pyro_advbnn.reporting.curves import is_random
from pyro_advbnn.reporting.figures import FIGURES
from pyro_advbnn.reporting.summary import Summary
from pyro_advbnn.system import files, json_files

_NUMBER = re.compile(r"[-−]?\d[\d\s.,%\[\]()±e+−-]*|\d+ h \d+ min|\d+ min \d+ s|[\d.]+ s")      # also intervals and times
# Of examples: what tells groups of them apart, and what differs between calls for one group.
_GROUP = ("run", "network", "checkpoint", "attack", "epsilon", "num_steps", "step_size", "attack_samples", "num_samples")
_CALL = ("weights", "num_examples", "images", "seed")


def write(folder, runs=None):
    """Write folder/report.html, one page that needs no other file and no network; returns its path.

    folder: a result folder or a run folder, with evaluation/ and figures/. runs: run folders, by default all of
    folder/runs, or the folder itself where it is one. The same records give the same bytes.

    Raises InputError for records of another version.
    """
    folder = Path(folder)
    configs = run_descriptions.read(run_descriptions.run_folders(folder) if runs is None else [Path(run) for run in runs])
    order = list(paper.DEFENSE_NAMES)
    configs = dict(sorted(configs.items(), key=lambda item: order.index(item[1]["defense"])))
    log = json_files.read_jsonl(folder / "evaluation" / "log.jsonl")
    page = _template().render(
        configs=configs, log=log, **_overview(configs), tables=summaries.summaries(folder), figures=_figures(folder),
        examples=_examples(folder), caveats=_caveats(folder, configs), times=_times(log),
        commands=[*_trainings(configs), *dict.fromkeys(line["command"] for line in log)])
    path = folder / "report.html"
    with files.replacing(path) as file:
        file.write(page.lstrip().encode())
    return path


def _template():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=lambda value: "–" if value in (None, NONE) else value)
    environment.filters |= {"kinds": _kinds, "decimal": decimal, "share": share, "shown": shown, "counted": counted,
                            "duration": duration, "defense_name": paper.defense_name, "dataset_name": paper.dataset_name,
                            "as_json": lambda config: json_files.as_json({n: config[n] for n in config if n != "metrics"})}
    return environment.get_template("report.html.j2")


def _kinds(table):
    """The class of each column of a table: numbers stand to the right, long texts need room."""
    for cells in zip(*table.rows):
        told = [cell for cell in cells if cell != NONE]
        longest = max(map(len, told), default=0)
        numbers = told and all(map(_NUMBER.fullmatch, told))
        yield "number" if numbers else "long" if longest > 32 else "text" if longest > 12 else "short"


def _overview(configs):
    """What the runs share, and a table of how they differ."""
    shared, differing = run_descriptions.shared_and_differing(configs)
    last = {name: [show(config["metrics"]) for config in configs.values()]
            for name, show in run_descriptions.LAST_EPOCH.items()}
    rows = list(zip(configs, *differing.values(), *last.values()))
    return {"shared": shared, "runs": Summary("runs", "Runs: what differs, and the last epoch",
                                              ["run", *differing, *last], rows, "")}


def _figures(folder):
    """(name, of FIGURES; the drawing as a data: URI) of each figure."""
    paths = {name: folder / "figures" / f"{name}.svg" for name in FIGURES}
    return [(name, _data_uri("svg+xml", path.read_bytes())) for name, path in paths.items() if path.exists()]


def _data_uri(kind, content):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _examples(folder):
    """[rows of examples.csv of one checkpoint and attack, computed last, with their pictures as data: URIs], lists."""
    groups = {}
    for row in csv_tables.read(folder, "examples"):
        paths = {name: folder / "evaluation" / (row[name] or "") for name in row if name.endswith("_image")}
        pictures = {name: _data_uri("png", path.read_bytes()) if path.is_file() else None for name, path in paths.items()}
        group = groups.setdefault(tuple(map(row.get, _GROUP)), [])
        if group and any(group[0][name] != row[name] for name in _CALL):
            group.clear()
        group.append(row | pictures)
    return list(groups.values())


def _caveats(folder, configs):
    """What these rows and runs leave open, as sentences."""
    rows = [row for name, columns in csv_tables.TABLES.items() if {"accuracy", "defense"} <= set(columns)
            for row in csv_tables.read(folder, name) if row.get("source") in (None, "target")]      # not transferred
    random = {row["run"] for row in rows if is_random(row) and row["epsilon"]}
    weak = random - {row["run"] for row in rows if (row["attack_samples"] or 0) > 1 and row["epsilon"]}
    if weak:
        yield f"Only attacked with one draw per gradient, so not yet honestly: {', '.join(sorted(weak))}."
    attacks = {}
    for row in rows:
        if row.get("reaches_ball") is False:
            attacks.setdefault((row["epsilon"], row["step_size"]), set()).add(row["num_steps"])
    told = [f"radius {shown(radius)} with {', '.join(map(shown, sorted(steps)))} steps of {shown(size)}"
            for (radius, size), steps in sorted(attacks.items())]
    if told:
        yield f"Some attacks cannot reach the border of their ball and are weaker than their radius says: {'; '.join(told)}."
    numbers = sorted({row["num_examples"] for row in rows})
    if numbers:
        yield f"Accuracies are measured on {numbers[0]:,} images{f' to {numbers[-1]:,}' if numbers[1:] else ''}."
    changed = [name for name, config in configs.items() if str(config["environment"].get("git_commit")).endswith("-dirty")]
    if changed:
        yield f"Trained from code with uncommitted changes: {', '.join(changed)}."


def _times(log):
    rows = [[line["command"].removeprefix("python -m pyro_advbnn."), duration(line["seconds"]), count(line["rows"]),
             line["environment"]["device"]] for line in log]
    return Summary("times", "Evaluations in the order in which they ran", ["command", "time", "rows", "device"], rows, "")


def _trainings(configs):
    """The command that began each run, and one for each time that it went on with other flags."""
    for name, config in sorted(configs.items(), key=lambda item: bool(item[1].get("init_from"))):
        changes, folder = [each for each in config.get("resumed", []) if each["changed"]], f"runs/{name}"
        began = {flag: before for each in reversed(changes) for flag, (before, _) in each["changed"].items()}
        yield help.typed("pyro_advbnn.train", config["flags"] | began | {"max_minutes": None, "out": folder})
        for change in changes:
            now = {flag: after for flag, (_, after) in change["changed"].items()}
            again = help.typed("pyro_advbnn.train", {"resume": folder} | now)
            yield f"{again}    # stopped after epoch {change['after_epoch']}, step {change['after_step']} of the next"
