"""Tests of commands and their help: what a command takes, what it refuses, and that nothing starts before a refusal."""
import errno
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import pytest

from pyro_advbnn import train as train_command
from pyro_advbnn.cli import commands, help, python_calls
from pyro_advbnn.cli.flag_types import Range
from pyro_advbnn.system.errors import InputError, Note

ROOT = Path(__file__).parents[2]
seen = []  # what the commands below were called with


def train(
    *,
    out: Path,
    dataset: Literal["digits", "cifar10", "stl10"] = "digits",
    depth: Literal[11, 16] = 11,
    epsilon: Annotated[float, Range(0)] = 8 / 255,
    num_steps: Annotated[int, Range(0, open_low=True)] = 10,
    seed: int | None = None,
    momentum: Annotated[float | None, Range(0, 1, open_high=True)] = None,
    step_size: Annotated[float, Range(0)] | Literal["auto"] = "auto",
    prior_std: Annotated[float, Range(0)] | str = 0.05,
    name: str = "run",
    note: str | None = None,
    data_dir: Path | None = None,
    epsilons: list[Annotated[float, Range(0, 1)]] = (0.0, 0.5),
    seeds: list[int] = (0,),
    runs: list[str] = (),
    defenses: list[Literal["none", "adv"]] = ("none",),
    resume: bool = False,
    normalize: bool = True,
):
    """Train one classifier.

    A second paragraph.

    Args:
        out: the run folder, which
            is made.
        epsilon (float): the l_inf radius.

    Raises:
        InputError: never.
    """
    seen.append(locals())
    return "not to be printed"


def accuracy(*, run: Path, num_samples: int = 20):
    """Measure the accuracy."""
    seen.append(locals())


VERBS = {"accuracy": accuracy, "transfer": accuracy, "train": train}


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()


def refusal(capsys, verbs, *words):
    """The one line with which words are refused, by exit code 2 and before the command runs."""
    with pytest.raises(SystemExit) as end:
        commands.run(verbs, list(words))
    out, err = capsys.readouterr()
    assert (end.value.code, out, seen) == (2, "", [])
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    return err.removeprefix("error: ").strip()


@pytest.mark.parametrize(("words", "name", "value"), [
    (["--epsilon", "8/255"], "epsilon", 8 / 255), (["--epsilon=0.03"], "epsilon", 0.03),
    (["--epsilon", "1"], "epsilon", 1.0), (["--num-steps", "1e3"], "num_steps", 1000),
    (["--num_steps=1_000"], "num_steps", 1000), (["--seed", "-4/2"], "seed", -2), (["--seed", "none"], "seed", None),
    (["--momentum", "0"], "momentum", 0.0), (["--momentum=none"], "momentum", None),
    (["--step_size", "auto"], "step_size", "auto"), (["--step_size", "2/255"], "step_size", 2 / 255),
    (["--prior_std", "he"], "prior_std", "he"), (["--prior_std", ".05"], "prior_std", 0.05),
    (["--dataset", "stl10"], "dataset", "stl10"), (["--depth", "16"], "depth", 16), (["--note", "none"], "note", None),
    (["--note", "None"], "note", "None"), (["--data_dir", "none"], "data_dir", None),
    (["--data_dir", "a b/c,d"], "data_dir", Path("a b/c,d")),
    (["--epsilons", "0,0.01:0.03:0.01,8/255"], "epsilons", [0.0, 0.01, 0.02, 0.03, 8 / 255]),
    (["--seeds", "0:4:2,-7"], "seeds", [0, 2, 4, -7]), (["--runs", "runs/a b, [c]"], "runs", ["runs/a b", "[c]"]),
    (["--defenses", "adv,none"], "defenses", ["adv", "none"]), (["--resume"], "resume", True),
    (["--resume=true"], "resume", True), (["--resume", "--num-steps=3"], "resume", True),
    (["--resume", "false"], "resume", False), (["--normalize=False"], "normalize", False),
])
def test_a_good_flag_reaches_the_command_as_the_value_that_was_checked(words, name, value):
    commands.run(train, ["--out=o", *words])
    assert seen[0][name] == value and type(seen[0][name]) is type(value)


@pytest.mark.parametrize("text", [
    "1e3", "None", "none", "True", "a,b", "[x]", "{a: b}", "--weird", "-", "-h-", "--help=1", " a  b ", "'q'"])
