"""Tests of nonfinite, and of trainings whose numbers really go wrong."""
import math
import re
import sys
from functools import partial

import pyro
import pytest
import torch
from tiny_runs import TINY, content, equal, metrics, run, words
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.bayes.bayesian_classifier import LOG_STD_RANGE
from pyro_advbnn.cli import commands
from pyro_advbnn.system import json_files
from pyro_advbnn.train import train
from pyro_advbnn.training import configuration, run_folders
from pyro_advbnn.training.algorithm1 import build_optimizer
from pyro_advbnn.training.nonfinite import LARGEST_GRADIENT, NotFinite, Watch, largest

STEPS_PER_EPOCH = 4
BROKEN = """
import torch
from torch import nn

class Broken(nn.Module):
    '''Goes wrong at some of its calls in training mode; `calls` is no part of its state.'''
    def __init__(self, num_classes, wrong, how):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
        self.wrong, self.how, self.calls = wrong, how, 0

    def forward(self, x):
        self.calls += self.training
        return self.how(self.layers, x) if self.training and self.calls in self.wrong else self.layers(x)

def logarithm(layers, x):
    return layers(x * torch.tensor(float("nan"))) + layers(x).relu().log()

def infinite(layers, x):
    logits = layers(x)
    return torch.cat([logits[:, :1] * 0 + float("inf"), logits[:, 1:]], 1)

def root(layers, x):
    return layers(x) + (layers(x) * 0).sum().sqrt()

def steep(layers, x):
    logits = layers(x)
    return logits + 1e20 * (logits - logits.detach())

def second_and_fifth(num_classes):
    return Broken(num_classes, {2, 5}, logarithm)

def first(num_classes):
    return Broken(num_classes, {1}, logarithm)

def last_of_second_epoch(num_classes):
    return Broken(num_classes, {8}, logarithm)

def always(num_classes):
    return Broken(num_classes, set(range(1000)), logarithm)

def infinite_logit(num_classes):
    return Broken(num_classes, {3}, infinite)

def root_of_zero(num_classes):
    return Broken(num_classes, {3}, root)

def steep_slope(num_classes):
    return Broken(num_classes, {3}, steep)
"""


