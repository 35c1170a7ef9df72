"""Tests of the README and the pages of docs/: what they name is there, their commands parse, their tables equal the records."""
import csv
import functools
import gzip
import json
import math
import re
import shlex
import statistics
from pathlib import Path

import pytest
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn import benchmark, demo, evaluate, networks, reproduce, train
from pyro_advbnn.bayes.bayesian_classifier import statistics_stride
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.cli import commands, help
from pyro_advbnn.datasets.names import DATASETS, DEFAULT_AUGMENTATION
from pyro_advbnn.evaluation import worst_case
from pyro_advbnn.reporting import paper
from pyro_advbnn.system import json_files
from pyro_advbnn.training import flags, recipes
from pyro_advbnn.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, RUNS = ROOT / "pyro_advbnn", ROOT / "runs"
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
PROGRAMS = {"train": train.train, "evaluate": evaluate.VERBS, "reproduce": reproduce.VERBS, "benchmark": benchmark.benchmark,
            "demo": demo.demo}
OTHERS_FLAGS = {"standalone", "nproc-per-node", "nnodes", "max-restarts", "rdzv-backend", "rdzv-endpoint", "rdzv-id",
                "no-deps", "no-build-isolation", "require-hashes", "help",
                "nodes", "ntasks-per-node", "gpus-per-node", "budget_seconds"}      # of torchrun, pip, sbatch and .ci/gpu
DEFENSE_OF = {name: defense for defense, name in paper.DEFENSE_NAMES.items()}
pages = pytest.mark.parametrize("page", PAGES)


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


def records(path):
    with open(RUNS / path, newline="") as file:
        return list(csv.DictReader(file)) if path.endswith(".csv") else [json.loads(line) for line in file]


def one(rows, **fields):
    """The one record with these fields."""
    found = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    assert len(found) == 1, fields
    return found[0]


def section(page, heading):
    """The text under a heading, up to the next one of its level, on one line."""
    level = heading.partition(" ")[0]
    return " ".join(re.split(rf"\n#{{1,{len(level)}}} ", PAGES[page].partition(f"\n{heading}\n")[2])[0].split())


def percent(share):
    return f"{100 * float(share):.1f}"


def test_the_readme_has_at_most_160_lines():
    assert len(PAGES["README.md"].splitlines()) <= 160


@pytest.mark.filterwarnings("ignore:Please import .gaussian_filter:DeprecationWarning")       # of foolbox
@pytest.mark.filterwarnings("ignore:The given buffer is not writable", "ignore::FutureWarning")          # of torch 2.11
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_the_examples_of_a_page_run_as_they_stand(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for example in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        exec(compile(example, page, "exec"), namespace)
    printed = capsys.readouterr().out
    if page == "README.md":
        assert (tmp_path / "classifier.pt").exists() and "torch.Size([8, 1, 3, 3])" in printed


@pages
def test_every_flag_that_a_page_names_exists(page):
    functions = [f for program in PROGRAMS.values() for f in (program.values() if isinstance(program, dict) else [program])]
    known = {name for function in functions for name in help.parameters(function)} | OTHERS_FLAGS
    named = set(re.findall(r"--([a-z][a-z_-]+)", PAGES[page]))
    assert named <= known, named - known


def command_lines():
    """(page, program, its words) of every command line that a page shows."""
    for page, text in PAGES.items():
        for program, rest in re.findall(r"-m pyro_advbnn\.(\w+)([^\n`]*)", text.replace("\\\n", " ")):
            yield pytest.param(program, shlex.split(rest, comments=True), id=f"{page}: {program}{rest[:60].partition('  ')[0]}")


@pytest.mark.parametrize("program, words", list(command_lines()))
def test_every_command_line_parses(program, words):
    called = []

    def idle(command):
        return functools.wraps(command)(lambda **flags: called.append(flags))

    known = PROGRAMS[program]
    commands.run({verb: idle(command) for verb, command in known.items()} if isinstance(known, dict) else idle(known), words)
    assert len(called) == 1


@pages
def test_every_make_target_that_a_page_names_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^    )make ([a-z]+)", PAGES[page], re.MULTILINE))
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named), named
    assert page != "README.md" or {"demo", "test"} <= named


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)):
        name, _, anchor = target.partition("#")
        if not name.startswith("https://"):
            path = folder / name if name else folder / page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text()), target


def test_the_readme_links_every_page_and_every_page_says_its_purpose_first():
    for name, text in PAGES.items():
        assert name == "README.md" or f"(docs/{name}" in PAGES["README.md"], name
        assert re.match(r"# .+\n\n[A-Z]", text), name


@pytest.mark.parametrize("module, prefix", [(ab, "ab"), (ab.datasets, "ab.datasets")])
def test_every_public_name_is_in_the_reference_once(module, prefix):
    blocks = [name for page in (ROOT / "docs/api").glob("*.md") for name in re.findall(r"^::: (.+)$", page.read_text(), re.M)]
    named = [name for name in blocks if name.rpartition(".")[0] == prefix]
    assert sorted(named) == sorted(f"{prefix}.{name}" for name in module.__all__ if f"{prefix}.{name}" != "ab.datasets")


@pages
def test_every_file_that_a_page_names_exists(page):
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|c))`", PAGES[page]):
        assert any(list(root.rglob(name)) for root in (PACKAGE, ROOT / "tests")) or (ROOT / name).exists(), name
    for name in re.findall(r"`((?:runs|tests)/[a-z0-9_./-]+)`", PAGES[page]):
        assert (ROOT / name).exists(), name


def test_the_tree_of_rooms_names_every_room_and_only_files_that_stand_in_it():
    tree = re.search(r"^    pyro_advbnn/ .*\n((?:      .*\n)+)", PAGES["README.md"], re.MULTILINE)[1]
    rooms = {path.parent.name: path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE}
    named = re.findall(r"^ +(\w+)/ +(.*)$", tree, re.MULTILINE)
    assert sorted(room for room, _ in named) == sorted(rooms)
    for room, line in named:
        for name in re.findall(r"\w+\.py", line):
            assert (rooms[room] / name).exists(), f"{room}/{name}"


@pytest.mark.parametrize("page, column, names", [
    ("README.md", "--dataset", DATASETS), ("data.md", "--dataset", DATASETS), ("README.md", "verb", evaluate.VERBS),
    ("reproducing.md", "piece", reproduce.VERBS), ("training.md", "--defense", DEFENSES), ("training.md", "--recipe", RECIPES)])
def test_the_tables_name_all_that_there_is_to_choose(page, column, names):
    said = [row[column].removesuffix(" (the default)") for row in table(page, column)]
    assert sorted(said) == sorted(names)


def accuracy_of(label, epsilon, draws, folder, dataset="cifar10"):
    """What a table has to say of a defence: our record, or what the source says that the label names."""
    source, _, name = label.strip("*").partition(";")[0].rpartition(", ")
    if source:
        return percent(paper.accuracy(dataset, DEFENSE_OF[name], float(epsilon), many_draws=draws not in ("1", "any")))
    name, _, run = name.removesuffix(")").partition(" (")           # of several runs of a defence a label names the run
    defense = DEFENSE_OF[name]
    part = "fan_in/" if run == "fan_in" and (RUNS / folder / "fan_in").exists() else ""         # on whole data sets apart
    run = "" if run == "fan_in" else run
    best = [row for row in records(f"{folder}/{part}evaluation/accuracy.csv")
            if row["checkpoint"].endswith("/best.pt") and (run or defense) in (row["run"], row["run"].partition("-")[0])]
    found = one(best, defense=defense, epsilon=epsilon, attack_samples=draws if DEFENSES[defense].random else "1")
    assert not part or found["prior_std"] == "fan_in"
    return percent(found["accuracy"])


def test_the_readmes_table_of_results_equals_the_records():
    places = {"CIFAR-10": ("cifar10-medium", "cifar10"), "STL-10": ("stl10-medium", "stl10")}
    for row in table("README.md", "whole data sets, in %"):
        (_, label), *cells = row.items()
        name, label = label.strip("*").split(": ")
        for column, cell in cells:
            epsilon, draws = re.fullmatch(r"([\d.]+), (\d+) draws?", column.replace("clean", "0, 1 draw")).groups()
            if label == "adversarial training" and draws == "20":          # on the images of which Adv-BNN has 20 draws
                few = [row for row in records(f"{places[name][0]}/evaluation/runs.csv") if "/best.pt" in row["checkpoint"]]
                assert cell == percent(one(few, defense="adv", epsilon=epsilon, num_examples="500")["accuracy"])
            else:
                assert not cell or cell.strip("*") == accuracy_of(label, epsilon, draws, *places[name]), (label, column)


def test_what_the_readme_says_of_the_papers_lead_equals_its_table():
    of = {row["whole data sets, in %"]: row for row in table("README.md", "whole data sets, in %")}
    theirs, ours, known = (of[name] for name in (
        "*CIFAR-10: paper, Adv-BNN; many draws by arXiv 2212.02003*", "CIFAR-10: adversarial training",
        "*CIFAR-10: paper, adversarial training*"))
    one_draw, many, baseline = (float(cell.strip("*")) for cell in (
        theirs["0.035, 1 draw"], theirs["0.035, 20 draws"], known["0.035, 1 draw"]))
    less = float(known["clean"].strip("*")) - float(ours["clean"])
    text, lead, fall = PAGES["README.md"], one_draw - baseline, one_draw - many
    assert f"The paper's lead of {lead:.0f} points** on CIFAR-10 at 0.035 falls by {fall:.0f} under many draws" in text
    assert (f"The paper's baseline has {baseline}, ours {ours['0.035, 1 draw']} (but {less:.1f} points less on clean images)."
            in text)


def test_the_table_of_defaults_by_data_set_equals_the_recipe():
    rows = {name.strip("`"): row for row in table("defaults.md", "--dataset") for name in row["--dataset"].split(", ")}
    assert list(rows) == list(DATASETS)
    for dataset, row in rows.items():
        settings = RECIPES["ours"](dataset, "advbnn")
        assert row["--network"] == (settings["network"] or "by the images' size")
        assert (eval(row["--epsilon"]), int(row["--epochs"])) == (settings["epsilon"], settings["epochs"])
        assert row["--augmentation"] == DEFAULT_AUGMENTATION[dataset]
        assert settings["batch_size"] == (64 if dataset == "digits" else 128) and settings["num_steps"] == 10
        assert settings["step_size"] == (None if dataset in ("digits", "folder", "npz") else 0.007)