def test_a_string_arrives_unchanged(text):
    commands.run(train, ["--out=o", f"--name={text}"])
    assert seen[0]["name"] == text


def test_a_flag_that_is_not_given_keeps_its_default_and_the_result_is_not_printed(capsys):
    assert commands.run(train, ["--out", "a"]) is None
    assert seen[0]["out"] == Path("a") and seen[0]["epsilon"] == 8 / 255 and seen[0]["epsilons"] == (0.0, 0.5)
    assert capsys.readouterr() == ("", "")


def test_the_first_word_chooses_the_verb():
    commands.run(VERBS, ["accuracy", "--run", "a", "--num-samples=3"])
    assert seen == [{"run": Path("a"), "num_samples": 3}]


@pytest.mark.parametrize(("words", "line"), [
    (["--epsilom", "3"], "unknown flag --epsilom; did you mean --epsilon or --epsilons?"),
    (["-epsilon", "3"], "unknown flag -epsilon; did you mean --epsilon or --epsilons?"),
    (["--dd", "x"], "unknown flag --dd; did you mean --data_dir?"), (["-dd=x"], "unknown flag -dd; did you mean --data_dir?"),
    (["--noresume"], "unknown flag --noresume; did you mean --resume?"),
    (["--noepsilon"], "unknown flag --noepsilon; did you mean --epsilon or --epsilons?"),
    (["--nonormalize=true"], "unknown flag --nonormalize; did you mean --normalize?"),
    (["--epsilon", "8/0"], "--epsilon must be a number >= 0, got '8/0' (division by zero)"),
    (["--epsilon", "-1/2"], "--epsilon must be a number >= 0, got '-1/2'"),
    (["--epsilon", "1e999"], "--epsilon must be a number >= 0, got '1e999' (too large)"),
    (["--num_steps", "1.5"], "--num_steps must be an integer > 0, got '1.5'"),
    (["--num_steps", "0"], "--num_steps must be an integer > 0, got '0'"),
    (["--seed", "x"], "--seed must be an integer, got 'x'"),
    (["--seed", "None"], "--seed must be an integer, got 'None'"),
    (["--momentum", "1"], "--momentum must be a number in [0, 1), got '1'"),
    (["--step_size", "aut"], "--step_size must be a number >= 0 or auto, got 'aut'"),
    (["--prior_std", "-1"], "--prior_std must be a number >= 0 or text, got '-1'"),
    (["--dataset", "cifar"], "--dataset must be one of digits, cifar10, stl10, got 'cifar'"),
    (["--depth", "12"], "--depth must be one of 11, 16, got '12'"),
    (["--epsilons", "0,2"], "--epsilons must be a list of numbers in [0, 1] written a,b,c or start:stop:step, got '0,2'"),
    (["--defenses", "adv,non"], "--defenses must be a list written a,b,c, each one of none, adv, got 'adv,non'"),
    (["--resume", "maybe"], "--resume must be true or false, got 'maybe'"),
    (["--data_dir="], "--data_dir must be a path, got ''"),
    (["--epsilon"], "--epsilon needs a value: a number >= 0"),
    (["--name", "--resume"], "--name needs a value: text"),
    (["--seed=1", "--seed", "1"], "--seed is given twice"),
    (["--num-steps=1", "--num_steps=1"], "--num_steps is given twice"),
    (["digits"], "unexpected 'digits': only flags are taken, as --name value"),
    (["-"], "unexpected '-': only flags are taken, as --name value"),
    ([], "missing --out (a path)"),
])
def test_a_wrong_flag_is_refused_in_one_line_before_the_command_runs(capsys, words, line):
    assert refusal(capsys, train, *words) == line


@pytest.mark.parametrize("words", [["--", "--trace"], ["--", "-i"], ["--"], ["--out=o", "--", "--verbose"]])
def test_the_separator_of_fire_is_refused_with_all_that_follows(capsys, words):
    assert refusal(capsys, train, *words).startswith("unknown flag --; the flags are --out, --dataset, ")


