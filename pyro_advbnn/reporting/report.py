"""One self-contained HTML page from the records of runs and evaluations: nothing is computed, loaded or fetched.

The page is a tree of elements, so that text from files, labels and flags is escaped wherever it comes to stand.
"""
import re
import shlex
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

from pyro_advbnn.reporting import overview, paper, summaries, texts
from pyro_advbnn.reporting.caveats import caveats
from pyro_advbnn.reporting.drawings import inline_svg
from pyro_advbnn.reporting.elements import definitions, element, missing, table
from pyro_advbnn.reporting.pictures import examples
from pyro_advbnn.reporting.run_descriptions import dataset, defense, environment, mapping, read, run_folders
from pyro_advbnn.system import files, json_files
from pyro_advbnn.system.errors import InputError

# Control characters are no text of a page, and those that turn the direction of writing make it read as what it is not.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write(folder, runs=None):
    """Write folder/report.html, one page that needs no other file and no network; returns its path.

    folder: a result folder or a run folder, with evaluation/ and figures/. runs: run folders, by default all of
    folder/runs, or the folder itself where it is one. The same records give the same bytes.

    Raises InputError where there is nothing to report, or a record cannot be read.
    """
    folder = Path(folder)
    configs = read(run_folders(folder) if runs is None else [Path(run) for run in runs])
    configs = dict(sorted(configs.items(), key=lambda item: _rank(item[1].get("defense"), paper.DEFENSE_NAMES)))
    log = json_files.read_jsonl(folder / "evaluation" / "log.jsonl")
    if not (configs or log or list(folder.glob("evaluation/*.csv")) or list(folder.glob("figures/*.svg"))):
        raise InputError(f"{folder} holds no run, no evaluation and no figure to report")
    page = "<!DOCTYPE html>\n" + ET.tostring(_page(folder, configs, log), encoding="unicode", method="html")
    page = _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", page)
    path = folder / "report.html"
    with files.replacing(path) as file:
        file.write(page.encode())
    return path


def _rank(name, names):
    """The place of a name in `names`; unknown ones come last."""
    return list(names).index(name) if name in list(names) else len(names)


def _page(folder, configs, log):
    datasets = sorted({dataset(config) for config in configs.values()})
    title = "Adv-BNN" + (f" on {', '.join(datasets)}" if datasets else "") + ": results"
    sections = {
        "runs": ("What was run", overview.runs(configs)),
        "tables": ("Results in numbers", _tables(folder)),
        "figures": ("Results in figures", _figures(folder)),
        "examples": ("Adversarial examples, side by side", examples(folder)),
        "caveats": ("What to keep in mind", caveats(folder, configs)),
        "time": ("How long the evaluations took", _time(log)),
        "reproduce": ("How to reproduce this", _reproduce(configs, log)),
    }
    links = [element("li", element("a", heading, href=f"#{name}")) for name, (heading, _) in sections.items()]
    body = element(
        "body", element("a", "Skip to the contents", href="#contents", class_="skip"),
        element("header", element("h1", title), *_introduction(configs, log)),
        element("nav", element("ol", *links), aria_label="Sections"),
        element("main", *(_section(name, *content) for name, content in sections.items()), id="contents"),
        element("footer", element("p", "Written by pyro_advbnn.reporting.report from the records in this folder alone.")))
    return element("html", _head(title), body, lang="en")


def _head(title):
    css = resources.files("pyro_advbnn.reporting").joinpath("report.css").read_text("utf-8")
    return element("head", element("meta", charset="utf-8"),
                   element("meta", http_equiv="Content-Security-Policy", content=POLICY),
                   element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                   element("meta", name="color-scheme", content="light dark"),
                   element("link", rel="icon", href="data:,"), element("title", title), element("style", css))


def _introduction(configs, log):
    yield element("p", "Adv-BNN trains a network whose weights are Normal distributions on images that an attacker has "
                  "perturbed, so that the posterior itself is robust (Liu, Li, Wu and Hsieh, ICLR 2019). This page "
                  "shows what was trained, how often it is right under attack, and the paper's numbers beside ours where "
                  "there are any. Everything on it is read from the records of the runs: nothing is typed in by hand. Where a "
                  "network is random, believe the attack that averages many draws of the weights in each gradient.",
                  class_="lead")
    defenses = dict.fromkeys(defense(config) for config in configs.values())
    seconds = [line.get("seconds") for line in log if texts.duration(line.get("seconds")) != texts.NOTHING]
    yield definitions({"Runs": f"{len(configs)}", "Defences": ", ".join(defenses) or texts.NOTHING,
                       "Evaluations": f"{len(log)}", "Time of the evaluations": texts.duration(sum(seconds))}, "glance")