@pytest.fixture(autouse=True)
def broken_networks(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "networks_that_break.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path / "broken")
    yield
    sys.modules.pop("networks_that_break", None)


def broken(name, **flags):
    return {"network": f"networks_that_break:{name}", "width": None, "defense": "bnn", **flags}


def build(**flags):
    pyro.enable_validation(False)
    config, images, held_out = configuration.configure({**TINY, **flags})
    return config, configuration.build(config, images), held_out


def failure(capsys, folder, **flags):
    """The one line with which a training ends whose numbers go wrong."""
    with pytest.raises(SystemExit) as end:
        unused = {"alpha", "init_std", "kl_warmup", "num_samples"} if flags.get("defense") in ("none", "adv") else set()
        given = {name: value for name, value in {**TINY, "out": folder, **flags}.items()
                 if value is not None and name not in unused}
        commands.run(train, list(map(str, words(given))))
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
    return err


def snapshot(training):
    """Copies of all that a step may change, but for random streams, position and sums."""
    state = {name: value.clone() for name, value in training.classifier.state_dict().items()}
    return state, [{name: value.clone() for name, value in training.optimizer.state[p].items()}
                   for p in training.classifier.parameters()]


def is_finite(value):
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return all(map(is_finite, parts)) and not (isinstance(value, float) and not math.isfinite(value))


# Trainings that go wrong by themselves

CONSTANT = {"schedule": "constant", "kl_warmup": 0}
GOING_WRONG = {
    "learning rate": ({"learning_rate": 1e30, **CONSTANT}, "the std explodes: a weight's has reached its upper bound of 10", 1),
    "infinite rate": ({"learning_rate": 1e300, **CONSTANT}, "the std explodes", 1),
    "rate of a plain network": ({"learning_rate": 1e30, "defense": "adv", **CONSTANT}, "the loss is not finite: nll (nll", 2),
    "rate of sgd": ({"learning_rate": 1e30, "defense": "none", "optimizer": "sgd"} | CONSTANT, "the ", 2),
    "weight decay": ({"weight_decay": 1e30, "defense": "none", "optimizer": "sgd"} | CONSTANT, "the ", 2),
    "alpha": ({"alpha": 1e38, **CONSTANT}, "the loss is not finite: kl times its weight (nll 2.", 1),
    "alpha that Adam cannot square": ({"alpha": 1e30, **CONSTANT}, "the gradient is too large for the optimizer", 1),
    "alpha after a warm-up": ({"alpha": 1e38, "kl_warmup": 0.5}, "the loss is not finite: kl times its weight", 2),
    "alpha beyond single precision": ({"alpha": 1e300, **CONSTANT}, "the loss is not finite: kl times its weight (nll 2.", 1),
    "prior": ({"prior": "scale_mixture", "prior_std": 1e-25, **CONSTANT}, "the loss is not finite: kl (nll 2.", 1),
    "nll": (broken("second_and_fifth"), "the loss is not finite: nll (nll nan", 2),
    "infinite logit": (broken("infinite_logit", defense="none"), "the loss is not finite: nll (nll nan", 3),
    "gradient": (broken("root_of_zero"), "the gradient is not finite (nll 2.", 3),
    "large gradient": (broken("steep_slope"), "the gradient is too large for the optimizer, which squares it (nll 2.", 3),
    "attacked": (broken("second_and_fifth", defense="advbnn"), "the loss is not finite: nll (nll nan", 2),
    "in pieces": (broken("second_and_fifth", micro_batch=20), "the loss is not finite: nll (nll nan", 1),
    "bf16": (broken("root_of_zero", precision="bf16"), "the gradient is not finite", 3),
}


@pytest.mark.parametrize("case", GOING_WRONG)
def test_a_training_whose_numbers_go_wrong_stops_at_that_step_and_names_the_term(case, tmp_path, capsys, tally):
    flags, message, step = GOING_WRONG[case]
    folder = tmp_path / "run"
    err = failure(capsys, folder, **flags)
    assert err.startswith(f"error: {message}") and f" at step {step} of epoch 1; " in err
    assert f"no checkpoint has been written to {folder} yet" in err
    assert {path.name for path in folder.iterdir()} <= {"config.json", "metrics.jsonl", "checkpoint.pt"}
    assert metrics(folder) == []
    tally("trainings whose numbers went wrong, stopped at that step")


def test_the_bad_step_is_neither_in_the_last_checkpoint_nor_in_the_best_one(tmp_path, capsys, tally):
    folder = tmp_path / "run"
    err = failure(capsys, folder, **broken("last_of_second_epoch", epochs=3))
    assert "nll nan" in err and " at step 4 of epoch 2; " in err
    assert f"the last good checkpoint is {folder / 'checkpoint.pt'}" in err
    for name in ("checkpoint.pt", "best.pt"):
        assert is_finite(content(folder, name)), name
    assert content(folder)["training"]["epochs_done"] == 1 and content(folder, "best.pt")["best"]["epoch"] == 1
    assert [row["epoch"] for row in metrics(folder)] == [1]
    tally("trainings whose numbers went wrong, stopped at that step")


def test_a_run_that_was_stopped_can_go_on_by_skipping(tmp_path, capsys):
    folder = tmp_path / "run"
    failure(capsys, folder, **broken("last_of_second_epoch", epochs=3))
    train(resume=folder, network="networks_that_break:last_of_second_epoch", on_nonfinite="skip")    # whose calls count anew
    assert [row["skipped_steps"] for row in metrics(folder)] == [0, 0, 1]
    assert json_files.read_json(folder / "config.json")["on_nonfinite"] == "skip"


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("flags", [{}, {"optimizer": "sgd"}, {"defense": "none"}, {"micro_batch": 20}, {"defense": "advbnn"}],
                         ids=str)
@pytest.mark.parametrize("name", ["first", "second_and_fifth"])
def test_a_bad_step_leaves_weights_optimizer_and_statistics_as_they_were(name, flags, on_nonfinite):
    bad = {"first": 1, "second_and_fifth": 2}[name]
    if "micro_batch" in flags:
        bad = 1                                          # two calls a step
    _, training, _ = build(**broken(name, learning_rate=0.1, weight_decay=0.1, **CONSTANT, **flags), on_nonfinite=on_nonfinite)
    training._check_every_step = False
    steps, before = training.epoch(), None
    for _ in range(bad):
        before = snapshot(training)
        next(steps)
    (state, moments), (state_after, moments_after) = before, snapshot(training)
    if on_nonfinite == "stop":                           # the training ends, and its statistics are not written anywhere
        keys = [key for key in state if "running" not in key and "tracked" not in key]
        state, state_after = ({key: part[key] for key in keys} for part in (state, state_after))
    assert equal(state, state_after)
    if bad > 1 or flags.get("optimizer"):
        assert equal(moments, moments_after)
    assert all(not value.any() for moment in moments_after for value in moment.values()) or bad > 1
    if on_nonfinite == "skip":
        assert training.skipped_steps == 1
        next(steps)
        assert not equal(state, snapshot(training)[0]) and is_finite(snapshot(training))


def test_a_step_that_is_skipped_first_leaves_the_optimizer_as_new():
    """A momentum buffer that torch had only allocated would be read by the next step."""
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=2))
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    ends = []
    for vetoes in ([1.0, 0.0], [0.0]):
        trained = ab.BayesianClassifier(ab.networks.convnet(width=2))
        trained.load_state_dict(classifier.state_dict())
        optimizer = build_optimizer(trained.eval(), settings)
        for veto in vetoes:
            torch.manual_seed(0)
            ab.train_step(trained, optimizer, x, y, kl_weight=1e-4, veto=lambda parts, veto=veto: torch.tensor(veto))
        ends.append(trained.state_dict())
    assert equal(*ends)


