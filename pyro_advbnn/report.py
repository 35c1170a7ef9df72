"""One self-contained HTML page from the records of runs and evaluations: nothing is computed, loaded or fetched.

The page is a tree of elements, so that text from files, labels and flags is escaped wherever it comes to stand.
"""
import base64
import re
import shlex
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

from pyro_advbnn import paper, records, summaries, tables
from pyro_advbnn.errors import InputError

RANDOM = ("rse", "bnn", "advbnn", "advrse")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NOTHING = "–"


def write(folder, runs=None):
    """Write folder/report.html, one page that needs no other file and no network; returns its path.

    folder: a result folder or a run folder, with evaluation/ and figures/. runs: run folders, by default all of
    folder/runs, or the folder itself where it is one. The same records give the same bytes.

    Raises InputError where there is nothing to report, or a record cannot be read.
    """
    folder = Path(folder)
    configs = _configs(_run_folders(folder) if runs is None else [Path(run) for run in runs])
    log = _lines(folder / "evaluation" / "log.jsonl")
    if not (configs or log or list(folder.glob("evaluation/*.csv")) or list(folder.glob("figures/*.svg"))):
        raise InputError(f"{folder} holds no run, no evaluation and no figure to report")
    page = "<!DOCTYPE html>\n" + ET.tostring(_page(folder, configs, log), encoding="unicode", method="html")
    path = folder / "report.html"
    with records.replacing(path) as file:
        file.write(page.encode("utf-8", "xmlcharrefreplace"))
    return path


