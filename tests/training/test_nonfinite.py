"""Tests of nonfinite, and of trainings whose numbers really go wrong."""
import math
import sys
from functools import partial

import pyro
import pytest
import torch
from tiny_runs import TINY, build, content, metrics, run, words
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn.bayes.bayesian_classifier import LOG_STD_RANGE
from pyro_advbnn.cli import commands
from pyro_advbnn.train import train
from pyro_advbnn.training import run_folders
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

def root(layers, x):
    return layers(x) + (layers(x) * 0).sum().sqrt()

def steep(layers, x):
    logits = layers(x)
    return logits + 1e20 * (logits - logits.detach())

def second_and_fifth(num_classes):
    return Broken(num_classes, {2, 5}, logarithm)

def last_of_second_epoch(num_classes):
    return Broken(num_classes, {8}, logarithm)

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
    return {"network": f"networks_that_break:{name}", "width": None, "defense": "bnn", "batch_statistics": "draw", **flags}


@pytest.fixture(autouse=True)
def no_validation():
    pyro.enable_validation(False)                        # which would find what is not finite before we do


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


def is_finite(value):
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return all(map(is_finite, parts)) and not (isinstance(value, float) and not math.isfinite(value))


# Trainings that go wrong by themselves

CONSTANT = {"schedule": "constant", "kl_warmup": 0}
CONSTANT_PRIOR = {"prior_std": 1, **CONSTANT}
GOING_WRONG = {
    "learning rate": ({"learning_rate": 1e30, **CONSTANT}, "the std explodes: a weight's has reached its upper bound of 10", 1),
    "rate of a plain network": ({"learning_rate": 1e30, "defense": "adv", **CONSTANT}, "the loss is not finite: nll (nll", 2),
    "rate of sgd": ({"learning_rate": 1e30, "defense": "none", "optimizer": "sgd"} | CONSTANT, "the ", 2),
    "rate of the natural gradient": ({"learning_rate": 1e30, "optimizer": "natural"} | CONSTANT, "the ", 2),
    "weight decay": ({"weight_decay": 1e30, "defense": "none", "optimizer": "sgd"} | CONSTANT, "the ", 2),
    "alpha": ({"alpha": 1e38, **CONSTANT_PRIOR}, "the loss is not finite: kl times its weight (nll 2.", 1),
    "alpha that Adam cannot square": (
        {"alpha": 1e30, **CONSTANT_PRIOR}, "the gradient is too large", 1),
    "alpha after a warm-up": (
        {"alpha": 1e38, "prior_std": 1, "kl_warmup": 0.5}, "the loss is not finite: kl times its weight", 2),
    "prior": ({"prior": "scale_mixture", "prior_std": 1e-25, **CONSTANT}, "the loss is not finite: kl (nll 2.", 1),
    "nll": (broken("second_and_fifth"), "the loss is not finite: nll (nll nan", 2),
    "gradient": (broken("root_of_zero"), "the gradient is not finite (nll 2.", 3),
    "large gradient": (broken("steep_slope"), "the gradient is too large: its square is infinite in float32 (nll 2.", 3),
    "attacked": (broken("second_and_fifth", defense="advbnn"), "the loss is not finite: nll (nll nan", 2),
    "in pieces": (broken("second_and_fifth", micro_batch=20), "the loss is not finite: nll (nll nan", 1),
    "bf16": (broken("root_of_zero", precision="bf16"), "the gradient is not finite", 3),
}


@pytest.mark.parametrize("case", GOING_WRONG)
def test_a_training_whose_numbers_go_wrong_stops_at_that_step_and_names_the_term(case, tmp_path, capsys):
    flags, message, step = GOING_WRONG[case]
    folder = tmp_path / "run"
    err = failure(capsys, folder, **flags)
    assert err.startswith(f"error: {message}") and f" at step {step} of epoch 1; " in err
    assert f"no checkpoint has been written to {folder} yet" in err
    assert {path.name for path in folder.iterdir()} == {".lock", "config.json"}


def test_the_bad_step_is_neither_in_the_last_checkpoint_nor_in_the_best_one(tmp_path, capsys):
    folder = tmp_path / "run"
    err = failure(capsys, folder, **broken("last_of_second_epoch", epochs=3))
    assert "nll nan" in err and " at step 4 of epoch 2; " in err
    assert f"the last good checkpoint is {folder / 'checkpoint.pt'}" in err
    for name in ("checkpoint.pt", "best.pt"):
        assert is_finite(content(folder, name)), name
    assert content(folder)["training"]["epochs_done"] == 1 and content(folder, "best.pt")["best"]["epoch"] == 1
    assert [row["epoch"] for row in metrics(folder)] == [1]


@pytest.mark.parametrize("prior_std", [1e-16, 1e16, 1e-300, 1e300, "fan_in/1e30"])
def test_a_prior_whose_square_is_no_number_in_single_precision_is_refused_before_any_work(prior_std, tmp_path, capsys):
    assert "error: prior_std must lie between 1e-15 and 1e+15, got " in failure(capsys, tmp_path / "run", prior_std=prior_std)
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", prior_std=1e-15 if prior_std == 1e-16 else 1e15, alpha=0, epochs=1)


@pytest.mark.parametrize(("name", "term"), [("second_and_fifth", "nll"), ("root_of_zero", "gradient")])
def test_a_bad_step_that_is_found_later_is_named_and_kept_out_of_checkpoints(name, term, tmp_path):
    config, training, _ = build(**broken(name))
    training._check_every_step = False
    steps = training.epoch()
    for _ in range(3):
        next(steps)
    step = {"nll": 2, "gradient": 3}[term]
    with pytest.raises(NotFinite, match=rf"{term}.* at step {step} of epoch 1"):
        run_folders.save_position(tmp_path / "run", training, config, None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(NotFinite, match=f"at step {step} of epoch 1"):
        list(steps)


def test_the_first_of_several_bad_steps_is_the_one_that_is_named():
    watch, number = Watch("cpu"), partial(torch.tensor, dtype=torch.float64)
    for step, nll in enumerate([1.0, 2.0, math.nan, math.inf], 1):
        watch.judge(step, number(nll), number(5.0), number(nll), number(0.5), torch.tensor(step > 2))
        if step < 3:
            watch.check(7)
    with pytest.raises(NotFinite) as raised:
        watch.check(7)
    assert str(raised.value) == "the loss is not finite: nll (nll nan, kl 5, largest gradient 0.5) at step 3 of epoch 7"


@pytest.mark.parametrize(("numbers", "message"), [
    ((math.inf, math.inf, math.inf, 1.0), "the loss is not finite: nll and kl"),
    ((1.0, math.inf, 1.0, 1.0), "the loss is not finite: kl "),                  # a weight of 0 masks it
    ((1.0, 1.0, math.inf, math.inf), "the loss is not finite: kl times its weight"),
    ((1.0, 1.0, 1.0, math.nan), "the gradient is not finite"),
    ((1.0, 1.0, 1.0, 2 * LARGEST_GRADIENT), "the gradient is too large"),
])
def test_the_offending_term_is_the_first_in_the_order_in_which_they_are_computed(numbers, message):
    watch = Watch("cpu")
    watch.judge(1, *(torch.tensor(n, dtype=torch.float64) for n in numbers))
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
    ({"init_std": {"*.bias": 10.0, "*": 0.1}}, None), ({"prior_std": "fan_in"}, False), ({"init_std": "share/10"}, False),
    ({"init_std": "share*10"}, None),
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