def test_a_momentum_that_begins_at_zero_is_the_one_that_torch_begins_with():
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    network = ab.networks.convnet(width=2)
    ours, plain = (ab.BayesianClassifier(network) for _ in range(2))
    optimizers = [build_optimizer(ours, {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.01}),
                  torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)]
    for classifier, optimizer in zip((ours, plain), optimizers, strict=True):
        torch.manual_seed(0)
        for _ in range(3):
            ab.train_step(classifier, optimizer, x, y, kl_weight=1e-4)
    assert equal(ours.state_dict(), plain.state_dict())


@pytest.mark.parametrize("prior_std", [1e-16, 1e16, 1e-300, 1e300, "fan_in/1e30"])
def test_a_prior_whose_square_is_no_number_in_single_precision_is_refused_before_any_work(prior_std, tmp_path, capsys):
    assert "error: prior_std must lie between 1e-15 and 1e15, got " in failure(capsys, tmp_path / "run", prior_std=prior_std)
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", prior_std=1e-15 if prior_std == 1e-16 else 1e15, alpha=0, epochs=1)


# Skipping


def test_skipped_steps_are_counted_in_rows_output_and_checkpoint_and_over_a_resumption(tmp_path, capsys, tally):
    folder = run(tmp_path / "run", **broken("second_and_fifth", on_nonfinite="skip", epochs=3))
    out = capsys.readouterr().out
    assert [row["skipped_steps"] for row in metrics(folder)] == [1, 2, 2]
    assert "left, 1 steps skipped so far" in out and "left, 2 steps skipped so far" in out
    assert all(is_finite(row) for row in metrics(folder))
    assert content(folder)["training"]["skipped_steps"] == 2 and is_finite(content(folder))
    train(resume=folder, epochs=4, network="networks_that_break:second_and_fifth")
    assert [row["skipped_steps"] for row in metrics(folder)] == [1, 2, 2, 3]
    assert "skip" in json_files.read_json(folder / "config.json")["on_nonfinite"]
    tally("steps whose numbers went wrong, skipped", 3)


def test_the_averages_of_an_epoch_leave_skipped_steps_out():
    _, training, _ = build(**broken("second_and_fifth", on_nonfinite="skip"))
    images = list(training.epoch())
    assert sum(images) == 100 and training._sums[3] == 100 - images[1] and is_finite(training.averages())


def test_an_epoch_without_a_good_step_ends_the_training(tmp_path, capsys):
    folder = tmp_path / "run"
    err = failure(capsys, folder, **broken("always", on_nonfinite="skip"))
    assert err.startswith("error: no step of epoch 1 had a finite loss and gradient: all were skipped; the loss is not finite: "
                          "nll (nll nan, kl ")
    assert "at step 1 of epoch 1, and every step of it since was skipped; no checkpoint" in err
    assert not run_folders.has_begun(folder)