@pytest.mark.parametrize("title, folder, dataset", [
    ("defence", "cifar10-small", "cifar10"), ("VGG16", "gpu/h100/cifar10", "cifar10"),
    ("narrow VGG16", "cifar10-medium", "cifar10"), ("Model A", "stl10-medium", "stl10"),
    ("eleven classes", "imagenet-dogcat11", "imagenet143")])
def test_the_large_tables_of_results_equal_the_records(title, folder, dataset):
    for row in table("results.md", title, "draws per gradient"):
        (_, label), (_, draws), *cells = row.items()
        for epsilon, cell in cells:
            epsilon, draws = epsilon.replace("8/255", "0.031372549"), draws.strip("*")
            if cell or title == "defence":               # the others leave out what nobody measured
                assert cell.strip("*") == accuracy_of(label, epsilon, draws, folder, dataset), (label, epsilon)


def test_what_is_left_to_the_narrow_vgg16_equals_the_records():
    text = section("results.md", "## CIFAR-10, a narrow VGG16").partition("### ")[0]
    runs, radii = ("adv-tuned", "advbnn-tuned"), ("0", "0.015", "0.031372549", "0.035", "0.055", "0.07")
    robust, found = of_the_pair("robust", ""), robust_images("cifar10-medium/evaluation/robust_examples.csv")
    left = {(row["run"], "square" in row["attacks"]): percent(row["accuracy"]) for row in robust}
    (adv_apgd, adv), (apgd, ours) = ([left[run, whole] for whole in (False, True)] for run in runs)
    gain = gain_of(found, *reversed(runs))
    assert f"averaging 20 draws) Adv-BNN has {ours}, adversarial training {adv}: a difference of {gain}." in text
    assert f"(500 images, Adv-BNN first) CIFAR-10 has {ours} and {adv} % at 8/255, with another seed" in PAGES["README.md"]
    assert f"APGD alone (40 steps) leaves {apgd} and {adv_apgd}, in this order." in text
    rows = [row for name in ("runs", "accuracy") for row in of_the_pair(name, "")]
    best = [row for row in rows if row["checkpoint"].endswith("/best.pt")]
    known, one_draw, many = (listed_accuracies(best, run, draws, "500", radii)
                             for run, draws in ((runs[0], "1"), (runs[1], "1"), (runs[1], "20")))
    assert (f"adversarial training has {known} on the same 500 images (0 to 0.07), Adv-BNN {one_draw} under one draw "
            f"and {many} under twenty: one draw hides nothing that 500 images show.") in text
    last = [percent(one(rows, checkpoint=f"{runs[0]}/checkpoint.pt", epsilon=epsilon)["accuracy"])
            for epsilon in ("0", "0.031372549")]
    course = records(f"cifar10-medium/runs/{runs[1]}/metrics.jsonl")
    held_out = [both_accuracies(epoch, "held_out") for epoch in (course[-1], best_epoch(course))]
    assert ("adversarial training has {} and {} there (clean, 8/255), and held out, under the training's attack, Adv-BNN "
            "has {}, at its best epoch {}.").format(*last, *held_out) in text
    adv, ours = (records(f"cifar10-medium/runs/{run}/metrics.jsonl")[-1] for run in runs)
    assert f"is {ours['nll']:.2f} for both." in text and f"{adv['nll']:.2f}" == f"{ours['nll']:.2f}"
    (right, held_out), (others, theirs) = ([percent(end[f"{split}_robust_accuracy"]) for split in ("train", "held_out")]
                                           for end in (ours, adv))
    assert f"{right} % are right under attack, {held_out} held out; {others} and {theirs} by adversarial training." in text
    assert f"ratio is {ours['snr']:.0f}, and the KL costs {ours['kl_per_image']:.3f} nats per image." in text
    exact = records("cifar10-medium/float32/evaluation/accuracy.csv")
    one_draw, many = (listed_accuracies(exact, runs[1], *of, radii) for of in (("1", "2000"), ("20", "500")))
    assert f"it has {one_draw} under one draw, {many} under twenty (`float32/`)." in text
    earlier = records("cifar10-medium/bfloat16/evaluation/accuracy.csv")
    one_draw, many = (listed_accuracies(earlier, runs[1], *of, ("0", "0.031372549", "0.035", "0.07"))
                      for of in (("1", "2000"), ("20", "500")))
    assert f"{one_draw} under one draw (clean, 8/255, 0.035, 0.07), {many} under twenty." in text


def test_what_the_posterior_of_the_narrow_vgg16_is_equals_the_records():
    text = section("results.md", "## CIFAR-10, a narrow VGG16").partition("### ")[0]
    evaluation = "cifar10-medium/evaluation"
    stds = one(records(f"{evaluation}/layers.csv"), layer="all")
    prior, low = float(stds["prior_log_std"]), float(stds["log_std_q05"])
    assert f"95 % are no more than {prior - low:.2f} below the prior's, {prior:.2f};" in text
    clean = sorted(percent(row["accuracy"]) for row in records(f"{evaluation}/ensemble.csv") if row["epsilon"] == "0")
    assert f"1 to 50 have {clean[0]} to {clean[-1]} % on clean images (500)." in text
    differ = [percent(row["undecided"]) for part in ("", "fan_in/") for row in of_the_pair("robust", part)
              if row["run"] == "advbnn-tuned" and "square" in row["attacks"]]
    assert "differ on {} % of the images, by `fan_in` on {}.".format(*differ) in text
    assert f"costs nothing that 500 images show ({pruned(evaluation)} clean)" in text
    left = [left_after_pruning(evaluation)["std", share, epsilon] for share in ("0.4", "0.6") for epsilon in ("0.03125", "0")]
    assert "40 % leave {} and {}, 60 % leave {} and {} (one draw".format(*left) in text
    rho = sorted(f"{float(row['rho']):.2f}" for row in records(f"{evaluation}/transfer.csv") if row["source"] != row["run"])
    assert "takes {} to {} of what the other's own takes (radius 0.06, 1,000 images; the paper says 0.5".format(*rho) in text


def left_after_pruning(evaluation):
    return {(row["prune_by"], row["fraction"], row["epsilon"]): percent(row["accuracy"])
            for row in records(f"{evaluation}/pruning.csv") if row["prediction"] == "posterior"}


def pruned(evaluation):
    """What pruning 60 % by signal-to-noise changes, under attack and clean, as the page says it."""
    of = left_after_pruning(evaluation)
    return "{} to {} % at 8/256, {} to {} %".format(
        *(of["signal_to_noise", share, epsilon] for epsilon in ("0.03125", "0") for share in ("0", "0.6")))


def of_the_pair(name, part):
    """The records of adversarial training on CIFAR-10 and of Adv-BNN, by today's prior or in a part of its own."""
    return [row for folder, run in (("", "adv-tuned"), (part, "advbnn-tuned"))
            for row in records(f"cifar10-medium/{folder}evaluation/{name}.csv") if row["run"] == run]