@pytest.mark.parametrize(("words", "line"), [
    ([], "a verb must come first; choose one of: accuracy, transfer, train"),
    (["--run", "a"], "a verb must come first; choose one of: accuracy, transfer, train"),
    (["trane"], "unknown verb 'trane'; choose one of: accuracy, transfer, train"),
    (["accuracy", "--run=a", "--out=b"], "unknown flag --out; the flags are --run, --num_samples"),
    (["accuracy", "train"], "unexpected 'train': only flags are taken, as --name value"),
])
def test_a_missing_or_wrong_verb_is_refused_with_the_verbs(capsys, words, line):
    assert refusal(capsys, VERBS, *words) == line


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--nonsense", "--help"], ["--epsilon", "-h"]])
def test_help_tells_each_flag_with_type_default_and_description_on_stdout(capsys, words):
    with pytest.raises(SystemExit) as end:
        commands.run(train, words)
    out, err = capsys.readouterr()
    assert (end.value.code, err, seen) == (0, "", [])
    assert "--out ... [--flag value ...]\n\nTrain one classifier.\n\nA second paragraph.\n\nflags:\n" in out
    assert "  --out: a path; required\n      the run folder, which is made.\n" in out
    assert "  --epsilon: a number >= 0; default 0.0313725\n      the l_inf radius.\n" in out
    assert "  --seed: an integer\n  --momentum" in out
    assert "default 0,0.5\n" in out and "InputError" not in out


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--run", "a", "-h"]])
def test_help_without_a_verb_lists_the_verbs(capsys, words):
    with pytest.raises(SystemExit) as end:
        commands.run(VERBS, words)
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "  accuracy  Measure the accuracy.\n" in out and "A second paragraph" not in out


def test_help_with_a_verb_tells_the_flags_of_that_verb(capsys):
    with pytest.raises(SystemExit) as end:
        commands.run(VERBS, ["accuracy", "--help"])
    assert end.value.code == 0
    assert " accuracy --run ... [--flag value ...]\n" in capsys.readouterr().out


def positional(run: Path): ...


def bare(*, run): ...


def strange(*, run: dict | None = None): ...


def mixed(*, run: list[int | str]): ...


@pytest.mark.parametrize("function", [positional, bare, strange, mixed])
def test_a_function_that_is_no_command_is_a_bug_and_not_a_refusal(function):
    with pytest.raises(TypeError):
        commands.run(function, [])


@pytest.mark.parametrize(("error", "code", "line"), [
    (InputError("data_dir: no file\n   train.bin"), 2, "error: data_dir: no file train.bin\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), 2, "error: a/b: No such file or directory\n"),
], ids=["input", "interrupt", "system"])
def test_wrong_input_an_interrupt_and_an_error_of_the_system_become_one_line_and_an_exit_code(capsys, error, code, line):
    def command():
        raise error

    with pytest.raises(SystemExit) as end:
        commands.run(command, [])
    assert end.value.code == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ZeroDivisionError])
def test_any_other_exception_is_a_bug_and_shows_itself(error):
    def command():
        raise error

    with pytest.raises(error):
        commands.run(command, [])


SCRIPT = """
from pathlib import Path
from pyro_advbnn.cli import commands

def touch(*, out: Path = Path("made")):
    '''Make a file.'''
    out.touch()
    print("made")

commands.run(touch)
"""
TOLD = "usage: python touch.py [--flag value ...]\n\nMake a file.\n\nflags:\n  --out: a path; default made\n"