def test_weights_that_were_lost_by_a_step_whose_own_loss_was_finite_are_explained_by_the_steps_skipped_since(tmp_path, capsys):
    err = failure(capsys, tmp_path / "run", defense="none", learning_rate=1e30, on_nonfinite="skip")
    assert "logits must be finite" in err
    assert re.search("is not finite: nll .* at step [23] of epoch 1, and every step of it since was skipped; no check", err)


def test_a_std_that_explodes_stops_the_training_also_where_steps_are_skipped(tmp_path, capsys):
    err = failure(capsys, tmp_path / "run", learning_rate=1e30, on_nonfinite="skip", **CONSTANT)
    assert err.startswith("error: the std explodes: a weight's has reached its upper bound of 10 at step 1 of epoch 1; "
                          "only a new run with other settings, such as a smaller --learning_rate, gets past it; ")


def test_nothing_changes_where_nothing_goes_wrong(tmp_path):
    stop, skip = (run(tmp_path / policy, on_nonfinite=policy) for policy in ("stop", "skip"))
    assert equal(content(stop)["state"], content(skip)["state"]) and metrics(stop) == metrics(skip)
    assert equal(content(stop)["training"], content(skip)["training"])


def test_a_checkpoint_that_does_not_know_of_skipped_steps_goes_on_with_none(tmp_path):
    folder = run(tmp_path / "run")
    old = content(folder)
    del old["training"]["skipped_steps"]
    config = json_files.read_json(folder / "config.json")
    for told in (config, old["config"]):
        for name in ("on_nonfinite", "deterministic"):
            del told[name], told["flags"][name]
    torch.save(old, folder / "checkpoint.pt")
    json_files.write_json(folder / "config.json", config)
    assert configuration.is_run_of(config, TINY) and not configuration.is_run_of(config, TINY | {"deterministic": True})
    train(resume=folder, epochs=3)
    assert metrics(folder)[-1]["skipped_steps"] == 0
    assert json_files.read_json(folder / "config.json")["on_nonfinite"] == "stop"


# Where no step waits for the device, as on a GPU


