"""Tests of the report: one page that says what the records say, in which nothing from a file becomes markup."""
import base64
import html.parser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pyro_advbnn.reporting import csv_tables, report
from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError

ROOT = Path(__file__).parents[2]
SVG = ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 60" width="90pt"><rect width="90" height="60" fill="#ffffff"/>'
       '<text fill="#1b1b1b">accuracy (%)</text></svg>')
CONFIG = {
    "dataset": "digits", "num_train": 1287, "num_held_out": 150, "defense": "advbnn", "network": "convnet", "width": 4,
    "recipe": "ours", "seed": 0, "precision": "fp32", "num_weights": 66026, "classifier": {"kind": "bayesian"},
    "settings": {"epochs": 16, "optimizer": "adam", "learning_rate": 0.005, "schedule": "cosine", "alpha": 0.1,
                 "prior": "normal", "prior_std": "fan_in", "epsilon": 0.2, "num_steps": 10, "step_size": 0.05,
                 "attack_samples": 1}, "flags": {"dataset": "digits", "max_minutes": 5.0, "epochs": 16},
    "environment": {"git_commit": "0123abcd-dirty", "versions": {"torch": "2.14.1"}, "device": "cpu, 1 threads"},
}
RUN = {"run": "advbnn", "dataset": "digits", "network": "convnet", "defense": "advbnn", "alpha": 0.1, "prior_std": "fan_in",
       "checkpoint": "advbnn/best.pt", "weights": "abcd"}
ATTACK = {"attack": "pgd", "epsilon": 0.2, "num_steps": 20, "step_size": 0.025, "attack_samples": 10, "num_samples": 20,
          "seed": 0}
ACCURACY = RUN | ATTACK | {"source": "target", "num_examples": 360, "accuracy": 0.692, "accuracy_low": 0.642,
                           "accuracy_high": 0.737, "reaches_ball": True}
EXAMPLE = RUN | ATTACK | {
    "num_examples": 360,
    "index": 17, "label": "seven", "clean_prediction": "seven", "clean_probability": 0.98, "clean_probability_std": 0.01,
    "clean_agreement": 1.0, "adversarial_prediction": "two", "adversarial_probability": 0.31,
    "adversarial_probability_std": 0.12, "adversarial_agreement": 0.85, "clean_image": "examples/clean.png",
    "perturbation_image": "examples/change.png", "adversarial_image": "examples/attacked.png"}
LINE = {"command": "python -m pyro_advbnn.evaluate accuracy --runs runs/advbnn", "seconds": 83.4, "rows": 1,
        "environment": CONFIG["environment"]}
VOID = {"meta", "link", "img"}
SECTIONS = ["runs", "tables", "figures", "examples", "caveats", "time", "reproduce"]