def test_what_attacks_leave_to_the_narrow_vgg16_by_fan_in_equals_the_records():
    text = section("results.md", "### By a prior scaled by fan-in")
    robust, runs = (of_the_pair(name, "fan_in/") for name in ("robust", "runs"))
    left = {(row["run"], "square" in row["attacks"]): percent(row["accuracy"]) for row in robust}
    assert (f"leaves {left['adv-tuned', False]} to adversarial training and, averaging 20 draws, "
            f"{left['advbnn-tuned', False]} to Adv-BNN") in text
    assert f"leaves {left['adv-tuned', True]} to adversarial training, {left['advbnn-tuned', True]} to Adv-BNN" in text
    rho = {(row["source"], row["run"]): f"{float(row['rho']):.2f}"
           for row in records("cifar10-medium/fan_in/evaluation/transfer.csv")}
    both = "adv-tuned", "advbnn-tuned"
    told = [sorted({rho[source, target] for source in sources for target in both if source != target})
            for sources in (both, ["rse"], ["bnn", "none"])]
    assert ("takes {0[0]} to {0[1]} of what the other's own takes, one made on RSE {1[0]} to {1[1]}, one made on BNN or no "
            "defence {2[0]} to {2[1]} (radius 0.06, 1,000 images).").format(*told) in text
    evaluation = "cifar10-medium/fan_in/evaluation"
    fifth = [left_after_pruning(evaluation)["std", "0.2", epsilon] for epsilon in ("0.03125", "0")]
    assert (f"60 % go at no cost, too ({pruned(evaluation)} clean), and by largest std 20 % "
            "({} and {} %)").format(*fifth) in text
    few = {(row["run"], row["epsilon"]): percent(row["accuracy"]) for row in runs if row["num_examples"] == "500"}
    shorter = {(row["run"], row["epsilon"]): percent(row["accuracy"]) for row in
               records("cifar10-medium/epochs-15/evaluation/accuracy.csv") if row["num_examples"] == "2000"}
    (adv, ours), (short_adv, short_ours) = (
        ["{}, {} and {}".format(*(found[run, epsilon] for epsilon in ("0", "0.031372549", "0.035")))
         for run in both] for found in (few, shorter))
    assert f"adversarial training has {adv} (clean, 8/255, 0.035), Adv-BNN {ours} under one draw" in text
    assert f"After 15 epochs adversarial training had {short_adv}, Adv-BNN {short_ours} under one draw" in text
    nll = [records(f"cifar10-medium/{run}/metrics.jsonl")[-1]["nll"] for run in ("fan_in/runs/advbnn-tuned", "runs/adv-tuned")]
    assert "training {:.2f}, Adv-BNN {:.2f}".format(*nll[::-1]) in text
    assert f"after 30 epochs {nll[0] - nll[1]:.3f};" in " ".join(PAGES["method.md"].split())


def test_what_a_second_seed_and_mixtures_leave_equals_the_records():
    text = section("results.md", "### By a prior scaled by fan-in")
    evaluation = "cifar10-medium/seed-1/evaluation"
    rows = records(f"{evaluation}/accuracy.csv")
    rows = rows + [row for row in records(f"{evaluation}/runs.csv") if row["num_examples"] == "500"]

    def accuracies(*of):
        return listed_accuracies(rows, *of, epsilons=("0", "0.031372549", "0.035", "0.07"))

    adv, ours = "adv-tuned-seed-1", "advbnn-tuned-seed-1"
    main = of_the_pair("accuracy", "fan_in/")

    def gaps(rows, adv, ours):
        of = {(row["run"], row["epsilon"]): 100 * float(row["accuracy"]) for row in rows
              if row["attack_samples"] == "1" and row["num_examples"] == "2000"}
        return [round(of[adv, epsilon] - of[ours, epsilon], 6) for epsilon in ("0", "0.031372549", "0.035", "0.07")]

    first, second = gaps(main, "adv-tuned", "advbnn-tuned"), gaps(rows, adv, ours)
    told = ("On 2,000 images by {:.1f} (clean), {:.1f} (8/255), {:.1f} (0.035) and {:.1f} (0.07); "
            "with seed 1 by {:.1f}, {:.1f}, {:.1f} and {:.1f}.")
    assert told.format(*first, *second) in text
    both = main + of_the_pair("runs", "fan_in/") + rows
    few = {(row["run"], row["attack_samples"]): 100 * float(row["accuracy"]) for row in both
           if row["num_examples"] == "500" and row["epsilon"] == "0" and row["checkpoint"].endswith("/best.pt")}
    gap = statistics.mean(few["advbnn-tuned" + seed, "20"] - few["adv-tuned" + seed, "1"] for seed in ("", "-seed-1"))
    assert (f"clean by the accuracies above it is {gap:.1f}, on 2,000 images -{statistics.mean([first[0], second[0]]):.1f}."
            in text)
    assert f"clean by {statistics.mean([first[0], second[0]]):.1f} (2,000; means of two seeds)" in PAGES["README.md"]
    assert f"adversarial training has {accuracies(adv, '1', '2000')} (clean, 8/255, 0.035, 0.07)" in text
    assert f"Adv-BNN {accuracies(ours, '1', '2000')} under one draw, and {accuracies(ours, '20', '500')} under twenty" in text
    assert f"adversarial training has {accuracies(adv, '1', '500')} on the same images" in text
    left = {row["run"]: percent(row["accuracy"]) for row in records(f"{evaluation}/robust.csv")}
    runs = [robust_images("cifar10-medium/evaluation/robust_examples.csv")
            | robust_images("cifar10-medium/fan_in/evaluation/robust_examples.csv.gz"),
            robust_images(f"{evaluation}/robust_examples.csv.gz")]
    assert f"to Adv-BNN (averaging 20 draws): a difference of {gain_of(runs[0], 'advbnn-tuned', 'adv-tuned')}." in text
    gain = gain_of(runs[1], ours, adv)
    assert f"The ensemble of attacks leaves {left[adv]} and {left[ours]}: a difference of {gain}." in text
    assert (f"mixture of both Adv-BNNs has {left[f'advbnn-tuned+{ours}']} in the worst case, both adversarially trained "
            f"networks averaged have {left[f'adv-tuned+{adv}']}: a difference of "
            f"{gain_of(runs[1], f'advbnn-tuned+{ours}', f'adv-tuned+{adv}')}.") in text
    for clean, told in ((False, "-2.2 ± 1.8 under attack"), (True, "-3.6 ± 1.9 clean")):
        told_as = mean_gain(runs, "advbnn-tuned", "adv-tuned", clean).removeprefix("+")
        assert told.startswith(told_as) and told in text and (clean or told_as.removeprefix("-") in PAGES["README.md"])


def test_what_a_second_seed_by_todays_prior_leaves_equals_the_records():
    text = section("results.md", "## CIFAR-10, a narrow VGG16").partition("### ")[0]
    adv, ours, both = "adv-tuned-seed-1", "advbnn-tuned-seed-1", ("cifar10-medium/seed-1", "cifar10-medium/seed-1/auto")
    rows, left = ([row for run, folder in zip((adv, ours), both) for row in records(f"{folder}/evaluation/{name}.csv")
                   if row["run"] == run] for name in ("accuracy", "robust"))
    rows = rows + [row for row in records(f"{both[0]}/evaluation/runs.csv") if row["run"] == adv]
    rows = [row for row in rows if row["checkpoint"].endswith("/best.pt")]
    of = [listed_accuracies(rows, *one, epsilons=("0", "0.031372549", "0.035", "0.07")) for one in (
        (adv, "1", "2000"), (ours, "1", "2000"), (adv, "1", "500"), (ours, "20", "500"))]
    assert ("On 2,000 images adversarial training has {} (clean, 8/255, 0.035, 0.07), Adv-BNN {} under one draw; on 500 they "
            "have {}, and {} under twenty.").format(*of) in text
    control, contender = (percent(row["accuracy"]) for row in left)
    seeds = [robust_images("cifar10-medium/evaluation/robust_examples.csv"),
             robust_images(f"{both[0]}/evaluation/robust_examples.csv.gz", {left[0]["weights"]})
             | robust_images(f"{both[1]}/evaluation/robust_examples.csv.gz")]
    assert f"The ensemble of attacks leaves {control} and {contender}: a difference of {gain_of(seeds[1], ours, adv)}." in text
    assert f"with another seed {contender} and {control}" in PAGES["README.md"]
    assert f"The mean of both seeds on these 500 is {mean_gain(seeds, 'advbnn-tuned', 'adv-tuned')}." in text


