"""Tests of the README and the pages of docs/: what they name is there, their commands parse, their examples run."""
import functools
import re
import shlex
from pathlib import Path

import pytest
from pages import PAGES, ROOT, table

import pyro_advbnn as ab
from pyro_advbnn import benchmark, demo, evaluate, reproduce, train
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.cli import commands, help
from pyro_advbnn.datasets.names import DATASETS, DEFAULT_AUGMENTATION
from pyro_advbnn.training import flags, recipes
from pyro_advbnn.training.recipes import RECIPES

PACKAGE = ROOT / "pyro_advbnn"
PROGRAMS = {"train": train.train, "evaluate": evaluate.VERBS, "reproduce": reproduce.VERBS, "benchmark": benchmark.benchmark,
            "demo": demo.demo}
OTHERS_FLAGS = {"standalone", "nproc-per-node", "nnodes", "max-restarts", "rdzv-backend", "rdzv-endpoint", "rdzv-id",
                "no-deps", "no-build-isolation", "require-hashes", "help",
                "nodes", "ntasks-per-node", "gpus-per-node", "budget_seconds"}      # of torchrun, pip, sbatch and .ci/gpu
pages = pytest.mark.parametrize("page", PAGES)


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


@pytest.mark.parametrize("page, words", [
    ("method.md", "b = min({:g} / N, {:g})"), ("training.md", "the KL is {:g} nats in all, at most {:g} per image, at"),
    ("defaults.md", "a budget of {:g} nats in all, at most {:g} per image;")])
def test_the_pages_and_the_help_of_alpha_name_the_budget_of_the_code(page, words):
    budget = recipes.KL_BUDGET, recipes.LARGEST_SHARE
    assert words.format(*budget) in PAGES[page]
    assert "alpha times the KL is {:g} nats in all, at most {:g} per image".format(*budget) in Path(flags.__file__).read_text()
