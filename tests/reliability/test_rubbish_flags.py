"""Tests of all commands with rubbish for flags: one line, exit code 2, nothing written; enumerated, then at random."""
import contextlib
import io
import math
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin

import pytest
from hostile import copied
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyro_advbnn import benchmark, demo, evaluate, reproduce
from pyro_advbnn.cli import commands, flag_types, help
from pyro_advbnn.train import train

FUNCTIONS = {"train": train, "benchmark": benchmark.benchmark, "demo": demo.demo,
             **{f"evaluate {verb}": function for verb, function in evaluate.VERBS.items()},
             **{f"reproduce {verb}": function for verb, function in reproduce.VERBS.items()}}
COMMANDS = {"train": train, "benchmark": benchmark.benchmark, "demo": demo.demo, "evaluate": evaluate.VERBS,
            "reproduce": reproduce.VERBS}
NO_UPPER_BOUND = {"learning_rate", "weight_decay", "alpha", "prior_std", "init_std"}   # a loss that overflows stops the run
NO_NUMBERS = ["", "x", "nan", "inf", "-inf", "1e400", "-1", "-1e300", "٣", "0x10", "1__0", "1/0", "1:2", "1,,2", "true", "[1]"]
NO_TEXTS = {
    "device": ["gpu", "cuda:99", "cuda:-1", "cuda:٣", "cuda:99999999999999999999", "cpu:x", "meta"],
    "network": ["nonsense", ":", "os:", "torchvision:", "torchvision:nonsense", "no_such_module:f", ".x:y", "math:pi"],
    "prior_std": ["nonsense", "fan_out", "fan_in/0", "fan_in*x", "fan_in/٣", "0", "-1", "nan"],
    "init_std": ["nonsense", "fan_in/0", "0", "-1", "inf", "50"],
    "attacks": ["nonsense", "@", "pgd@", "pgd@pool:0", "pgd@pool:x", "cw"],
}
WRONG_PLACES = {                                         # of each path: what is no such thing
    "run": ["nowhere", "file", "loop", "/dev/null", "empty"], "runs": ["nowhere", "file,empty", "run,run", ",", "loop"],
    "resume": ["nowhere", "file", "loop", "/dev/null", "empty"], "init_from": ["nowhere", "file", "loop", "empty"],
    "data_dir": ["nowhere", "file", "loop", "empty"], "ood_dir": ["nowhere", "file", "empty"],
    "out": ["file", "file/below", "loop", "/dev/null"],
}


class Reached(BaseException):
    """The work has begun: all checks are over."""


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
    """A folder with a trained run and with things that are none."""
    folder = tmp_path_factory.mktemp("place")
    copied(finished, folder / "run")
    train(defense="none", num_train=60, validation=10, width=2, epochs=1, device="cpu", out=folder / "plain")
    (folder / "file").write_text("mine")
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


def digest(folder):
    """What is there; that a lock came and went in a folder is left out."""
    stats = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {path: (stat.st_ino, *([] if path.is_dir() else [stat.st_size, stat.st_mtime_ns])) for path, stat in stats.items()}


def outcome(name, words):
    """(exit code or None, stdout, stderr) of a command in this process; an exception that shows itself is a bug."""
    command, *verb = name.split()
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            commands.run(COMMANDS[command], [*verb, *words])
        except SystemExit as end:
            code = end.code
        except Reached:
            pass
    return code, out.getvalue(), err.getvalue()


def refusal(name, words, folder=None):
    """The line with which a command refuses words, as it must."""
    before = digest(folder) if folder else None
    code, out, err = outcome(name, words)
    shown = (name, [word[:60] for word in words], code, out[:200], err[:300])
    assert code == 2 and out == "", shown
    assert err.startswith("error: ") and err.endswith("\n") and err[:-1].isprintable() and len(err) < 10_000, shown
    assert not folder or digest(folder) == before, shown
    return err


def context(name):
    """Flags with which a command would run, but for the one under test."""
    return {"evaluate": ["--run=run", "--num_test=10"], "benchmark": ["--network=convnet", "--image_size=8"]}.get(
        name.split()[0], [])


def types_of(annotation):
    return dict(flag_types.members(annotation))


def rubbish(flag, annotation):
    """Texts that no flag of this annotation may take."""
    types = types_of(annotation)
    if str in types or list[str] in types:
        return ["", *NO_TEXTS[flag]]
    if Path in types or list[Path] in types:
        return [""]
    found = ["", "nonsense", "٣", "None", *(["maybe", "2"] if bool in types else [])]
    for number in {int, float, list[int], list[float]} & types.keys():
        assert math.isfinite(types[number].high) == (flag not in NO_UPPER_BOUND), f"--{flag} needs an upper bound"
        found += NO_NUMBERS + ([str(10**30), "1e300"] if flag not in NO_UPPER_BOUND else [])
        found += ["1.5"] if number is int else []
    return found