def _run_folders(folder):
    if (folder / "config.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("runs/*/config.json"))


def _configs(runs):
    """{name: config} of the run folders, in the order of the defences; a config gains its last line of metrics."""
    configs = {}
    for run in runs:
        name, config = run.resolve().name, records.read_json(run / "config.json")
        if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
            raise InputError(f"{run} is no run folder: its config.json is not that of a training")
        if name in configs:
            raise InputError(f"two runs are named {name}; a report tells runs apart by the names of their folders")
        configs[name] = config | {"metrics": (_lines(run / "metrics.jsonl") or [{}])[-1]}
    return dict(sorted(configs.items(), key=lambda item: _rank(item[1].get("defense"), paper.DEFENSE_NAMES)))


def _rank(name, names):
    """The place of a name in `names`; unknown ones come last."""
    return list(names).index(name) if name in list(names) else len(names)


def _lines(path):
    """The mappings of a JSON-lines file, [] where there is none.   Raises InputError for anything else."""
    lines = records.read_jsonl(path)
    if not all(isinstance(line, dict) for line in lines):
        raise InputError(f"{path} cannot be read: a line is no mapping")
    return lines


def _page(folder, configs, log):
    datasets = sorted({_dataset(config) for config in configs.values()})
    title = "Adv-BNN" + (f" on {', '.join(datasets)}" if datasets else "") + ": results"
    sections = {
        "runs": ("What was run", _runs(configs)),
        "tables": ("Results in numbers", _tables(folder)),
        "figures": ("Results in figures", _figures(folder)),
        "examples": ("Adversarial examples, side by side", _examples(folder, configs)),
        "caveats": ("What to keep in mind", _caveats(folder, configs)),
        "time": ("How long the evaluations took", _time(log)),
        "reproduce": ("How to reproduce this", _reproduce(configs, log)),
    }
    links = [element("li", element("a", heading, href=f"#{name}")) for name, (heading, _) in sections.items()]
    body = element(
        "body", element("a", "Skip to the contents", href="#contents", class_="skip"),
        element("header", element("h1", title), *_introduction(configs, log)),
        element("nav", element("ol", *links), aria_label="Sections"),
        element("main", *(_section(name, *content) for name, content in sections.items()), id="contents"),
        element("footer", element("p", "Written by pyro_advbnn.report from the records in this folder alone.")))
    return element("html", _head(title), body, lang="en")


def _head(title):
    css = resources.files("pyro_advbnn").joinpath("report.css").read_text("utf-8")
    return element("head", element("meta", charset="utf-8"),
                   element("meta", http_equiv="Content-Security-Policy", content=POLICY),
                   element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                   element("meta", name="color-scheme", content="light dark"),
                   element("link", rel="icon", href="data:,"), element("title", title), element("style", css))


def _introduction(configs, log):
    yield element("p", "Adv-BNN trains a network whose weights are Normal distributions on images that an attacker has "
                  "perturbed, so that the posterior itself is robust (Liu, Li, Wu and Hsieh, ICLR 2019). This page "
                  "shows what was trained, how often it is right under attack, and the paper's numbers beside ours. "
                  "Everything on it is read from the records of the runs: nothing is typed in by hand. Where a "
                  "network is random, believe the attack that averages many draws of the weights in each gradient.",
                  class_="lead")
    defenses = dict.fromkeys(_defense(config) for config in configs.values())
    seconds = [line.get("seconds") for line in log if isinstance(line.get("seconds"), int | float)]
    yield _definitions({"Runs": f"{len(configs)}", "Defences": ", ".join(defenses) or NOTHING,
                        "Evaluations": f"{len(log)}", "Time of the evaluations": _duration(sum(seconds))}, "glance")


def _section(name, heading, content):
    return element("section", element("h2", heading, id=f"{name}-heading"), *content, id=name,
                   aria_labelledby=f"{name}-heading")


# Elements

_BLOCKS = {"head", "body", "meta", "link", "style", "title", "header", "nav", "main", "footer", "section", "article", "div",
           "p", "h1", "h2", "h3", "ol", "ul", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "figure",
           "figcaption", "details", "summary", "pre"}


def element(tag, *content, **attributes):
    """An HTML element of texts and elements; attributes as class_="x", aria_label="y", and those that are None left out."""
    named = {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items() if value is not None}
    node = ET.Element(tag, named)
    node.tail = "\n" if tag in _BLOCKS else None
    for child in content:
        if not isinstance(child, str):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + child
        else:
            node.text = (node.text or "") + child
    return node


def _table(caption, columns, rows):
    """A table of texts in a box of its own that scrolls; the first cell of each row is its heading."""
    rows = [list(row) for row in rows]
    kinds = [_column_kind([row[n] for row in rows]) for n in range(len(columns))]
    head = element("tr", *(element("th", column, scope="col", class_=kind) for column, kind in zip(columns, kinds)))
    lines = [element("tr", element("th", row[0], scope="row", class_=kinds[0]),
                     *(element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:]))) for row in rows]
    table = element("table", element("caption", element("span", caption)), element("thead", head), element("tbody", *lines))
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


_NUMBER = re.compile(r"[-−]?\d[\d\s.,%\[\]()±e+−-]*|\d+ h \d+ min|\d+ min \d+ s|[\d.]+ s")      # also intervals and times


def _column_kind(cells):
    """The class of a column: numbers stand to the right, long texts need room."""
    told = [cell for cell in cells if cell != NOTHING]
    if told and all(_NUMBER.fullmatch(cell) for cell in told):
        return "number"
    longest = max(map(len, told), default=0)
    return "long" if longest > 32 else "text" if longest > 12 else None


def _definitions(pairs, kind):
    return element("dl", *(element("div", element("dt", name), element("dd", text)) for name, text in pairs.items()),
                   class_=kind)


def _missing(text):
    return [element("p", text, class_="missing")]


# What was run

SETTINGS = {
    "defence": lambda config: _defense(config),
    "data set": lambda config: _dataset(config),
    "N (training images)": lambda config: _count(config.get("num_train")),
    "held out": lambda config: _count(config.get("num_held_out")),
    "network": lambda config: _text(config.get("network")) + _suffix(", width {}", config["settings"].get("width")),
    "weights": lambda config: _count(config.get("num_weights")),
    "recipe": lambda config: _text(config.get("recipe")),
    "epochs": lambda config: _text(config["settings"].get("epochs")),
    "batch": lambda config: _text(config["settings"].get("batch_size")),
    "optimizer": lambda config: _list(config["settings"], "optimizer", "learning_rate", "schedule"),
    "alpha": lambda config: _of_bayesian(config, "alpha"),
    "KL over weights": lambda config: _of_bayesian(config, "kl_over"),
    "prior": lambda config: _of_bayesian(config, "prior", "prior_std"),
    "initial std": lambda config: _of_bayesian(config, "init_std"),
    "attack in training": lambda config: _training_attack(config),
    "seed": lambda config: _text(config.get("seed")),
    "precision": lambda config: _text(config.get("precision")),
    "trained on": lambda config: _text(_environment(config).get("device")),
    "torch": lambda config: _text(_mapping(_environment(config).get("versions")).get("torch")),
    "commit": lambda config: _text(_environment(config).get("git_commit")),
}
LAST_EPOCH = {
    "last epoch": lambda metrics: _text(metrics.get("epoch")),
    "nll": lambda metrics: _text(metrics.get("nll")),
    "held out, clean": lambda metrics: _percent(metrics.get("held_out_accuracy")),
    "held out, PGD": lambda metrics: _percent(metrics.get("held_out_robust_accuracy")),
}


def _runs(configs):
    if not configs:
        return _missing("No run folders lie here (runs/*/config.json), so their settings are not shown.")
    cells = {name: [show(config) for config in configs.values()] for name, show in SETTINGS.items()}
    shared = {name: values[0] for name, values in cells.items() if len(set(values)) == 1 and values[0] != NOTHING}
    differing = {name: values for name, values in cells.items() if len(set(values)) > 1}
    last = {name: [show(config["metrics"]) for config in configs.values()] for name, show in LAST_EPOCH.items()}
    rows = zip(configs, *differing.values(), *last.values())
    told = "Settings that the runs share." if len(configs) > 1 else "Settings."
    return [element("p", told), _definitions(shared, "settings"),
            _table("Runs: what differs, and the last epoch", ["run", *differing, *last], rows),
            *(_details(name, config) for name, config in configs.items())]