@pytest.mark.parametrize(("words", "made", "expected"), [
    ([], True, (0, "made\n", "")),
    (["--otu", "elsewhere"], False, (2, "", "error: unknown flag --otu; did you mean --out?\n")),
    (["--help"], False, (0, TOLD, "")),
], ids=["good", "refused", "help"])
def test_a_process_of_its_own_works_only_after_all_checks_and_tells_without_a_pager(tmp_path, words, made, expected):
    (tmp_path / "touch.py").write_text(SCRIPT)
    ended = subprocess.run([sys.executable, "touch.py", *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                           capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == expected
    assert (tmp_path / "made").exists() == made


@python_calls.flags
class Common:
    """What all commands take.

    Args:
        run: the run folder.
        step: a step, of
            a length.
    """

    run: Path
    step: Annotated[float, Range(0)] | Literal["auto"] | None = None
    names: list[str] | None = None
    fraction: Annotated[float, Range(0, 1)] | None = python_calls.flag("of the whole.")


def grouped(*, of: Common, epsilons: list[Annotated[float, Range(0, 1)]] | None = (0.0,), dry_run: bool = False):
    """Take a group.

    Args:
        epsilons: radii.
    """
    seen.append(locals())


def test_a_dataclass_stands_for_the_flags_that_are_its_fields(capsys):
    commands.run(grouped, ["--run", "a/b", "--epsilons", "0,1/2", "--step=auto", "--names", "x,y"])
    assert seen == [{"of": Common(run=Path("a/b"), step="auto", names=["x", "y"]), "epsilons": [0.0, 0.5], "dry_run": False}]
    assert list(help.parameters(grouped)) == ["run", "step", "names", "fraction", "epsilons", "dry_run"]
    with pytest.raises(SystemExit):
        commands.run(grouped, ["--help"])
    own, shared = capsys.readouterr().out.split("flags:\n")[1].split("\n\nWhat all commands take:\n")
    assert "--epsilons: " in own and "radii." in own and "--run" not in own
    assert "  --run: a path; required\n      the run folder.\n" in shared and "a step, of a length." in shared
    assert "  --fraction: a number in [0, 1]\n      of the whole." in shared


@python_calls.flags
class Marked:
    """What comes later."""

    deep: int = python_calls.flag("of little weight.", default=1)
    main: int = python_calls.flag("of weight.", default=2, first=True)


def marked(*, of: Marked = None, own: int = 0): ...


@pytest.mark.parametrize("function, first, rest", [
    (marked, "--main", "--own --deep"),
    (train_command.train, "--out --resume --recipe --dataset --data_dir --defense --network --alpha --epsilon --epochs",
     "--seed --max_minutes")])
def test_the_help_begins_with_the_flags_that_matter_first_and_names_each_once(function, first, rest):
    text = help.of_function(function)
    leading, others = text.split("The flags that matter first:\n")[1].split("\n\n", 1)
    assert re.findall(r"^  (--\w+):", leading, re.M) == first.split()
    assert re.findall(r"^  (--\w+):", others, re.M)[:len(rest.split())] == rest.split()
    assert sorted(re.findall(r"^  --(\w+):", text, re.M)) == sorted(help.parameters(function))


@pytest.mark.parametrize(("words", "message"), [
    ([], "missing --run (a path)"), (["--run", "a", "--step", "-1"], "--step must be a number >= 0 or auto, got '-1'"),
    (["--run", "a", "--stepp", "1"], "unknown flag --stepp; did you mean --step?"),
    (["--run", "a", "--of", "b"], "unknown flag --of"),
])
def test_the_flags_of_a_group_are_checked_like_others(words, message, capsys):
    assert message in refusal(capsys, grouped, *words)


@pytest.mark.parametrize("arguments", [
    {"of": Common(run=Path("a"))},
    {"of": Common(run=Path("a b/$c"), step=0.1, names=["x", "y"]), "epsilons": [1 / 3, 8 / 255], "dry_run": True},
    {"of": Common(run=Path("-x"), step="auto"), "epsilons": [1e-7]}, {"of": Common(run=Path("a")), "epsilons": None},
])
def test_a_command_line_gives_its_arguments_back(arguments):
    line = help.command_line("some.module", grouped, arguments)
    python, m, module, *words = shlex.split(line)
    assert (python, m, module) == ("python", "-m", "some.module")
    commands.run(grouped, words)
    assert seen == [{"epsilons": (0.0,), "dry_run": False} | arguments]


def test_from_python_flags_may_be_given_by_their_own_names_beside_or_instead_of_their_group():
    command = python_calls.from_python(grouped)
    command(run="a", step=2, epsilons=0.5)
    command(of=Common(run=Path("a"), step="auto"), run="b")
    assert [(call["of"].run, call["of"].step, call["epsilons"]) for call in seen] == [
        (Path("a"), 2, [0.5]), (Path("b"), "auto", (0.0,))]
    with pytest.raises(InputError, match="of must be a Common, got 'a'"):
        command(of="a")
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepp'"):
        command(run="a", stepp=1)


def test_what_the_library_notes_is_a_line_once_and_other_warnings_stay_what_they_are(capsys):
    def noting():
        for text in ("odd logits", "odd logits", "an odd network"):
            warnings.warn(text, Note, stacklevel=1)
        warnings.warn("of another kind", UserWarning, stacklevel=1)

    with pytest.raises(UserWarning, match="of another kind"):
        commands.run(noting, [])
    assert capsys.readouterr() == ("note: odd logits\nnote: an odd network\n", "")