class Page(html.parser.HTMLParser):
    """The elements of a page as (tag, attributes), its text, and whether every element was closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open, self.balanced = [], [], [], True
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        self.balanced &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)

    @property
    def text(self):
        return "".join(self.words)

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def write_run(folder, **changes):
    folder.mkdir(parents=True)
    json_files.write_json(folder / "config.json", CONFIG | changes)
    json_files.write_jsonl(folder / "metrics.jsonl", [{"epoch": 15, "nll": 0.7}, {
        "epoch": 16, "nll": 0.541, "held_out_accuracy": 0.987, "held_out_robust_accuracy": 0.673}])


@pytest.fixture
def folder(tmp_path):
    """A result folder that has everything, small."""
    folder = tmp_path / "results"
    write_run(folder / "runs" / "advbnn")
    write_run(folder / "runs" / "none", defense="none", classifier={"kind": "deterministic"})
    csv_tables.Table(folder, "accuracy").add([ACCURACY, ACCURACY | {"epsilon": 0.7, "reaches_ball": False}])
    csv_tables.Table(folder, "examples").add([EXAMPLE])
    json_files.write_jsonl(folder / "evaluation" / "log.jsonl", [LINE])
    (folder / "evaluation" / "examples").mkdir()
    for name in ("clean", "change", "attacked"):
        Image.new("L", (8, 8), 128).save(folder / "evaluation" / "examples" / f"{name}.png")
    (folder / "figures").mkdir()
    for name in ("steps", "accuracy"):
        (folder / "figures" / f"{name}.svg").write_text(SVG)
    return folder


def write(folder, runs=None):
    return Page(report.write(folder, runs).read_text())


def test_the_page_says_what_was_run_how_it_came_out_how_long_it_took_and_how_to_do_it_again(folder):
    page = write(folder)
    assert [attributes["id"] for attributes in page.all("section")] == SECTIONS
    for told in ("1,287", "66,026", "Adv-BNN", "no defence", "PGD, ε 0.2, 10 steps of 0.05, 1 draw per gradient", "0.541",
                 "67.3 %", "0123abcd-dirty", "2.14.1", "69.2 [64.2, 73.7]", "Fig. 2 and Table 1", "1 min 23 s",
                 "Image 17, true class seven: fooled", "p(true class) = 0.31 ± 0.12", "85 % of draws agree",
                 "python -m pyro_advbnn.train --dataset digits --epochs 16 --out runs/advbnn",
                 "python -m pyro_advbnn.evaluate accuracy --runs runs/advbnn"):
        assert told in page.text, told


def test_the_page_is_well_formed_with_headings_in_order_and_labels_for_those_who_do_not_see_it(folder):
    path = report.write(folder)
    page = Page(path.read_text())
    assert path == folder / "report.html" and path.read_text().startswith("<!DOCTYPE html>\n<html lang=\"en\">")
    assert page.balanced and not page.open
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1 and all(b - a <= 1 for a, b in zip(headings, headings[1:]))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert all(attributes["href"][1:] in ids for attributes in page.all("a"))
    assert all(attributes["aria-labelledby"] in ids for attributes in page.all("section"))
    assert len(page.all("table")) == len(page.all("caption")) > 2 and all(cell.get("scope") for cell in page.all("th"))
    assert [attributes["alt"] for attributes in page.all("img")] == [
        "Accuracy under attack", "Steps of the attack", "as it is", "change ×10", "attacked"]


def test_the_page_needs_no_other_file(folder):
    page = write(folder)
    sources = [attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not page.all("script", "iframe", "object", "base", "form")
    assert not re.search(r"url\(|@import", (folder / "report.html").read_text().split("<style>")[1].split("</style>")[0])


def test_the_same_records_give_the_same_bytes_wherever_they_lie(folder, tmp_path):
    first = report.write(folder).read_bytes()
    assert report.write(folder).read_bytes() == first
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert report.write(tmp_path / "elsewhere" / "copy").read_bytes() == first


def test_writing_needs_neither_torch_nor_matplotlib(folder):
    code = f"import sys; from pyro_advbnn.reporting import report; report.write({str(folder)!r}); " \
           "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"]


def test_signs_of_markup_in_records_are_shown_as_they_are(folder):
    csv_tables.Table(folder, "examples").add([EXAMPLE | {"label": "cat & <dog>"}])
    page = write(folder)
    assert page.balanced and "cat & <dog>" in page.text


def test_a_figure_stands_in_the_page_as_it_was_drawn(folder):
    start = "data:image/svg+xml;base64,"
    sources = [attributes["src"] for attributes in write(folder).all("img") if attributes["src"].startswith(start)]
    assert [base64.b64decode(source.removeprefix(start)).decode() for source in sources] == [SVG] * 2
    page = (folder / "report.html").read_text()
    assert page.index("Figure 1") < page.index("<main") < page.index("Figure 2")


def test_pictures_that_are_not_there_are_said_to_be_missing(folder):
    csv_tables.Table(folder, "examples").add([EXAMPLE | {
        "index": 18, "clean_image": None, "perturbation_image": "examples", "adversarial_image": "nowhere.png"}])
    page = write(folder)
    assert len(page.all("img")) == 2 + 3 and page.text.count("no picture") == 3


def test_of_two_calls_for_the_same_examples_the_newest_is_shown(folder):
    last = EXAMPLE | {"checkpoint": "advbnn/checkpoint.pt", "index": 19}
    csv_tables.Table(folder, "examples").add([EXAMPLE | {"seed": 1, "index": 18}, last])
    assert re.findall(r"best\.pt|checkpoint\.pt|Image \d+", write(folder).text.rpartition("side by side")[2]) == [
        "best.pt", "Image 18", "checkpoint.pt", "Image 19"]


def test_examples_of_two_precisions_are_told_apart(folder):
    csv_tables.Table(folder, "examples").add([EXAMPLE | {"network": "convnet:bf16", "index": 18}])
    assert re.findall(r"run advbnn, (\S+), best.pt", write(folder).text) == ["convnet", "convnet:bf16"]


def test_what_is_missing_is_said_and_the_rest_is_shown(folder):
    for name in ("runs", "figures", "evaluation"):
        shutil.rmtree(folder / name)
    (folder / "figures").mkdir()
    (folder / "figures" / "accuracy.svg").write_text(SVG)
    page = write(folder)
    assert [attributes["id"] for attributes in page.all("section")] == SECTIONS
    for told in ("No run folders", "No tables", "No examples", "No times", "No commands"):
        assert told in page.text
    assert len(page.all("img")) == 1


@pytest.mark.parametrize("config, says", [([], "none is no run folder"), (CONFIG | {"defense": "mine"}, "its defense must be")])
def test_what_is_no_run_is_refused(folder, config, says):
    json_files.write_json(folder / "runs" / "none" / "config.json", config)
    with pytest.raises(InputError, match=says):
        report.write(folder)
    assert not (folder / "report.html").exists()


def test_the_runs_are_those_asked_for_or_the_folder_itself(folder, tmp_path):
    assert "no defence" not in write(folder, [folder / "runs" / "advbnn"]).text
    run = folder / "runs" / "none"
    assert "no defence" in write(run).text
    shutil.copytree(run, tmp_path / "again" / "none")
    with pytest.raises(InputError, match="two runs are named none"):
        report.write(folder, [run, tmp_path / "again" / "none"])


def test_decay_averaging_and_the_start_have_columns_where_a_run_has_them(folder):
    columns = ("weight decay", "weights averaged, decay", "starts from")
    assert not any(column in write(folder).text for column in columns)
    settings = CONFIG["settings"] | {"weight_decay": 5e-4, "weight_averaging": 0.999}
    write_run(folder / "runs" / "tuned", settings=settings, init_from="runs/somewhere/first")
    page = write(folder)
    assert all(column in page.words for column in columns) and {"0.0005", "0.999", "first"} <= set(page.words)


def test_a_prior_by_auto_is_told_with_the_number_that_came_of_it(folder):
    write_run(folder / "runs" / "decayed", settings=CONFIG["settings"] | {"prior_std": "auto"},
              classifier=CONFIG["classifier"] | {"prior_std": 0.0631})
    assert "normal, auto (0.0631)" in write(folder).text


def test_the_caveats_name_runs_attacked_with_one_draw_and_radii_out_of_reach(folder):
    csv_tables.Table(folder, "accuracy").add([ACCURACY | {"run": "weakly", "attack_samples": 1},
                                          ACCURACY | {"run": "plain", "defense": "adv", "attack_samples": 1, "num_samples": 1},
                                          ACCURACY | {"run": "elsewhere", "attack_samples": 1},
                                          ACCURACY | {"run": "adv+advbnn", "defense": "adv+advbnn", "attack_samples": 1}])
    worst = {name: ACCURACY.get(name) for name in csv_tables.TABLES["robust"]}
    csv_tables.Table(folder, "robust").add([worst | {"run": "elsewhere", "attacks": "pgd", "tried": "pgd", "norm": "linf"}])
    csv_tables.Table(folder, "pruning").add([ACCURACY | {"num_examples": 50, "prune_by": "std", "fraction": 0.2}])
    text = write(folder).text
    assert "Accuracies are measured on 50 images to 360." in text
    assert "Only attacked with one draw per gradient, so not yet honestly: adv+advbnn, weakly." in text
    assert "radius 0.7 with 20 steps of 0.025." in text and "uncommitted changes: none, advbnn" in text
