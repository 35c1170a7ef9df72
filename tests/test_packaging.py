"""Tests of what is declared, pinned and built: the lock, the imports, the wheel and its command."""
import ast
import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"pyro-ppl": "pyro", "pillow": "PIL", "scikit-learn": "sklearn", "adversarial-robustness-toolbox": "art"}
OWN = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"pyro_advbnn"}
COMMANDS = ["train", "evaluate", "reproduce", "benchmark", "demo"]


def core():
    return [Requirement(text) for text in PROJECT["dependencies"]]


def extras():
    return [Requirement(text) for group in PROJECT["optional-dependencies"].values() for text in group]


def locked():
    """{package: (version, its hashes)} of requirements.lock."""
    text = re.sub(r"^#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        name, version, hashes = re.fullmatch(r"([\w.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+)", line.strip()).groups()
        found[canonicalize_name(name)] = version, hashes.split()
    return found


def test_the_lock_pins_every_dependency_within_its_bounds():
    pins = locked()
    for wanted in [*core(), *extras(), Requirement("setuptools>=77")]:
        version, _ = pins[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{wanted.name} {version} is not {wanted.specifier}"


def test_every_line_of_the_lock_has_hashes_and_names_no_place():
    pins = locked()                                      # fails for a line without
    assert len(pins) > 80 and all(len(set(hashes)) == len(hashes) for _, hashes in pins.values())
    assert len(pins["numpy"][1]) > 20                    # those of all Pythons
    assert not re.search(r"://|^-|find-links|@ ", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_make_and_conda_install_with_hashes():
    assert "--require-hashes -r requirements.lock" in (ROOT / "Makefile").read_text()
    assert "--require-hashes -r requirements.lock" in (ROOT / "environment.yml").read_text()


@functools.cache
def imports(path):
    """(module, whether it is imported as soon as the file is) of each import, without Python's own and ours."""
    def visit(node, at_once):
        guarded = isinstance(node, ast.FunctionDef | ast.Lambda | ast.Try)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once and not guarded)
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, at_once

    found = [(name.partition(".")[0], at_once) for name, at_once in visit(ast.parse(path.read_text()), True)]
    return [(name, at_once) for name, at_once in found if name not in sys.stdlib_module_names and name not in OWN]


def modules(requirements):
    return {IMPORTED_AS.get(wanted.name, wanted.name.replace("-", "_")) for wanted in requirements}


def test_the_package_imports_nothing_that_is_not_declared_and_nothing_optional_at_once():
    found = 0
    for path in sorted((ROOT / "pyro_advbnn").rglob("*.py")):
        for name, at_once in imports(path):
            found += 1
            assert name in modules(core()) | (set() if at_once else modules(extras())), f"{path.name} imports {name}"
    assert found > 100


@pytest.mark.parametrize("folder", ["tests", "examples"])
def test_a_folder_beside_the_package_imports_nothing_that_is_not_declared(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name, _ in imports(path):
            assert name in modules([*core(), *extras()]), f"{path.name} imports {name}"


def copied(folder):
    """The files that a checkout has, which git knows or might."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.splitlines()
    for name in listed:
        if name.startswith("pyro_advbnn/") or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(*words, **more):
    end = subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)
    assert end.returncode == 0, end.stdout[-2000:] + end.stderr[-2000:]
    return end.stdout


def check_files(dist):
    wheel, = dist.glob("*.whl")
    sdist, = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as of_source, zipfile.ZipFile(wheel) as built:
        names, installed = {name.partition("/")[2] for name in of_source.getnames()}, built.namelist()
    for name in ("bayes/kernels/_normals.c", "bayes/kernels/_posterior.c", "bayes/kernels/_max_pool.c",
                 "bayes/kernels/_widest.h", "reporting/report.css", "reporting/report.html.j2", "cli/commands.py",
                 "datasets/imagenet143_wnids.txt", "__main__.py", "__init__.pyi", "py.typed"):
        assert f"pyro_advbnn/{name}" in names, name
        assert name.endswith((".c", ".h")) or f"pyro_advbnn/{name}" in installed, name
    if shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]):                # without a compiler they are left out
        compiled = {name.rpartition("/")[2].partition(".")[0] for name in installed if name.endswith(".so")}
        assert compiled == {"_normals", "_posterior", "_max_pool"}
    return wheel


def check_command(environment, **more):
    """The console script of an environment with the wheel lists the commands, refuses, and does as python -m does."""
    script = environment / "bin" / "pyro-advbnn"
    text = run(script, "--help", **more)
    assert text.startswith("usage: pyro-advbnn VERB") and all(f"  {name} " in text for name in COMMANDS)
    assert run(script, "train", "--help", **more).startswith("usage: pyro-advbnn train [--flag value ...]\n")
    dry = run(script, "train", "--dataset=digits", "--dry_run", "--device=cpu", **more)
    assert '"defense": "advbnn"' in dry
    (more["cwd"] / "mine.py").write_text("from torch import nn\n"
                                         "def network(classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n")
    assert '"network": "mine:network"' in run(script, "train", "--network=mine:network", "--dry_run", "--device=cpu", **more)
    where = run(environment / "bin" / "python", "-c", "import pyro_advbnn; print(pyro_advbnn.__file__)", **more)
    assert Path(where.strip()).is_relative_to(environment)
    end = subprocess.run([script, "trian"], capture_output=True, text=True, **more)
    assert (end.returncode, end.stdout, end.stderr) == (2, "", "error: unknown verb 'trian'; choose one of: train, evaluate, "
                                                               "reproduce, benchmark, demo\n")


@pytest.mark.slow
def test_the_wheel_holds_all_files_and_its_command_runs_in_an_environment_of_its_own(tmp_path):
    (tmp_path / "source").mkdir()
    build = "from setuptools import build_meta as b; b.build_sdist('../dist'); b.build_wheel('../dist')"
    (tmp_path / "dist").mkdir()
    run(sys.executable, "-c", build, cwd=copied(tmp_path / "source"))
    wheel = check_files(tmp_path / "dist")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment")
    run(sys.executable, "-m", "pip", "--python", tmp_path / "environment", "install", "--no-index", "--no-deps", wheel)
    libraries = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}   # the dependencies, where they are already
    check_command(tmp_path / "environment", cwd=tmp_path, env=libraries)


def test_the_list_of_commands_comes_without_torch():
    code = "import sys; sys.argv = ['pyro-advbnn', '--help']\nfrom pyro_advbnn import __main__\n" \
           "try: __main__.main()\nexcept SystemExit as end: assert end.code == 0\nassert 'torch' not in sys.modules"
    assert "usage:" in run(sys.executable, "-c", code, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_every_command_is_in_the_list_and_is_run_by_its_name(monkeypatch, capsys):
    from pyro_advbnn import __main__
    assert list(__main__._FIRST_LINES) == COMMANDS
    for words, says in ((["train", "--epochs=0"], "--epochs must be"), (["evaluate", "accuracy"], "give --run"),
                        (["reproduce", "fig9"], "unknown verb 'fig9'"), (["benchmark", "--x"], "unknown flag"),
                        (["demo", "--seed=x"], "--seed must be")):
        monkeypatch.setattr(sys, "argv", ["pyro-advbnn", *words])
        with pytest.raises(SystemExit) as end:
            __main__.main()
        assert end.value.code == 2 and says in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["pyro-advbnn", "evaluate", "--help"])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 0 and "evaluate VERB" in capsys.readouterr().out


@pytest.mark.torture
def test_the_lock_installs_by_its_hashes_and_the_package_builds_in_isolation(tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "environment")
    python = tmp_path / "environment" / "bin" / "python"
    run(python, "-m", "pip", "install", "--require-hashes", "-r", ROOT / "requirements.lock")
    (tmp_path / "source").mkdir()
    run(python, "-m", "build", "--outdir", tmp_path / "dist", copied(tmp_path / "source"))
    run(python, "-m", "pip", "install", "--no-deps", check_files(tmp_path / "dist"))
    run(python, "-m", "pip", "check")
    check_command(tmp_path / "environment", cwd=tmp_path, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