def _details(name, config):
    """All that a run's records say, folded away."""
    environment = _environment(config)
    shown = {"commit": _text(environment.get("git_commit")), "device": _text(environment.get("device")),
             "hardware": _flat(environment.get("hardware")), "python": _text(environment.get("python")),
             "versions": _flat(environment.get("versions")), "last line of metrics": _flat(config["metrics"])}
    whole = {key: value for key, value in config.items() if key != "metrics"}
    return element("details", element("summary", element("b", name), ": versions, hardware and the whole configuration"),
                   _definitions(shown, "settings"),
                   element("pre", element("code", records.as_json(whole)), tabindex="0", role="region",
                           aria_label=f"config.json of {name}"))


def _defense(config):
    return paper.DEFENSE_NAMES.get(str(config.get("defense")), _text(config.get("defense")))


def _environment(record):
    return _mapping(record.get("environment"))


def _mapping(value):
    return value if isinstance(value, dict) else {}


def _dataset(config):
    return paper.DATASET_NAMES.get(str(config.get("dataset")), _text(config.get("dataset")))


def _of_bayesian(config, *names):
    bayesian = _mapping(config.get("classifier")).get("kind") == "bayesian"
    return _list(config["settings"], *names) if bayesian else NOTHING


def _training_attack(config):
    settings = config["settings"]
    if not str(config.get("defense")).startswith("adv"):
        return "none"
    return (f"PGD, ε {_text(settings.get('epsilon'))}, {_text(settings.get('num_steps'))} steps of "
            f"{_text(settings.get('step_size'))}, {_draws(settings.get('attack_samples'))}")


def _draws(number, per=" per gradient"):
    return f"{_text(number)} {'draw' if number == 1 else 'draws'}{per}"


# Numbers as text

def _text(value):
    if value in (None, "", "-"):
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _count(value):
    return f"{value:,}" if isinstance(value, int) else _text(value)


def _fixed(value, digits):
    return f"{value:{digits}}" if isinstance(value, int | float) else NOTHING


def _percent(value):
    return _fixed(value, ".1%").replace("%", " %")


def _list(settings, *names):
    return ", ".join(_text(settings.get(name)) for name in names)


def _flat(mapping):
    return ", ".join(f"{key} {_text(value)}" for key, value in _mapping(mapping).items()) or NOTHING


def _suffix(pattern, value):
    return "" if value is None else pattern.format(_text(value))


def _duration(seconds):
    if not isinstance(seconds, int | float):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{minutes[0]} min {minutes[1]:02} s" if minutes[0] < 60 else f"{hours[0]} h {hours[1]:02} min"


# Tables and times

def _tables(folder):
    found = summaries.summaries(folder)
    if not found:
        return _missing("No tables: evaluation/ holds no rows yet. python -m pyro_advbnn.evaluate writes them.")
    return [_summary(summary) for summary in found]


def _summary(summary):
    table = _table(summary.title, [str(column) for column in summary.columns],
                   [[_text(cell) for cell in row] for row in summary.rows])
    return element("article", table, *([element("p", summary.note, class_="note")] if summary.note else []))