@pytest.mark.parametrize(("name", "term"), [("second_and_fifth", "nll"), ("root_of_zero", "gradient")])
def test_a_bad_step_that_is_found_later_is_named_and_kept_out_of_the_weights_and_of_checkpoints(name, term, tmp_path):
    config, training, _ = build(**broken(name))
    training._check_every_step = False
    steps = training.epoch()
    for _ in range(3):
        next(steps)
    step = {"nll": 2, "gradient": 3}[term]
    assert is_finite({name: p for name, p in training.classifier.named_parameters()})
    with pytest.raises(NotFinite, match=rf"{term}.* at step {step} of epoch 1"):
        run_folders.save_position(tmp_path / "run", training, config, None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(NotFinite, match=f"at step {step} of epoch 1"):
        list(steps)


def test_the_first_of_several_bad_steps_is_the_one_that_is_named():
    watch, number = Watch("cpu"), partial(torch.tensor, dtype=torch.float64)
    for step, nll in enumerate([1.0, 2.0, math.nan, math.inf], 1):
        bad = watch.judge(step, number(nll), number(5.0), number(nll), number(0.5))
        assert bool(bad) == (step > 2)
    watch.judge_std(5, torch.tensor(True))
    with pytest.raises(NotFinite) as raised:
        watch.check(7)
    assert str(raised.value) == "the loss is not finite: nll (nll nan, kl 5, largest gradient 0.5) at step 3 of epoch 7"


def test_of_the_steps_that_were_skipped_in_a_row_the_first_is_named_with_its_term():
    watch, number = Watch("cpu", "skip"), partial(torch.tensor, dtype=torch.float64)
    for step, nll in [(1, math.nan), (2, 1.0), (3, math.inf), (4, math.nan)]:
        watch.judge(step, number(nll), number(5.0), number(nll), number(0.5))
    assert watch.skipped_in_a_row(7) == (
        "the loss is not finite: nll (nll inf, kl 5, largest gradient 0.5) at step 3 of epoch 7, and every step of it since "
        "was skipped")
    watch.judge(1, number(1.0), number(math.nan), number(math.nan), number(0.5))           # of the next epoch
    assert watch.skipped_in_a_row(8).startswith("the loss is not finite: kl (nll 1, kl nan, largest gradient 0.5) at step 1 of")
    watch.judge(2, number(1.0), number(5.0), number(1.0), number(0.5))
    assert watch.skipped_in_a_row(8) == "" and watch.skipped == 4
    watch.check(8)


@pytest.mark.parametrize(("numbers", "message"), [
    ((math.inf, math.inf, math.inf, 1.0), "the loss is not finite: nll and kl"),
    ((1.0, math.inf, 1.0, 1.0), "the loss is not finite: kl "),                  # a weight of 0 masks it
    ((1.0, 1.0, math.inf, math.inf), "the loss is not finite: kl times its weight"),
    ((1.0, 1.0, 1.0, math.nan), "the gradient is not finite"),
    ((1.0, 1.0, 1.0, 2 * LARGEST_GRADIENT), "the gradient is too large"),
])
def test_the_offending_term_is_the_first_in_the_order_in_which_they_are_computed(numbers, message):
    watch = Watch("cpu")
    assert watch.judge(1, *(torch.tensor(n, dtype=torch.float64) for n in numbers))
    with pytest.raises(NotFinite) as raised:
        watch.check(1)
    assert str(raised.value).startswith(message)


def test_beyond_the_largest_gradient_adam_freezes():
    """Its second moment would be infinite for ever, and every later update 0; it may first be multiplied by 1 - 0.999."""
    for gradient, moves in ((0.99 * LARGEST_GRADIENT, True), (33 * LARGEST_GRADIENT, False)):
        p = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.Adam([p], lr=0.1, fused=True)
        p.grad = torch.tensor([gradient])
        optimizer.step()
        assert (p.item() != 1) == moves


def test_the_largest_value_is_found_in_any_place_and_nan_before_it():
    tensors = [torch.tensor([1.0, -3.0]), torch.ones(2, 2, dtype=torch.float64), torch.empty(0)]
    assert largest(tensors) == 3 and largest([]) == 0
    for bad in (math.nan, math.inf, -math.inf):
        for at in range(50_000, 50_010):
            values = torch.rand(100_000)
            values[at] = bad
            assert not largest([*tensors, values]).isfinite()


# The std


@pytest.mark.parametrize("learning_rate", [0.1, 10.0, 1e4, 1e30])
def test_log_std_lies_within_its_bounds_after_every_step(learning_rate):
    _, training, _ = build(learning_rate=learning_rate, epochs=4, **CONSTANT)
    low, high = (torch.tensor(bound).item() for bound in LOG_STD_RANGE)
    try:
        for _ in range(4):
            for _ in training.epoch():
                assert low <= training.classifier.log_std.min() and training.classifier.log_std.max() < high
    except NotFinite as error:
        assert learning_rate > 1 and ("the std explodes" in str(error) or "not finite" in str(error))
    else:
        assert learning_rate < 1
    assert low <= training.classifier.log_std.min() and training.classifier.log_std.max() <= high


@pytest.mark.parametrize(("settings", "expected"), [
    ({"init_std": 0.1}, False), ({"init_std": 10.0}, None), ({"prior_std": 20.0}, None),
    ({"prior": "scale_mixture", "prior_std": 0.5}, False), ({"prior": "scale_mixture", "prior_std": 50.0}, None),
    ({"init_std": {"*.bias": 10.0, "*": 0.1}}, None), ({"prior_std": "fan_in"}, False),
], ids=str)
def test_a_std_explodes_only_where_its_settings_do_not_put_it_at_its_bound(settings, expected):
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=2), **settings)
    assert classifier.exploded() is None if expected is None else not classifier.exploded()
    if expected is not None:
        with torch.no_grad():
            classifier.log_std[7] = 100.0
        classifier.constrain_()
        assert classifier.exploded()
        with torch.no_grad():
            classifier.log_std[7] = math.nan
        assert classifier.exploded()


def test_a_run_with_a_prior_beyond_the_bound_trains_with_its_stds_at_it(tmp_path):
    folder = run(tmp_path / "run", prior_std=20, init_std=10, alpha=1, defense="bnn", epochs=1)
    assert ab.load(folder).log_std.max().item() == pytest.approx(math.log(10))


def test_nothing_explodes_in_a_network_without_a_posterior():
    assert ab.build_classifier("none", ab.networks.convnet(width=2)).exploded() is None