def read_alike(name, flag):
    """The first command, of those up to the one of this name, that reads a flag as it does."""
    kind = repr(help.parameters(FUNCTIONS[name])[flag].annotation)
    known = {other: help.parameters(function) for other, function in FUNCTIONS.items()}
    return next(other for other in FUNCTIONS if flag in known[other] and repr(known[other][flag].annotation) == kind)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.torture)], ids=["some", "all"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_flag_refuses_every_kind_of_rubbish_in_one_line_and_writes_nothing(name, every, place, idle):
    """All of it, or each eighth text where an earlier command reads the flag in the same way."""
    for number, (flag, parameter) in enumerate(help.parameters(FUNCTIONS[name]).items()):
        others = [word for word in context(name) if not word.startswith(f"--{flag}=")]
        others = [] if flag == "runs" else others
        texts = rubbish(flag, parameter.annotation)
        for text in texts if every or read_alike(name, flag) == name else texts[number % 8::8]:
            assert flag.split("_")[0] in refusal(name, [*others, f"--{flag}={text}"]), (flag, text[:50])
        for words in ([f"--{flag}"], [f"--{flag}", "--seed"]) if not is_bool(parameter) else ():
            assert f"--{flag} needs a value" in refusal(name, words)
        good = "true" if is_bool(parameter) else spell(parameter.annotation)
        assert f"--{flag} is given twice" in refusal(name, [f"--{flag}={good}", f"--{flag}", good])
        assert "unknown flag" in refusal(name, [f"--{flag}s_"]) and "unknown flag" in refusal(name, [f"--x{flag}=1"])


def is_bool(parameter):
    return bool in types_of(parameter.annotation)


def spell(annotation):
    """A text that is good for a flag."""
    for text in ("1", "0.5", "some"):
        with contextlib.suppress(ValueError):
            flag_types.read("flag", text, annotation)
            return text
    return choices(annotation)[0]


def choices(annotation):
    """The words among which a value, or each element of a list, may be chosen."""
    kinds = [get_args(kind)[0] if get_origin(kind) is list else kind for kind in types_of(annotation)]
    return [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]


@pytest.mark.parametrize("name", ["train", "benchmark", "demo", "evaluate accuracy", "evaluate transfer",
                                  "evaluate uncertainty", "reproduce fig4"])
def test_paths_of_the_wrong_kind_are_refused_and_left_as_they_are(name, place, idle):
    for flag in set(help.parameters(FUNCTIONS[name])) & set(WRONG_PLACES):
        others = context(name) if flag not in ("run", "runs") else []
        others += {"data_dir": ["--dataset=npz"], "ood_dir": ["--ood=npz"]}.get(flag, []) if name[:8] != "evaluate" or (
            flag == "ood_dir") else []
        for text in WRONG_PLACES[flag]:
            refusal(name, [*others, f"--{flag}={text}"], place)


def test_a_network_that_no_memory_holds_is_refused_before_it_or_a_folder_is_made(place):
    for name, *flags in (["train"], ["reproduce table1", "--num_train=50"]):
        err = refusal(name, [*flags, "--network=vgg19", "--width=4096"], place)
        assert "GiB in training with --defense advbnn" in err and "GiB are available" in err


@pytest.mark.parametrize("words, says", [
    ("--defense adv --alpha 1", "--alpha means nothing for --defense adv"),
    ("--defense none --prior normal", "--prior means nothing for --defense none"),
    ("--prior_std 0.1 --defense none", "--prior_std means nothing for --defense none"),
    ("--defense rse --init_std fan_in", "--init_std means nothing for --defense rse"),
    ("--defense advrse --kl_over all", "--kl_over means nothing for --defense advrse"),
    ("--defense adv --kl_warmup 0", "--kl_warmup means nothing for --defense adv"),
    ("--defense adv --num_samples 5", "--num_samples 5 means nothing for --defense adv"),
    ("--defense none --attack_samples 2", "--attack_samples 2 means nothing for --defense none"),
    ("--data_dir empty", "--data_dir means nothing for dataset digits"),
])
def test_flags_that_mean_nothing_are_refused(words, says, place):
    assert says in refusal("train", [*words.split(), "--dry_run"], place)


@pytest.mark.parametrize("words", ["--alpha 1", "--defense bnn --prior_std 0.1", "--defense rse --num_samples 5",
                                   "--defense adv --num_samples 1 --epsilon 0.1", "--defense none --num_steps 3"])
def test_flags_that_mean_something_are_taken(words):
    assert outcome("train", [*words.split(), "--dry_run", "--num_train", "60"])[0] is None


def test_no_flag_but_those_that_may_change_goes_with_resume(place):
    may = {"epochs", "max_minutes", "patience", "tensorboard", "data_dir", "device", "network", "workers", "precision",
           "compile", "cuda_graphs", "micro_batch", "resume", "dry_run"}
    for flag, parameter in help.parameters(train).items():
        if flag not in may:
            good = "true" if is_bool(parameter) else spell(parameter.annotation)
            says = refusal("train", ["--resume", "run", f"--{flag}={good}"], place)
            assert f"--{flag} cannot be given with --resume" in says


def test_reproduce_refuses_more_images_than_there_are_and_a_precision_that_is_not_there(place):
    assert "--num_train 1438 is more than the 1437" in refusal("reproduce fig4", ["--num_train=1438", "--dry_run"], place)
    assert "--num_test 361 is more than the 360" in refusal("reproduce fig4", ["--num_test=361", "--dry_run"], place)
    assert "tf32 needs a GPU" in refusal("reproduce fig4", ["--precision=tf32", "--device=cpu", "--dry_run"], place)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '{"a": NaN}', '"text"', "{}" * 2])