def _time(log):
    if not log:
        return _missing("No times: evaluation/log.jsonl is not there.")
    rows = [[_command(line), _duration(line.get("seconds")), _count(line.get("rows")),
             _text(_environment(line).get("device"))] for line in log]
    return [_table("Evaluations in the order in which they ran", ["command", "time", "rows", "device"], rows)]


def _command(line):
    return _text(line.get("command")).removeprefix("python -m pyro_advbnn.")


# Figures

FIGURES = {                                               # title, the paper's figure, what is seen
    "accuracy": ("Accuracy under attack", "Fig. 2 and Table 1", "Accuracy against the radius of a white-box PGD attack; bands "
                 "are 95 % intervals. One draw of the weights per gradient is the paper's attack, many draws are honest."),
    "transfer": ("Transfer attacks", "Fig. 3 and Eq. (14)", "How much of a white-box attack's effect remains when the images "
                 "were made against another network: 1 is all of it, 0 nothing. Where the attack has next to no effect "
                 "there is nothing to compare, and the cell says so."),
    "log_std": ("How certain the weights are", "Fig. 4", "Density of the log standard deviations of all weights, and the "
                "prior's."),
    "log_std_by_layer": ("Certainty layer by layer", None, "Log standard deviations of the weights of each layer: the median "
                         "and the middle 90 %."),
    "signal_to_noise": ("Signal and noise of the weights", None, "Density of |mean| / std over all weights: what "
                        "lies far to the left says little to the network."),
    "pruning": ("Pruning by the posterior", "remark in section 3.3, not tested there", "Accuracy against the fraction of the "
                "weights that are set to zero, the least certain first."),
    "ensemble": ("Draws averaged in a prediction", "Fig. 5, left", "Accuracy against the number of weight draws whose softmax "
                 "outputs are averaged."),
    "steps": ("Steps of the attack", "Fig. 5, right", "Accuracy against the number of PGD steps. More steps should never help "
              "the defender."),
    "alpha": ("The factor of the KL", "remark under Table 1, not tested there", "Accuracy, clean and attacked, of runs that "
              "differ in alpha, Eq. (10)."),
    "prior_std": ("The prior", "remark in Table 2, not tested there", "Accuracy, clean and attacked, of runs that differ in "
                  "the prior's standard deviation."),
    "gradients": ("Gradients of the loss", "Eqs. (11) to (13), no numbers there", "Mean l1 norm of the loss's gradient with "
                  "respect to the image, on training and test images."),
}


def _figures(folder):
    paths = sorted(folder.glob("figures/*.svg"), key=lambda path: (_rank(_kind(path), FIGURES), path.name))
    if not paths:
        return _missing("No figures: figures/ holds none. They are drawn from the tables of evaluation/.")
    return [element("div", *(_figure(path, number) for number, path in enumerate(paths, 1)), class_="figures")]


def _kind(path):
    """The name of FIGURES that a figure's file name begins with, as in accuracy-digits.svg, or None."""
    return next((name for name in FIGURES if re.fullmatch(rf"{name}([-.].*)?", path.stem)), None)


def _figure(path, number):
    title, source, caption = FIGURES.get(_kind(path), (path.stem, None, ""))
    told = f"In the paper: {source}." if source else "Not in the paper."
    drawing = inline_svg(path, f"f{number}", title)
    return element("figure", element("div", drawing, class_="drawing", tabindex="0", role="region", aria_label=title),
                   element("figcaption", element("b", f"Figure {number}. {title}. "), f"{caption} ",
                           element("span", told, class_="source"), f" ({path.name})"))


_NAMESPACE = re.compile(r"\{[^}]*\}")
_SHAPES = {"svg", "g", "defs", "path", "use", "clipPath", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text",
           "tspan", "image", "linearGradient", "radialGradient", "stop", "marker", "pattern"}
_ATTRIBUTES = {"id", "d", "x", "y", "x1", "x2", "y1", "y2", "dx", "dy", "cx", "cy", "r", "rx", "ry", "points", "width",
               "height", "transform", "style", "fill", "fill-opacity", "fill-rule", "stroke", "stroke-width",
               "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "stroke-opacity", "opacity", "clip-path",
               "clip-rule", "clipPathUnits", "href", "viewBox", "preserveAspectRatio", "offset", "stop-color",
               "stop-opacity", "gradientUnits", "gradientTransform", "text-anchor", "dominant-baseline", "font-size",
               "font-family", "font-weight", "font-style", "markerWidth", "markerHeight", "refX", "refY", "orient",
               "patternUnits", "patternTransform"}