def test_what_weight_perturbation_leaves_equals_the_records():
    text = " ".join(PAGES["results.md"].partition("**Adversarial weight perturbation")[2].partition("\n- ")[0].split())
    rows = records("cifar10-medium/awp/evaluation/accuracy.csv") + [
        row for row in records("cifar10-medium/awp/evaluation/runs.csv") if row["num_examples"] == "500"]

    def accuracies(*of):
        return listed_accuracies(rows, *of, epsilons=("0", "0.031372549", "0.035"))

    assert f"Adversarial training has {accuracies('adv-perturbed', '1', '2000')} (clean, 8/255, 0.035; 2,000 images)" in text
    assert (f"Adv-BNN {accuracies('advbnn-perturbed', '1', '2000')} under one draw; under twenty, on 500 images, "
            f"{accuracies('advbnn-perturbed', '20', '500')}, where adversarial training has "
            f"{accuracies('adv-perturbed', '1', '500')}.") in text
    left = {(folder, row["run"].partition("-")[0]): percent(row["accuracy"]) for folder in ("awp", "epochs-15")
            for row in records(f"cifar10-medium/{folder}/evaluation/robust.csv") if "square" in row["attacks"]}
    assert ("leaves {} and {}, without perturbation {} and {}:".format(
        *(left[folder, run] for folder in ("awp", "epochs-15") for run in ("adv", "advbnn")))) in text
    gains = []
    for name, recipe in (("awp/evaluation/robust_examples.csv.gz", "perturbed"),
                         ("epochs-15/evaluation/robust_examples.csv", "tuned")):
        gains.append(gain_of(robust_images(f"cifar10-medium/{name}"), f"advbnn-{recipe}", f"adv-{recipe}"))
    assert "a difference of {} and {}.".format(*gains) in text
    nll = [f"{records(f'cifar10-medium/{folder}/metrics.jsonl')[-1]['nll']:.2f}" for folder in (
        "awp/runs/adv-perturbed", "awp/runs/advbnn-perturbed", "epochs-15/runs/adv-tuned", "epochs-15/runs/advbnn-tuned")]
    assert "is {} and {}, where it was {} and {}.".format(*nll) in text


def listed_accuracies(rows, run, draws, images, epsilons):
    *most, last = (percent(one(rows, run=run, attack_samples=draws, num_examples=images, epsilon=epsilon)["accuracy"])
                   for epsilon in epsilons)
    return f"{', '.join(most)} and {last}"


def gain_of(found, contender, control):
    """What a run has in the worst case more than another on the same images, with its interval, as the pages say it."""
    gain = worst_case.gain(found[contender], found[control])
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * gain[name] for name in ("gain", "gain_low", "gain_high")))