def test_a_config_that_is_none_at_all_is_refused(text, place, tmp_path):
    (tmp_path / "config.json").write_text(text)
    for name, words in (("train", ["--resume"]), ("train", ["--init_from"]), ("evaluate report", ["--run"])):
        assert "config.json" in refusal(name, [*words, str(tmp_path)], tmp_path)


@pytest.fixture
def idle(monkeypatch):
    """Commands stop where the work would begin: after all their checks."""
    def reached(*arguments, **more):
        raise Reached
    def no_network(url, root, **more):
        raise OSError("no network")
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", no_network)
    for module, names in {"experiments.accuracy_verbs": ["white_box", "_from", "ensemble_accuracies", "steps_accuracies"],
                          "experiments.posterior_verbs": ["_describe", "_gradients"],
                          "experiments.report_verb": ["_examples", "_reported"], "reporting.summaries": ["write"],
                          "experiments.robustness_verbs": ["_break", "_examined"],
                          "experiments.uncertainty_verb._Doubt": ["measure"], "experiments.comparison._Compared": ["measure"],
                          "demo": ["_demo"], "training.session": ["_open"],
                          "experiments.reproduction.Journal": ["open"]}.items():
        for name in names:
            monkeypatch.setattr(f"pyro_advbnn.{module}.{name}", reached)
    return reached


GOOD_TEXTS = {"device": ["cpu", "auto"], "network": ["convnet", "vgg16"], "prior_std": ["0.1", "fan_in/2", "auto"],
              "init_std": ["0.1"], "attacks": ["pgd", "noise,fgsm"]}


def good_texts(flag, annotation, place):
    """Texts that may be good for a flag."""
    members, words = types_of(annotation), choices(annotation)
    if flag in GOOD_TEXTS:
        return GOOD_TEXTS[flag]
    if Path in members or list[Path] in members:
        return ["run", "plain", "empty", "file", "new"]
    numbers = ["0", "1", "2", "8", "0.01", "8/255", "1,2"] if not words or set(members) & {int, float} else []
    return words + numbers + ["none"] * (NoneType in members) + ["true", "false"] * (bool in members)


@st.composite
def command_lines(draw, place):
    """(name of a command, its words, whether some of them are certainly wrong)."""
    name = draw(st.sampled_from(sorted(FUNCTIONS)))
    known = help.parameters(FUNCTIONS[name])
    words, wrong, taken = [], False, set()
    for _ in range(draw(st.integers(0, 4))):
        flag = draw(st.sampled_from(sorted(known)))
        bad = draw(st.integers(0, 3)) == 0
        pool = rubbish(flag, known[flag].annotation) if bad else good_texts(flag, known[flag].annotation, place)
        text = draw(st.sampled_from(pool) if draw(st.integers(0, 9)) else st.text(max_size=20))
        wrong |= flag in taken or (bad and text in pool)
        taken.add(flag)
        words += [f"--{flag}={text}"] if draw(st.booleans()) or text.startswith("-") or not text else [f"--{flag}", text]
    if not draw(st.integers(0, 9)):
        words.append(draw(st.sampled_from(["--nonsense", "stray", "-", "--=", "--no-seed", "-x", ""])))
        wrong = True
    taken |= {"run"} if "runs" in taken else set()
    words += [word for word in context(name) if word[2:].partition("=")[0] not in taken]
    words += ["--dry_run"] if name.startswith(("train", "reproduce")) and "dry_run" not in taken else []
    return name, words, wrong


@pytest.mark.parametrize(("examples", "derandomize"), [(50, True), pytest.param(5_000, False, marks=pytest.mark.torture)])
def test_no_random_command_line_ends_in_a_traceback_or_in_success_or_changes_a_file(
    examples, derandomize, place, idle
):
    @settings(max_examples=examples, deadline=None, derandomize=derandomize, database=None,
              suppress_health_check=list(HealthCheck))
    @given(command_lines(place))
    def check(line):
        name, words, wrong = line
        if name == "benchmark":                          # tries itself out before the work, and torch's compiler talks
            assume(not any(word.startswith("--compile") for word in words))
        before = digest(place)
        code, out, err = outcome(name, words)
        assert code in (None, 2) and not (wrong and code is None), (name, words, code, out, err)
        if code == 2:
            assert err.startswith("error: ") and err.count("\n") == 1 and err[:-1].isprintable(), (name, words, err)
        after = digest(place)
        assert code is None or after == before, (name, words)
        for path in set(after) - set(before):            # a folder that a command made before its work
            assert path.is_dir() and code is None
            path.rmdir()
        assert digest(place).keys() == before.keys() and all(after[path] == before[path] for path in before if path.is_file())

    check()