_FUNCTIONS = {"url", "rgb", "rgba", "matrix", "translate", "scale", "rotate", "skewx", "skewy"}
_COLOURS = {r"#1b1b1b\b": "currentColor", r"#ffffff\b": "none"}


def inline_svg(path, prefix, label):
    """The drawing of an SVG file as an element for the page: shapes and text alone, no script, style sheet or link.

    Identifiers become <prefix>-1 and on, ink (#1b1b1b) the colour of the page's text, paper (#ffffff) nothing.
    Raises InputError where the file is no SVG.
    """
    root = _parse(path)
    for node in root.iter():
        node.tag = _NAMESPACE.sub("", node.tag)
        node.attrib = {_NAMESPACE.sub("", name): value for name, value in node.attrib.items()}
        for child in [child for child in node if _NAMESPACE.sub("", child.tag) not in _SHAPES]:
            node.remove(child)
    names = {node.get("id"): f"{prefix}-{number}" for number, node in enumerate(root.iter(), 1) if node.get("id")}
    for node in root.iter():
        cleaned = {name: _attribute(name, value, node.tag, names) for name, value in node.attrib.items()}
        node.attrib = {name: value for name, value in cleaned.items() if value is not None}
    root.attrib = {"viewBox": root.get("viewBox", "0 0 640 480"), "role": "img", "aria-label": label}
    root.tail = "\n"
    return root