def robust_images(name, weights=None):
    """The rows of a robust_examples.csv by run, those numbers that tell the worst case as numbers; weights: digests, or all."""
    path, by_run = ROOT / "runs" / name, {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        for row in (row for row in csv.DictReader(file) if weights is None or row["weights"] in weights):
            by_run.setdefault(row["run"], []).append({"attack": row["attack"], "judged_margin": float(row["judged_margin"]),
                                                      "index": int(row["index"]), "broken": int(row["broken"])})
    return by_run


def standing(rows, clean):
    """Whether each image stands, in order."""
    worst = worst_case.worst_rows([row for row in rows if row["attack"] == "none" or not clean])
    return [not worst[index]["broken"] for index in sorted(worst)]


def mean_gain(seeds, contender, control, clean=False):
    """What a run has more than another in the mean of seeds 0 and 1, image by image, with half its interval."""
    images = [[standing(found[run + end], clean) for found, end in zip(seeds, ("", "-seed-1"), strict=True)]
              for run in (contender, control)]
    gains = [statistics.mean(one) - statistics.mean(other)
             for one, other in zip(*(zip(*of_seeds, strict=True) for of_seeds in images), strict=True)]
    return f"{100 * statistics.mean(gains):+.1f} ± {100 * 1.96 * statistics.stdev(gains) / math.sqrt(len(gains)):.1f}"


def test_what_more_steps_and_pruning_do_equals_the_records():
    pages = " ".join(PAGES["results.md"].split())
    of = {(row["run"], row["num_steps"]): percent(row["accuracy"]) for row in records("cifar10-medium/evaluation/steps.csv")}
    told = [f"from {of[run, '26']} to {of[run, '1000']}" for run in ("adv-tuned", "advbnn-tuned")]
    assert "adversarial training goes {}, Adv-BNN {} (8/256".format(*told) in pages
    for part, told in (("", "by largest std 20 % leave {}."), ("fan_in/", "by largest std not even 20 % ({}).")):
        assert f"({pruned(f'stl10-medium/{part}evaluation')} clean" in pages
        assert told.format(left_after_pruning(f"stl10-medium/{part}evaluation")["std", "0.2", "0.03125"]) in pages
    gone = {f"{float(left_after_pruning(f'{folder}/evaluation')['std', '0.6', '0.03125']):.0f}"
            for folder in ("cifar10-medium", "stl10-medium")}
    assert gone == {"10"} and "it leaves 10 % under attack." in PAGES["README.md"]


def test_what_the_page_says_of_stl10_beside_its_table_equals_the_records():
    text = section("results.md", "## STL-10, whole")
    robust = records("stl10-medium/evaluation/robust.csv")
    adv, ours = (percent(one(robust, run=run, attacks="apgd-ce")["accuracy"]) for run in ("adv", "advbnn"))
    assert f"leaves {adv} to adversarial training and, averaging 20 draws, {ours} to Adv-BNN" in text
    worst = {row["run"]: row for row in robust if row["attacks"] != "apgd-ce"}
    adv, ours = (percent(worst[run]["accuracy"]) for run in ("adv", "advbnn"))
    found = robust_images("stl10-medium/evaluation/robust_examples.csv", [row["weights"] for row in worst.values()])
    assert (f"The ensemble of attacks leaves {adv} and, without Square, {ours} to Adv-BNN: a difference of "
            f"{gain_of(found, 'advbnn', 'adv')}.") in text
    assert f"STL-10 {ours} (not attacked by Square) and {adv} % at 0.035, with another" in PAGES["README.md"]
    assert worst["advbnn"]["tried"] == worst["advbnn"]["attacks"] and "square" not in worst["advbnn"]["attacks"]
    assert {row["broken"] for row in found["adv"] if row["attack"] == "square"} == {0}
    rows = records("stl10-medium/evaluation/runs.csv") + records("stl10-medium/evaluation/accuracy.csv")
    former = records("stl10-medium/fan_in/evaluation/accuracy.csv")
    adv, ours, theirs = (listed_accuracies(found, run, draws, "500", ("0", "0.015", "0.035", "0.055", "0.07"))
                         for found, run, draws in ((rows, "adv", "1"), (rows, "advbnn", "20"), (former, "advbnn", "20")))
    assert f"adversarial training has {adv} (0 to 0.07), Adv-BNN under twenty draws {ours}. APGD" in text
    apgd, = records("stl10-medium/fan_in/evaluation/robust.csv")
    assert f"{theirs} under twenty draws, and APGD leaves {percent(apgd['accuracy'])}." in text
    earlier = records("stl10-medium/earlier/evaluation/accuracy.csv")
    assert "{} clean and {} at 0.035 under twenty draws.".format(*(percent(row["accuracy"]) for row in earlier)) in text
    many = percent(one(rows, run="advbnn", epsilon="0.035", attack_samples="20")["accuracy"])
    theirs = percent(paper.accuracy("stl10", "advbnn", 0.035, many_draws=True))
    assert f"There averaged draws leave {theirs} to the paper's Adv-BNN and {many} to ours" in text
    one_draw, honest = (100 * (float(one(rows, run="authors", epsilon="0.07", attack_samples=draws)["accuracy"])
                               - float(one(rows, run="adv", epsilon="0.07", num_examples=images)["accuracy"]))
                        for draws, images in (("1", "3000"), ("100", "500")))
    shares = [float(one(rows, run=run, epsilon="0.07", attack_samples=draws, num_examples="500")["accuracy"])
              for run, draws in (("authors", "100"), ("adv", "1"))]
    error = 100 * 1.96 * sum(share * (1 - share) / 500 for share in shares) ** 0.5
    assert (f"one draw shows {one_draw:.0f} points of lead on STL-10 at 0.07, a hundred draws {honest:.0f} ± {error:.0f} (500 "
            "images).") in PAGES["README.md"]
    rows = records("stl10-medium/before/evaluation/accuracy.csv")
    before = [" / ".join(percent(one(rows, epsilon=epsilon, attack_samples=draws)["accuracy"])
                         for epsilon in ("0", "0.035", "0.07")) for draws in ("1", "20")]
    assert "{} under one draw (0, 0.035, 0.07), {} under twenty".format(*before) in text


def test_what_a_second_seed_on_stl10_leaves_equals_the_records():
    text, folder = section("results.md", "## STL-10, whole"), "stl10-medium/seed-1/evaluation"
    rows, radii = records(f"{folder}/accuracy.csv"), ("0", "0.035", "0.07")
    of = [listed_accuracies(rows, f"{defense}-seed-1", draws, num_examples, radii) for defense, draws, num_examples in (
        ("adv", "1", "3000"), ("advbnn", "1", "3000"), ("adv", "1", "500"), ("advbnn", "20", "500"))]
    assert ("On 3,000 images adversarial training has {} (clean, 0.035, 0.07), Adv-BNN {} under one draw; on 500 they have {}, "
            "and {} under twenty.").format(*of) in text
    left = {row["run"]: row for row in records(f"{folder}/robust.csv")}
    control, contender = (percent(left[run]["accuracy"]) for run in ("adv-seed-1", "advbnn-seed-1"))
    assert [left[run]["tried"] for run in ("adv-seed-1", "advbnn-seed-1")] == [
        "apgd-ce apgd-dlr", "apgd-ce@mean apgd-ce apgd-dlr"]
    seeds = [robust_images("stl10-medium/evaluation/robust_examples.csv", {row["weights"] for row in records(
        "stl10-medium/evaluation/robust.csv") if "square" in row["attacks"] or "@mean" in row["attacks"]}),
             robust_images(f"{folder}/robust_examples.csv.gz")]
    gain = gain_of(seeds[1], "advbnn-seed-1", "adv-seed-1")
    assert f"leaves {control} and {contender}: a difference of {gain}." in text
    assert f"The mean of both seeds on these 500 is {mean_gain(seeds, 'advbnn', 'adv')}." in text
    assert f"at 0.035, with another seed {contender} and {control} (by APGD alone)." in PAGES["README.md"]


def test_how_the_training_on_eleven_classes_ends_equals_the_records():
    ends = [records(f"imagenet-dogcat11/{run}/metrics.jsonl")[-1] for run in (
        "runs/adv", "fan_in/runs/advbnn", "runs/advbnn", "runs/none")]
    adv, fan_in, ours, none = (f"{100 * end['train_accuracy']:.0f} %" for end in ends)
    assert adv == fan_in and (f"training images is {adv} (by `fan_in`, too), of Adv-BNN {ours}, without a defence {none}."
                              in section("results.md", "## ImageNet, eleven classes of dogs and cats"))


def test_how_the_training_on_stl10_ends_and_what_its_posterior_is_equals_the_records():
    text = section("results.md", "## STL-10, whole")
    courses = [records(f"stl10-medium/runs/{run}/metrics.jsonl") for run in ("advbnn", "adv")]
    ours, known = map(best_epoch, courses)
    assert ("Adv-BNN loses {} points under attack and gains {} on clean images, held out; adversarial training loses {} and "
            "gains {}.").format(*(change for course in courses for change in after_the_best(course))) in text
    assert "they have {} and {} under the training's attack at their best epochs ({} and {} of 30).".format(
        *(percent(best["held_out_robust_accuracy"]) for best in (known, ours)), known["epoch"], ours["epoch"]) in text
    stds = one(records("stl10-medium/evaluation/layers.csv"), layer="all")
    prior, median, *ends = (float(stds[name]) for name in ("prior_log_std", "log_std_median", "log_std_q05", "log_std_q95"))
    assert (f"{prior - median:.2f} below the prior's, {prior:.2f}, and 90 % lie between "
            "{:.2f} and {:.2f}.".format(*ends)) in text
    assert f"ratio is {ours['snr']:.1f} there and {courses[0][-1]['snr']:.1f} at the last." in text


def test_the_table_of_the_kl_of_all_weights_equals_the_records():
    rows = records("digits-kl/evaluation/runs.csv")
    for row in table("results.md", "run", "what it is"):
        for column, epsilon, draws in (("clean", "0", "1"), ("1 draw", "0.2", "1"), ("10 draws", "0.2", "10")):
            assert row[column] == percent(one(rows, run=row["run"], epsilon=epsilon, attack_samples=draws)["accuracy"]), (
                row, column)
    cells = {row["run"]: row for row in table("results.md", "run", "what it is")}
    costs = [float(cells["kl-ours"]["10 draws"]) - float(cells[f"kl-{name}"]["10 draws"]) for name in ("alpha-1", "adam")]
    assert f"costs {costs[0]:.0f} points already" in PAGES["results.md"]
    assert f"Adam is {costs[1]:.0f} points below" in PAGES["results.md"]
    assert "gave Adv-BNN {1 draw} and {10 draws})".format_map(cells["kl-ours"]) in PAGES["README.md"]      # demo's training
    stds = {name: json_files.read_config(RUNS / f"digits-kl/runs/kl-{name}")["classifier"]["prior_std"]
            for name in ("ours", "alpha-1", "alpha-1-50")}
    assert cells["kl-alpha-1"]["what it is"].endswith(f"a prior of {stds['alpha-1']:.2f} instead of {stds['ours']:.3f}")
    assert cells["kl-alpha-1-50"]["what it is"].endswith(f"a prior of {stds['alpha-1-50']:.2f}")


def test_the_table_of_gains_equals_the_records():
    rows = records("digits-beyond/evaluation/gains.csv")
    for row in table("results.md", "pair", "seed 0"):
        of_pair = [one(rows, pair=row["pair"], seed=seed) for seed in "012"]
        for column, name in (("adversarial training", "control_accuracy"), ("Adv-BNN", "accuracy")):
            assert row[column] == mean_percent([float(each[name]) for each in of_pair]), (row, column)
        for each in of_pair:
            gain, low, high = (f"{100 * float(each[name]):+.1f}" for name in ("gain", "gain_low", "gain_high"))
            assert row[f"seed {each['seed']}"] == f"{gain} [{low}, {high}]", row
    assert {row["pair"] for row in table("results.md", "pair", "seed 0")} == {row["pair"] for row in rows}


def test_the_table_of_the_worst_case_equals_the_records():
    robust, examples, checks = (records(f"cifar10-small/evaluation/{name}.csv") for name in
                                ("robust", "robust_examples", "checks"))
    for row in table("robustness.md", "worst case"):
        run = DEFENSE_OF[row["defence"]]
        clean = [example["broken"] == "0" for example in examples if example["run"] == run and example["attack"] == "none"]
        worst, weak = one(robust, run=run), row["paper's attack, 1 draw"]
        assert row["clean"] == percent(sum(clean) / len(clean)), run
        low, high = percent(worst["accuracy_low"]), percent(worst["accuracy_high"])
        assert row["worst case"] == f"{percent(worst['accuracy'])} [{low}, {high}]", run
        assert row["its images under single draws"] == percent(worst["single_draw_accuracy"]), run
        assert f"the paper's attack {weak} %" in one(checks, run=run, check="paper's attack")["measured"], run


def digits_runs():
    """{name: record} of the recipe ours on digits: two defences, three lengths, three seeds."""
    return {record["run"]: record for record in records("digits-defaults/records.jsonl")}


def correct(record, attack):
    return [broken == "0" for broken in record["broken"][attack]]


def mean_percent(values):
    return percent(sum(values) / len(values))


def apart(one, other):
    """The mean of one minus other, which are right or wrong on the same images, and half its 95 % interval, in %."""
    differences = [a - b for a, b in zip(one, other)]
    mean = sum(differences) / len(differences)
    half = 1.96 * (sum((value - mean) ** 2 for value in differences) / (len(differences) - 1) / len(differences)) ** 0.5
    return f"{100 * mean:+.1f} ± {100 * half:.1f}"


def test_the_table_of_lengths_is_the_mean_of_three_seeds():
    runs = digits_runs()
    for row in table("method.md", "epochs", "PGD apart"):
        ours, adv = ([runs[f"{defense}-{row['epochs']}-{seed}"] for seed in range(3)] for defense in ("advbnn", "adv"))
        for column, three in (("Adv-BNN", ours), ("adversarial training", adv)):
            assert row[column] == " / ".join([mean_percent([run["last"]["clean"] for run in three]), *(
                mean_percent(sum((correct(run, attack) for run in three), [])) for attack in ("pgd", "apgd-ce"))])
        for column, attack in (("PGD apart", "pgd"), ("APGD apart", "apgd-ce")):
            assert row[column] == apart(*(sum((correct(run, attack) for run in three), []) for three in (ours, adv)))
        from_image = [mean_percent([run["last"]["pgd_10_draws"] for run in three]) for three in (ours, adv)]
        last = [run["course"][-1] for run in ours]
        assert row["SNR"] == f"{sum(values[3] for values in last) / 3:.1f}"
        assert row["KL"] == f"{sum(values[2] for values in last) / 3:.3f}"
    text = " ".join(PAGES["method.md"].split())
    assert "starts at the image it has {} after 240 and adversarial training {} (means".format(*from_image) in text


def test_the_table_of_runs_equals_the_records():
    runs = digits_runs()
    for row in table("defaults.md", "run", "last"):
        record = runs.pop(row["run"])
        for column in ("last", "best"):
            assert row[column] == f"{percent(record[column]['clean'])} / {percent(record[column]['pgd_10_draws'])}"
        assert row["APGD"] == mean_percent(correct(record, "apgd-ce"))
    assert list(runs) == ["adam-60-0"]                   # of the figure


def test_the_table_of_60_epochs_on_cifar10_equals_the_records():
    places = {"adversarial training, seed 0": ("cifar10-60/at-8-255", "cifar60-adv"),
              "adversarial training, seed 1": ("cifar10-5000", "cifar60-adv-seed-1"),
              "Adv-BNN, seed 0": ("cifar10-5000", "cifar60-advbnn"),
              "Adv-BNN, seed 1": ("cifar10-5000", "cifar60-advbnn-seed-1"),
              "Adv-BNN by the former recipe, seed 0": ("cifar10-60/at-8-255", "cifar60-advbnn")}
    for row in table("method.md", "run", "checkpoint"):
        folder, run = places[row["run"]]
        measured, worst = (records(f"{folder}/evaluation/{name}.csv") for name in ("accuracy", "robust"))
        checkpoint = f"{run}/{'best' if row['checkpoint'] == 'best' else 'checkpoint'}.pt"
        clean = {found["accuracy"] for found in measured if (found["checkpoint"], float(found["epsilon"])) == (checkpoint, 0)}
        assert {row["clean"]} == set(map(percent, clean))
        for column, draws in (("PGD, 1 draw", "1"), ("PGD, 10 draws", "10")):
            assert not row[column] or row[column] == percent(one(
                measured, checkpoint=checkpoint, epsilon="0.031372549", attack_samples=draws)["accuracy"])
        if row["APGD, 10 draws"]:
            assert row["APGD, 10 draws"] == percent(one(worst, checkpoint=checkpoint, attacks="apgd-ce")["accuracy"])


def test_what_lies_between_the_runs_of_60_epochs_is_the_paired_difference():
    runs = {record["run"]: record["broken"] for record in records("cifar10-5000/records.jsonl")}
    of_former = {record["run"]: record["broken"] for record in records("cifar10-60/at-8-255/records.jsonl")}
    ours, adv = [runs["cifar60-advbnn"], runs["cifar60-advbnn-seed-1"]], [of_former["cifar60-adv"], runs["cifar60-adv-seed-1"]]

    def withstand(runs, moment, attacks=("pgd", "apgd-ce")):
        return [{*broken} == {"0"} for run in runs for broken in zip(*(run[moment][attack] for attack in attacks))]

    text = " ".join(PAGES["method.md"].split())
    both, apgd = ([apart(withstand(ours, "last", attacks), withstand(adv, moment, attacks)) for moment in ("last", "best")]
                  for attacks in (("pgd", "apgd-ce"), ("apgd-ce",)))
    assert "training's last by {} points, and from its best by {} (both seeds).".format(*both) in text
    assert "By APGD alone it is {} and {}.".format(*apgd) in text
    former = withstand([of_former["cifar60-advbnn"]], "last")
    assert f"*The former recipe* stood {apart(former, withstand(adv[:1], 'last'))} points above" in text
    assert f"today's last differs from it by {apart(withstand(ours[:1], 'last'), former)}." in text


def test_what_is_said_of_60_epochs_on_cifar10_equals_the_records():
    text = " ".join(PAGES["method.md"].split())
    course = records("cifar10-5000/runs/cifar60-advbnn/metrics.jsonl")
    lowest, last = min(course, key=lambda epoch: epoch["snr"]), course[-1]["snr"]
    assert f"falls to {lowest['snr']:.1f} by epoch {lowest['epoch']} (seed 0) and comes back to {last:.1f}." in text
    rows = {(row["run"], row["checkpoint"]): row for row in table("method.md", "run", "checkpoint")}
    clean = float(rows["adversarial training, seed 0", "last"]["clean"]) - float(
        rows["Adv-BNN by the former recipe, seed 0", "last"]["clean"])
    assert f"with {clean:.1f} less on clean images." in text
    rows = [row for row in records("cifar10-5000/evaluation/pruning.csv") if row["prediction"] == "posterior"]
    by_noise, by_std = ([percent(one(rows, prune_by=criterion, fraction=fraction, epsilon="0.031372549")["accuracy"])
                         for fraction in fractions] for criterion, fractions in (
                             ("signal_to_noise", ("0", "0.6")), ("std", ("0", "0.2", "0.4"))))
    assert (f"60 % go at no cost ({by_noise[0]} to {by_noise[1]} %, 500 images), by largest std 20 % ({by_std[1]} %), and 40 % "
            f"at {float(by_std[0]) - float(by_std[2]):.1f} points") in text


def test_what_the_posterior_means_equals_its_records():
    text = section("method.md", "## What the posterior means")
    pruning, uncertainty, detection = (records(f"digits-defaults/posterior/{name}.csv") for name in
                                       ("pruning", "uncertainty", "detection"))
    left = {(row["prune_by"], row["fraction"]): percent(row["accuracy"]) for row in pruning
            if (row["prediction"], row["epsilon"]) == ("posterior", "0.2")}
    assert re.findall(r"\(([\d.]+) to ([\d.]+) %\)", text)[0] == (left["signal_to_noise", "0"], left["signal_to_noise", "0.4"])
    assert f"60 % at {float(left['signal_to_noise', '0']) - float(left['signal_to_noise', '0.6']):.1f} points" in text
    lost = float(left["std", "0"]) - float(left["std", "0.2"])
    assert f"20 % go at {lost:.1f} points ({left['std', '0.2']} %), and 40 % are too many ({left['std', '0.4']} %)" in text
    ours, adv = (one(uncertainty, run=f"{defense}-240-0", attack="pgd") for defense in ("advbnn", "adv"))
    assert (f"the nll is {float(ours['nll']):.2f} and the calibration error {float(ours['calibration_error']):.3f}; "
            f"adversarial training has {float(adv['nll']):.2f} and {float(adv['calibration_error']):.3f}.") in text
    aurocs = [float(one(detection, run=f"{defense}-240-0", attack="pgd-confident", score=score, positives="all")["auroc"])
              for defense, score in (("advbnn", "mutual_information"), ("adv", "entropy"))]
    assert ("an AUROC of {:.3f} by mutual information, where the attacker hides; adversarial training's entropy has {:.3f}."
            ).format(*aurocs) in text


def test_the_table_of_trials_is_the_mean_of_their_seeds():
    runs = records("digits-trials/held-out.jsonl")
    for row in table("defaults.md", "trial"):
        of_run = [run for run in runs if run["run"] == row["trial"]]
        assert row["nll"] == f"{sum(run['nll'] for run in of_run) / len(of_run):.3f}"
        assert row["last"] == " / ".join(mean_percent([run["last"][name] for run in of_run]) for name in ("clean", "pgd"))
        assert row["best"] == mean_percent([run["best"]["pgd"] for run in of_run])
    assert {run["run"] for run in runs} == {row["trial"] for row in table("defaults.md", "trial")}


def test_the_table_of_curvatures_equals_the_records():
    rows = records("digits-trials/curvature.jsonl")
    for row, record in zip(table("method.md", "curvature by"), rows, strict=True):
        _, nll, kl, snr = record["course"][-1][:4]
        assert [row[name] for name in ("nll", "KL per image", "loss")] == [f"{value:.3f}" for value in (nll, kl, nll + kl)]
        assert row["SNR"] == f"{snr:.1f}"


def test_the_table_of_cuts_equals_the_records():
    found = {(r["settings"]["curvature"], r["clip"], r["settings"]["rho"], len(r["course"])): r["course"][-1]
             for r in records("digits-trials/clip.jsonl")}
    for row in table("method.md", "way", "rho"):
        kind, cut = re.match(r"(\w+), (?:cut at (\d+)|IVON's step)", row["way"]).groups()
        _, nll, kl, snr = found.pop((kind, cut and int(cut), float(row["rho"]), int(row["epochs"])))[:4]
        assert [row[name] for name in ("nll", "KL per image", "loss")] == [f"{value:.3f}" for value in (nll, kl, nll + kl)]
        assert row["SNR"] == f"{snr:.1f}"
    assert not found


def test_the_table_of_alphas_equals_the_records():
    runs = {f"{record['settings']['alpha']:.2g}": record for record in records("digits-alpha/records.jsonl")}
    for row in table("method.md", "alpha", "clean / 1 / 10"):
        record = runs.pop(row["alpha"])
        measured = [record["last"][name] for name in ("clean", "pgd_1_draw", "pgd_10_draws")]
        assert row["clean / 1 / 10"] == " / ".join(map(percent, measured))
        assert (row["SNR"], row["KL"]) == (f"{record['course'][-1][3]:.3g}", f"{record['course'][-1][2]:.3g}")
        assert row["pruned"] == percent(record["pruned_60"])
        assert (row["calibration"], row["AUROC"]) == (f"{record['calibration_error']:.3f}", f"{record['auroc']:.3f}")
    assert not runs


def test_what_is_said_of_alphas_equals_the_records():
    runs = {record["run"]: record for record in records("digits-alpha/records.jsonl")}
    before = {record["run"]: record for record in records("digits-alpha/fan-in.jsonl")}
    text = " ".join(PAGES["method.md"].split())
    many = {name: run["last"]["pgd_10_draws"] for name, run in runs.items()}
    one_draw = {name: run["last"]["pgd_1_draw"] for name, run in runs.items()}
    hidden = [f"{100 * (one_draw[name] - many[name]):.1f}" for name in ("alpha-0.1", "alpha-0.001")]
    assert "at 0.1 an attacker with ten draws wins {} points more, at 0.001 {}.".format(*hidden) in text
    small = [name for name, run in runs.items() if run["settings"]["alpha"] <= 0.01]
    left = [100 * runs[name]["pruned_60"] for name in small]
    costs, former = ([100 * (kind[name]["last"]["pgd_10_draws"] - kind[name]["pruned_60"]) for name in small]
                     for kind in (runs, before))
    assert small[-1] == "alpha-0.0001"
    assert (f"the accuracy is {min(left):.0f} to {max(left):.0f} % from 0.01 down, which costs {min(costs):.1f} to "
            f"{max(costs):.1f} points.") in text
    assert f"it cost {min(former[:-1]):.1f} to {max(former[:-1]):.1f} there, and {former[-1]:.1f} at 0.0001." in text
    best = max(many[name] for name in small) - many["alpha-auto"]
    assert f"down robustness under ten draws gains {100 * best:.1f} points at most" in text
    seeds = {record["run"]: record["last"]["pgd_10_draws"] for record in records("digits-alpha/seeds.jsonl")} | many
    means = [mean_percent([seeds[f"alpha-{alpha}{suffix}"] for suffix in ("", "-seed-1", "-seed-2")])
             for alpha in ("auto", "0.001", "0.0001")]
    assert "at 0.0026, 0.001 and 0.0001 are {}, {} and {} (`seeds.jsonl`".format(*means) in text
    last = {name: [epoch[2] for epoch in run["course"][11:]] for name, run in runs.items()}
    within = max(100 * (max(kls) / min(kls) - 1) for name, kls in last.items() if name in small and name != "alpha-0.01")
    falls = [100 * (1 - last[f"alpha-{alpha}"][-1] / last[f"alpha-{alpha}"][0]) for alpha in (0.01, 0.03, 0.1)]
    assert (f"the KL stays within {within:.0f} % from 0.0026 down. "
            "At 0.01 it falls by {:.0f} %, at 0.03 by {:.0f} %, at 0.1 by {:.0f} %:".format(*falls)) in text
    kl, snr = runs["alpha-0.0001"]["course"][-1][2:4]
    assert 0.85 < 1 - price(0.0001, 1287, 66_026, snr) / kl < 0.95      # "nine tenths"


def cifar10_trials():
    return {record["run"]: record for record in records("cifar10-trials/records.jsonl")}


def test_the_table_of_images_equals_the_records_of_the_trials():
    names = {"16 images": "alpha-0.00035", "32 images": "images-32", "64 images: the default": "images-64",
             "128 images": "images-128", "the draw, 128 images": "draw", "(adversarial training, 128 images)": "adv"}
    runs, rows = cifar10_trials(), table("method.md", "statistics of")
    assert [row["statistics of"] for row in rows] == list(names)
    for row in rows:
        record = runs[names[row["statistics of"]]]
        images = int(re.search(r"\d+", row["statistics of"])[0])
        assert images == record["images_of_statistics"]
        assert record["run"] == "adv" or record["settings"]["alpha"] == pytest.approx(0.00035, rel=0.01)
        assert "the default" not in row["statistics of"] or images == record["settings"]["batch_size"] / statistics_stride(128)
        for epoch, (_, nll, _, _, *held_out) in zip((1, 2), [*record["course"][:2], [0] * 6]):
            known = [f"{nll:.3f}", " / ".join(map(percent, held_out))] if nll else ["", ""]
            assert [row[f"nll, epoch {epoch}"], row[f"held out, epoch {epoch}"]] == known


def price(alpha, num_train, num_weights, snr=recipes.BUDGETED_SNR):
    """What the KL costs an image, in nats, where the prior is scaled to the weights (method.md)."""
    return alpha / num_train * num_weights / 2 * math.log1p(snr)


def test_the_table_of_budgets_equals_the_records_of_the_trials():
    epoch = int(re.search(r"smaller budget is better\*\*: epoch (\d+) of", PAGES["method.md"])[1])
    runs, rows = cifar10_trials(), table("method.md", "alpha", "budget")
    names = {"0.007": "alpha-0.007", "0.0014": "alpha-0.0014", "0.00035": "alpha-0.00035", "0.00035, 64 images": "images-64",
             "(adversarial training)": "adv"}
    assert [row["alpha"] for row in rows] == list(names)
    for row in rows:
        record = runs[names[row["alpha"]]]
        alpha, (_, nll, kl, snr, *held_out) = record["settings"]["alpha"], record["course"][epoch - 1]
        assert (row["nll"], row["clean / PGD"]) == (f"{nll:.3f}", " / ".join(map(percent, held_out)))
        assert [row[name] for name in ("SNR", "KL")] == ([f"{snr:.2f}", f"{kl:.3f}"] if alpha else ["", ""])
        assert float(row["budget"] or 0) == pytest.approx(price(alpha, 49_000, 924_186), rel=0.02)
    ours, adv = (runs[name]["course"][-1][1] for name in ("images-64", "adv"))
    assert f"Adv-BNN's nll is {ours - adv:.3f} above" in PAGES["method.md"]


def test_what_is_said_of_the_priors_decay_equals_the_records():
    runs, rows = cifar10_trials(), table("method.md", "prior", "nll, epoch 5")
    text = " ".join(PAGES["method.md"].split())
    names = {"fan_in": "images-64", "0.0038, as auto has it": "prior-0.0038",
             "0.012, alpha 0.0035": "prior-0.012", "(adversarial training)": "adv"}
    assert [row["prior"] for row in rows] == list(names)
    for row in rows:
        course = runs[names[row["prior"]]]["course"]
        told = {f"nll, epoch {epoch}": f"{course[epoch - 1][1]:.3f}" for epoch in (5, 10, 15)}
        snr, *held_out = course[14][3:]
        assert row == {"prior": row["prior"], **told, "SNR": f"{snr:.1f}" if snr else "",
                       "held out, epoch 15": " / ".join(map(percent, held_out))}
    lower = [ours[1] < adv[1] for ours, adv in zip(*(runs[name]["course"] for name in ("images-64", "adv")), strict=True)]
    assert lower == [True] * 10 + [False] * 5            # "up to epoch 10 of 15"
    former, digits = records("digits-trials/prior.jsonl"), digits_runs()
    ours, known = ([digits[f"{defense}-240-{seed}"] for seed in range(3)] for defense in ("advbnn", "adv"))
    better, worse = ([apart(*(sum((correct(run, attack) for run in runs), []) for runs in pair))
                      for attack in ("pgd", "apgd-ce")] for pair in ((ours, former), (former, known)))
    assert (f"by {better[0]} (PGD) and {better[1]} points (APGD), image by image" in text
            and f"those by `fan_in` differed by {worse[0]} and {worse[1]}." in text)
    alpha = runs["prior-0.0038"]["settings"]["alpha"]
    assert math.sqrt(alpha / (5e-4 * 49_000)) == pytest.approx(0.0038, abs=5e-5)
    kl, snr = runs["prior-0.0038"]["course"][14][2:4]
    noise = price(alpha, 49_000, 924_186, snr)
    assert f"Of the {kl:.3f} nats per image at the end of the second row below the noise costs {noise:.3f}." in text
    sizes, kept = records("cifar10-trials/sizes.jsonl"), best_epoch(
        records("cifar10-medium/fan_in/runs/advbnn-tuned/metrics.jsonl"))
    grown = [row["advbnn, prior of fan_in"] / row["adv"] for row in sizes]
    snr = [kept[f"snr/{row['weight'].removesuffix('.weight')}"] for row in sizes]
    decay = [alpha / 49_000 / (2 / row["fan_in"]) for row in sizes]
    assert f"end {min(grown):.1f} to {max(grown):.1f} times as large" in text
    assert f"last three convolutions the signal-to-noise ratio is {min(snr[-3:]):.1f} to {max(snr[-3:]):.1f}." in text
    assert f"at most {1e6 * max(decay):.1f}e-6, {round(5e-4 / max(decay), -1):.0f} times less" in text


def best_epoch(course):
    return max(course, key=lambda epoch: (epoch["held_out_robust_accuracy"], epoch["held_out_accuracy"]))


def after_the_best(course):
    """Points that the last epoch has less than the best one under attack, and more on clean images, held out."""
    best, last = best_epoch(course), course[-1]
    return (f"{100 * (best['held_out_robust_accuracy'] - last['held_out_robust_accuracy']):.1f}",
            f"{100 * (last['held_out_accuracy'] - best['held_out_accuracy']):.1f}")


def both_accuracies(epoch, split):
    return " / ".join(percent(epoch[f"{split}_{name}"]) for name in ("accuracy", "robust_accuracy"))


def test_what_the_decay_weighs_equals_the_records():
    text = " ".join(PAGES["method.md"].split())
    courses = [records(f"{folder}/metrics.jsonl") for folder in (
        "cifar10-medium/runs/advbnn-tuned", "stl10-medium/runs/advbnn")]
    assert "in the first epoch an image pays {:.2f} nats in all with the narrow VGG16, {:.2f} with Model A.".format(
        *(course[0]["kl_per_image"] for course in courses)) in text
    network = networks.build_network("vgg16", 10, 3, 16)
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    first, last = (sum(epoch[f"kl_per_image/{name}"] for name in norms)
                   / sum(value for name, value in epoch.items() if name.startswith("kl_per_image/"))
                   for epoch in (courses[0][0], courses[0][-1]))
    assert last < 0.2 < 0.7 < first                      # in the first epoch BatchNorm's scales, at the end the convolutions


def test_what_the_prior_does_on_stl10_equals_the_records():
    for row in table("method.md", "best epoch of 30", "tested, PGD"):
        name, _, seed = row["training"].partition(", seed ")
        folder, run = f"stl10-medium/{row['in'].strip('`')}", "adv" if name == "adversarial training" else "advbnn"
        run += f"-seed-{seed}" if seed else ""
        course = records(f"{folder}/runs/{run}/metrics.jsonl")
        best = best_epoch(course)
        assert row["best epoch of 30"] == str(best["epoch"]) and len(course) == 30
        assert (row["held out, best"], row["held out, last"]) == (both_accuracies(best, "held_out"),
                                                                  both_accuracies(course[-1], "held_out")), row
        assert row["last nll"] == f"{course[-1]['nll']:.3f}"
        config = json_files.read_config(RUNS / folder / "runs" / run)
        if run.startswith("advbnn") and "fan_in" not in name:
            prior_std = recipes.auto_prior_std(config["settings"]["alpha"], 4500)
            assert config["classifier"]["prior_std"] == pytest.approx(prior_std, rel=1e-3) == pytest.approx(0.0082, rel=0.01)
        rows = [line for table_name in ("accuracy", "runs") if (RUNS / folder / f"evaluation/{table_name}.csv").exists()
                for line in records(f"{folder}/evaluation/{table_name}.csv")]
        draws = "20" if run.startswith("advbnn") else "1"
        tested = [percent(one(rows, run=run, attack_samples=draws, epsilon=epsilon, num_examples="500")["accuracy"])
                  for epsilon in ("0", "0.035")]
        assert [row["tested, clean"], row["tested, PGD"]] == tested, row
    text = " ".join(PAGES["method.md"].split())
    one_draw = [listed_accuracies(records(f"stl10-medium/{part}evaluation/accuracy.csv"), "advbnn", "1", "3000",
                                  ("0", "0.035", "0.07")) for part in ("", "fan_in/")]
    assert "the first has {} (0, 0.035, 0.07), `fan_in` {}.".format(*one_draw) in text


def test_what_the_prior_does_on_cifar10_equals_the_records():
    nll = [f"{records(f'cifar10-medium/{run}/metrics.jsonl')[-1]['nll']:.3f}" for run in (
        "runs/advbnn-tuned", "runs/adv-tuned", "fan_in/runs/advbnn-tuned")]
    assert "end at a nll of {}, adversarial training's {} and {} by `fan_in`.".format(*nll) in PAGES["method.md"]


def test_the_table_of_budgets_on_stl10_equals_the_records():
    places = {"0.01": "fan_in/runs/advbnn-0.01", "0.11: the default": "fan_in/runs/advbnn", "0.2": "before/runs/advbnn",
              "(adversarial training)": "runs/adv"}
    rows, of_five = table("method.md", "nats per image", "right in training"), []
    assert [row["nats per image"] for row in rows] == list(places)
    for row in rows:
        folder = f"stl10-medium/{places[row['nats per image']]}"
        config, course = json_files.read_config(RUNS / folder), records(f"{folder}/metrics.jsonl")
        last, best = course[-1], best_epoch(course)
        told = [both_accuracies(*each) for each in ((last, "train"), (best, "held_out"), (last, "held_out"))]
        assert [row[name] for name in ("nll", "right in training", "best", "last")] == [
            f"{last['nll']:.3f}", told[0], f"{told[1]} ({best['epoch']})", told[2]]
        if config["settings"]["alpha"]:
            assert [row[name] for name in ("SNR", "KL")] == [f"{last['snr']:.1f}", f"{last['kl_per_image']:.3f}"]
            share = price(config["settings"]["alpha"], 4500, config["num_weights"])
            assert float(row["nats per image"].partition(":")[0]) == pytest.approx(share, rel=0.02)
            assert config["classifier"]["prior_std"] == "fan_in"
        of_five.append(mean_percent([epoch["held_out_robust_accuracy"] for epoch in course[-5:]]))
    assert "under attack are {}, {}, {} and {} %".format(*of_five) in PAGES["method.md"]


def test_what_a_small_budget_costs_on_digits_equals_the_records():
    few, adv = records("digits-trials/small-budget.jsonl"), [digits_runs()[f"adv-240-{seed}"] for seed in range(3)]
    for attack, name in (("pgd", "PGD"), ("apgd-ce", "APGD")):
        told = f"{apart(*(sum((correct(run, attack) for run in runs), []) for runs in (few, adv)))} ({name})"
        assert told in PAGES["method.md"].partition("With a budget of 0.01 nats")[2].partition("\n- ")[0], told


@pytest.mark.parametrize("page, words", [
    ("method.md", "b = min({:g} / N, {:g})"), ("training.md", "the KL is {:g} nats in all, at most {:g} per image, at"),
    ("defaults.md", "a budget of {:g} nats in all, at most {:g} per image;")])
def test_the_pages_and_the_help_of_alpha_name_the_budget_of_the_code(page, words):
    budget = recipes.KL_BUDGET, recipes.LARGEST_SHARE
    assert words.format(*budget) in PAGES[page]
    assert "alpha times the KL is {:g} nats in all, at most {:g} per image".format(*budget) in Path(flags.__file__).read_text()


def test_the_table_of_todays_defaults_equals_its_records():
    for row in table("benchmark.md", "attack", "MiB"):
        ours, floor = (one(records(f"benchmark-cpu/defaults/batch-{row['batch']}.csv"), contestant=name)
                       for name in ("adv-bnn", "deterministic"))
        assert row["CPU ratio"] == f"{float(ours['cpu_ratio']):.3f}"
        assert row["MiB"] == f"{float(ours['peak_memory_bytes']) / 2**20:.0f}"
        for part in ("attack", "update", "optimizer"):
            added = (float(ours[f"{part}_s"]) - float(floor[f"{part}_s"])) / float(floor["wall_s"])
            assert row[part] == f"{added:.3f}"


def test_the_readme_tells_what_a_step_costs_as_the_records_do():
    cpu = [100 * float(one(records(f"benchmark-cpu/defaults/batch-{batch}.csv"), contestant="adv-bnn")["cpu_ratio"]) - 100
           for batch in (128, 32)]
    rows = records("gpu/h100/benchmark/benchmark.csv")
    gpu = [100 * float(one(rows, contestant="adv-bnn", batch_size=batch)["wall_ratio"]) - 100 for batch in ("1024", "512")]
    assert ("costs {:.0f} % more than one of adversarial training at batch 128 on a CPU, {:.0f} % at 32. On an H100 it costs "
            "{:.0f} % more at batch 1,024, {:.0f} % at 512").format(*cpu, *gpu) in PAGES["README.md"]


def test_the_table_of_the_benchmark_equals_the_record():
    rows = records("benchmark-cpu/benchmark.csv")
    for row in table("benchmark.md", "contestant", "peak MiB"):
        record = one(rows, batch_size=row["batch"], precision=row["precision"], contestant=row["contestant"])
        assert row["ms"] == f"{1000 * float(record['wall_s']):.0f}" and row["to"] == record["floor"], row
        assert row["CPU ratio"] == f"{float(record['cpu_ratio']):.3f}", row
        assert row["peak MiB"] == f"{float(record['peak_memory_bytes']) / 2**20:.0f}", row


def test_the_table_of_the_h100_equals_the_records():
    now, before = (records(f"gpu/h100/{name}/benchmark.csv") for name in ("benchmark", "benchmark-before/graphs-auto"))
    for row in table("benchmark.md", "of matmul %"):
        ours, floor = (one(now, batch_size=row["batch"], contestant=name) for name in ("adv-bnn", "deterministic"))
        then = one(before, batch_size=row["batch"], contestant="adv-bnn")
        assert list(row.values())[1:] == [
            f"{float(ours['images_per_second']):,.0f}", f"{float(floor['images_per_second']):,.0f}",
            f"{float(ours['wall_ratio']):.3f}", f"{100 * float(ours['matmul_share']):.0f}",
            f"{float(then['images_per_second']):,.0f}", f"{float(then['wall_ratio']):.3f}"], row