def _section(name, heading, content):
    return element("section", element("h2", heading, id=f"{name}-heading"), *content, id=name,
                   aria_labelledby=f"{name}-heading")


def _tables(folder):
    found = summaries.summaries(folder)
    if not found:
        return missing("No tables: evaluation/ holds no rows yet. python -m pyro_advbnn.evaluate writes them.")
    return [_summary(summary) for summary in found]


def _summary(summary):
    numbers = table(summary.title, [str(column) for column in summary.columns],
                    [[texts.of(cell) for cell in row] for row in summary.rows])
    return element("article", numbers, *([element("p", summary.note, class_="note")] if summary.note else []))


def _time(log):
    if not log:
        return missing("No times: evaluation/log.jsonl is not there.")
    rows = [[_command(line), texts.duration(line.get("seconds")), texts.count(line.get("rows")),
             texts.of(environment(line).get("device"))] for line in log]
    return [table("Evaluations in the order in which they ran", ["command", "time", "rows", "device"], rows)]


def _command(line):
    return texts.of(line.get("command")).removeprefix("python -m pyro_advbnn.")


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
    "many_draws": ("Draws averaged in an attack's gradient", "Zimmermann's comment, arXiv 1907.00895", "Accuracy against the "
                   "number of weight draws that each gradient of the attack averages. What falls here was never robust."),
    "gradients": ("Gradients of the loss", "Eqs. (11) to (13), no numbers there", "Mean l1 norm of the loss's gradient with "
                  "respect to the image, on training and test images."),
    "calibration": ("Is confidence warranted?", None, "Reliability diagram: accuracy against the confidence of the averaged "
                    "prediction, in bins of equal width; on the diagonal confidence is what it promises, below it too high."),
    "detection": ("Does doubt tell attacked and foreign images?", None, "The chance (AUROC) that such an image has the "
                  "higher doubt of it and a clean one; 0.5 is guessing. pgd-confident is an attacker who also leaves no "
                  "doubt: only what survives it counts."),
    "rejection": ("Refusing an answer", None, "Accuracy on the images that are left when the most doubtful ones are rejected."),
}


def _figures(folder):
    paths = sorted(folder.glob("figures/*.svg"), key=lambda path: (_rank(_kind(path), FIGURES), path.name))
    if not paths:
        return missing("No figures: figures/ holds none. They are drawn from the tables of evaluation/.")
    return [element("div", *(_figure(path, number) for number, path in enumerate(paths, 1)), class_="figures")]


def _kind(path):
    """The name of FIGURES that a figure's file name begins with, as in accuracy-digits.svg, or None."""
    return next((name for name in FIGURES if re.fullmatch(rf"{name}([-.].*)?", path.stem)), None)


def _figure(path, number):
    title, source, caption = FIGURES.get(_kind(path), (path.stem, None, ""))
    told = f"In the paper: {source}." if source else "Not in the paper."
    files.refuse_link_out(path, path.parent)
    drawing = inline_svg(path, f"f{number}", title)
    return element("figure", element("div", drawing, class_="drawing", tabindex="0", role="region", aria_label=title),
                   element("figcaption", element("b", f"Figure {number}. {title}. "), f"{caption} ",
                           element("span", told, class_="source"), f" ({path.name})"))


def _reproduce(configs, log):
    commands = [command for name, config in configs.items() for command in _training_commands(name, config)]
    commands += dict.fromkeys(f"python -m pyro_advbnn.{_command(line)}" for line in log if line.get("command"))
    if not commands:
        return missing("No commands: neither run folders nor evaluation/log.jsonl are here.")
    return [element("p", "With the package installed at the commit that is named with each run, in the order in which it was "
                    "done. Paths are those of the machine on which it was done."),
            element("pre", element("code", "\n".join(commands)), tabindex="0", role="region", aria_label="Commands")]


def _training_commands(name, config):
    """The one that began a run, and one for each time that it went on with another number of epochs."""
    changed, folder = config.get("epochs_changed"), shlex.quote(f"runs/{name}")
    changes = [mapping(change) for change in changed] if isinstance(changed, list) else []
    flags = mapping(config.get("flags")) | ({"epochs": changes[0].get("from")} if changes else {})
    words = [f"--{shlex.quote(flag)} {shlex.quote(str(value))}" for flag, value in flags.items()]
    yield " ".join(["python -m pyro_advbnn.train", *words, "--out", folder])
    for change in changes:
        yield (f"python -m pyro_advbnn.train --resume {folder} --epochs {shlex.quote(str(change.get('to')))}    "
               f"# stopped after epoch {change.get('after_epoch')}, step {change.get('after_step')} of the next")