def _parse(path):
    try:
        text = path.read_text("utf-8")
        root = None if "<!ENTITY" in text else ET.fromstring(text)
    except (OSError, ValueError, ET.ParseError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if root is None or _NAMESPACE.sub("", root.tag) != "svg":
        raise InputError(f"{path} is no drawing that a report takes: it must be an svg without entities")
    return root


def _attribute(name, value, tag, names):
    """The attribute's value as it goes into the page, or None where it does not."""
    if name not in _ATTRIBUTES:
        return None
    if name == "id":
        return names[value]
    if name == "href":
        embedded = tag == "image" and value.startswith("data:image/png;base64,")
        return value if embedded else _reference(value.strip(), names)
    if not set(re.findall(r"([\w-]*)\s*\(", value.lower())) <= _FUNCTIONS:
        return None
    for colour, own in _COLOURS.items():
        value = re.sub(colour, own, value, flags=re.IGNORECASE)
    parts = re.split(r"url\(\s*[\"']?(.*?)[\"']?\s*\)", value, flags=re.IGNORECASE)
    parts[1::2] = [_reference(part, names) for part in parts[1::2]]
    return None if None in parts else "".join(f"url({part})" if n % 2 else part for n, part in enumerate(parts))


def _reference(value, names):
    return f"#{names[value[1:]]}" if value.startswith("#") and value[1:] in names else None


# Adversarial examples

def _examples(folder, configs):
    rows = tables.read(folder, "examples")
    if not rows:
        return _missing("No examples: evaluation/examples.csv is not there.")
    groups = {}
    for row in rows:
        groups.setdefault((row["run"], _evaluation_attack(row)), []).append(row)
    return [element("p", "Each row of pictures is one image: as it is, what the attack adds (ten times enlarged, grey "
                    "is no change), and the sum, which is what the network sees. In bold the prediction; p is the mean "
                    "probability of the true class over draws of the weights, ± its standard deviation over the draws."),
            *(node for (run, attack), group in groups.items() for node in (
                element("h3", _defense(group[0]), element("small", f" run {run}, {attack}")),
                element("div", *(_example(row, folder / "evaluation") for row in group), class_="examples")))]


def _evaluation_attack(row):
    return (f"{_text(row['attack'])}, ε {_text(row['epsilon'])}, {_text(row['num_steps'])} steps of "
            f"{_text(row['step_size'])}, {_draws(row['attack_samples'])}; predictions of {_draws(row['num_samples'], '')}")


def _example(row, folder):
    clean, attacked, label = row["clean_prediction"], row["adversarial_prediction"], row["label"]
    outcome = "wrong before the attack" if clean != label else "withstood" if attacked == label else "fooled"
    title = f"Image {_text(row['index'])}, true class {_text(label)}: "
    pictures = [_picture(folder, row["clean_image"], "as it is", _prediction(row, "clean")),
                _picture(folder, row["perturbation_image"], "change ×10", []),
                _picture(folder, row["adversarial_image"], "attacked", _prediction(row, "adversarial"))]
    return element("figure", element("figcaption", title, element("b", outcome)), element("div", *pictures, class_="triple"),
                   class_="example")


def _prediction(row, kind):
    probability, spread, agreement = (row[f"{kind}_{name}"] for name in ("probability", "probability_std", "agreement"))
    yield element("span", element("b", _text(row[f"{kind}_prediction"])), class_="answer")
    if row["num_samples"] == 1:                                         # one draw, or a network that has nothing to draw
        yield element("span", f"p = {_fixed(probability, '.2f')}")
    else:
        yield element("span", f"p = {_fixed(probability, '.2f')} ± {_fixed(spread, '.2f')}")
        yield element("span", f"{_fixed(agreement, '.0%')} of draws agree".replace("%", " %"))


def _picture(folder, name, title, lines):
    source = _data_uri(folder, name)
    image = (element("img", src=source, alt=title, width="96", height="96") if source
             else element("span", "no picture", class_="missing"))
    return element("div", image, element("span", title, class_="what"), *lines)


def _data_uri(folder, name):
    """The PNG file folder/name as a data: URI; None where it is not there, lies outside of folder or is no PNG."""
    path = (folder / (name or "")).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    content = path.read_bytes()
    known = content.startswith(b"\x89PNG\r\n\x1a\n")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if known else None


# Caveats and commands

def _caveats(folder, configs):
    lines = ["PGD is one attack. A stronger one may find more: every accuracy under attack is an upper bound.",
             "An attacker who draws the weights once per gradient is weak against a random network (Zimmermann, "
             "arXiv 1907.00895). Compare defences by the attack with many draws.",
             "The 95 % intervals say how far the choice of test images may move a number. They do not say how far another "
             "training seed may."]
    rows = [row for name in ("accuracy", "alpha", "prior_std", "steps") for row in tables.read(folder, name)]
    return [element("ul", *(element("li", line) for line in
                            [*lines, *_drawn_once(rows), *_out_of_reach(rows), *_few_images(rows), *_changed(configs)]))]


def _drawn_once(rows):
    random = {row["run"] for row in rows if row["defense"] in RANDOM and row["epsilon"]}
    weak = random - {row["run"] for row in rows if (row["attack_samples"] or 0) > 1 and row["epsilon"]}
    return [f"Only attacked with one draw per gradient, so not yet honestly: {', '.join(sorted(weak))}."] if weak else []


def _out_of_reach(rows):
    attacks = {}
    for row in rows:
        if row["reaches_ball"] is False:
            attacks.setdefault((row["epsilon"], row["step_size"]), set()).add(row["num_steps"])
    told = [f"radius {_text(radius)} with {', '.join(map(_text, sorted(steps)))} steps of {_text(size)}"
            for (radius, size), steps in sorted(attacks.items())]
    return [f"Some attacks cannot reach the border of their ball and are weaker than their radius says: {'; '.join(told)}."
            ] if told else []


def _few_images(rows):
    numbers = sorted({row["num_examples"] for row in rows if row["num_examples"]})
    return [f"Accuracies are measured on {numbers[0]:,} images" + (f" to {numbers[-1]:,}." if numbers[1:] else ".")
            ] if numbers else []


def _changed(configs):
    changed = [name for name, config in configs.items()
               if str(_environment(config).get("git_commit")).endswith("-dirty")]
    return [f"Trained from code with uncommitted changes: {', '.join(changed)}."] if changed else []


def _reproduce(configs, log):
    commands = [_training_command(name, config) for name, config in configs.items()]
    commands += dict.fromkeys(f"python -m pyro_advbnn.{_command(line)}" for line in log if line.get("command"))
    if not commands:
        return _missing("No commands: neither run folders nor evaluation/log.jsonl are here.")
    return [element("p", "With the package installed at the commit that is named with each run, in the order in which it was "
                    "done. Paths are those of the machine on which it was done."),
            element("pre", element("code", "\n".join(commands)), tabindex="0", role="region", aria_label="Commands")]


def _training_command(name, config):
    words = [f"--{shlex.quote(flag)} {shlex.quote(str(value))}" for flag, value in _mapping(config.get("flags")).items()]
    return " ".join(["python -m pyro_advbnn.train", *words, "--out", shlex.quote(f"runs/{name}")])
