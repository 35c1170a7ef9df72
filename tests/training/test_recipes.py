"""Tests of recipes: the numbers of the paper and of the authors' code (facts.md, sections 2 and 4), and flags over them."""
import math

import pytest
import torch
from tiny_runs import build, run
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn import networks
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.bayes.settings import per_parameter_std
from pyro_advbnn.datasets import DATASETS
from pyro_advbnn.experiments import protocol
from pyro_advbnn.system import json_files
from pyro_advbnn.train import train
from pyro_advbnn.training import checkpoints, recipes
from pyro_advbnn.training.flags import ANNOTATIONS

BAYESIAN = {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.0}
DETERMINISTIC = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4}

PAPER = {  # Table 2, and the schedules of the authors' code
    "cifar10": {"epsilon": 8 / 256, "prior_std": 0.05, "alpha": 1.0, "network": "vgg16", "stages": (80, 60, 40, 20),
                "epochs": 200},
    "stl10": {"epsilon": 8 / 256, "prior_std": 0.15, "alpha": 1 / 50, "network": "model_a", "stages": (60, 40, 20),
              "epochs": 120},
    "imagenet143": {"epsilon": 0.01, "prior_std": 0.15, "alpha": 1 / 50, "network": "vgg16", "stages": (30, 20, 20, 10),
                    "epochs": 80},
}


def test_the_recipes_of_the_flag_are_those_that_there_are():
    assert ANNOTATIONS["recipe"].__args__[0].__args__ == tuple(recipes.RECIPES)


@pytest.mark.parametrize("dataset", PAPER)
@pytest.mark.parametrize("defense", DEFENSES)
def test_the_papers_recipe_has_the_papers_numbers(dataset, defense):
    alpha = 1 / 100 if defense == "bnn" else PAPER[dataset]["alpha"]
    optimizer = BAYESIAN if DEFENSES[defense].kind == "bayesian" else DETERMINISTIC
    expected = PAPER[dataset] | optimizer | {
        "alpha": alpha, "num_steps": 10, "step_size": 0.007, "batch_size": 128, "kl_over": "all", "kl_warmup": 0.0,
        "schedule": "stages", "initialization": "authors", "attack_samples": 1, "batch_statistics": "draw", "prior": "normal",
        "weight_averaging": 0.0, "awp": 0.0, "class_weights": None, "init_std": PAPER[dataset]["prior_std"],
        "num_samples": 10 if DEFENSES[defense].random else 1}
    assert expected.items() <= recipes.resolve("paper", dataset, defense, {}).items()


@pytest.mark.parametrize("dataset", PAPER)
@pytest.mark.parametrize("defense", DEFENSES)
def test_the_authors_recipe_counts_a_vggs_last_layer_and_all_of_model_a_and_forgets_alpha_on_imagenet143(dataset, defense):
    own, paper = (recipes.resolve(recipe, dataset, defense, {}) for recipe in ("authors", "paper"))
    differs = {name: own[name] for name in own if own[name] != paper[name]}
    alpha = {"alpha": 1.0} if dataset == "imagenet143" and defense != "bnn" else {}
    assert differs == ({} if dataset == "stl10" else {"kl_over": "last"}) | alpha


def test_the_authors_recipe_goes_by_the_network_whatever_its_images_and_a_flag_stands_over_it():
    def kl_over(dataset, **flags):
        return recipes.resolve("authors", dataset, "advbnn", flags)["kl_over"]

    assert kl_over("stl10", network="vgg16") == kl_over("npz", network=None) == "last"
    assert kl_over("folder", network="model_a") == kl_over("cifar10", kl_over="all") == "all"


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("defense", DEFENSES)
def test_every_recipe_resolves_on_every_data_set_for_every_defence(recipe, dataset, defense):
    settings = recipes.resolve(recipe, dataset, defense, {})
    network = networks.convnet(width=4)
    stds = {name: settings[name] for name in ("prior_std", "init_std")}
    if recipe == "ours":
        assert stds == {"prior_std": "auto", "init_std": "fan_in/30"} and settings["batch_statistics"] == "mean"
        assert settings["schedule"] == "cosine"
        stds["prior_std"] = recipes.auto_prior_std(0.01, 1000)
    for name, std in stds.items():
        assert all(value > 0 for value in per_parameter_std(std, network, name).values())
    assert settings["network"] is None or settings["network"] in networks.NETWORKS
    assert settings["kl_over"] == ("last" if recipe == "authors" and dataset != "stl10" else "all")
    assert settings["validation"] == (150 if dataset == "digits" else 1000)
    assert 0 < settings["epsilon"] <= 0.2 and settings["epochs"] >= 1 and 0 <= settings["kl_warmup"] < 1
    expected = 0.007 if dataset in PAPER else 2.5 * settings["epsilon"] / settings["num_steps"]
    assert settings["step_size"] == pytest.approx(expected)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_a_recipe_averages_the_draws_of_networks_that_draw_something(recipe):
    samples = {name: recipes.resolve(recipe, "digits", name, {})["num_samples"] for name in DEFENSES}
    assert samples == {"none": 1, "adv": 1, "rse": 10, "bnn": 10, "advbnn": 10, "advrse": 10}
    assert {name for name, defense in DEFENSES.items() if defense.random} == {"rse", "bnn", "advbnn", "advrse"}


def test_a_flag_changes_its_setting_alone():
    own, settings = (recipes.resolve("paper", "cifar10", "advbnn", flags)
                     for flags in ({}, {"alpha": 0.5, "epochs": 3, "width": None, "seed": 7}))
    assert {name for name in own if own[name] != settings[name]} == {"alpha", "epochs"}
    assert (settings["alpha"], settings["epochs"], "seed" in settings) == (0.5, 3, False)


@pytest.mark.parametrize(("recipe", "dataset", "rates"), [
    ("ours", "digits", {"adam": 0.005, "sgd": 0.1, "natural": 0.1}),
    ("ours", "cifar10", {"adam": 0.002, "sgd": 0.1, "natural": 0.1}),
    ("authors", "cifar10", {"adam": 0.01, "sgd": 0.01, "natural": 0.1}),
])
def test_an_optimizer_comes_with_its_learning_rate_decay_and_rho_unless_flags_say_others(recipe, dataset, rates):
    for optimizer, rate in rates.items():
        for defense in ("adv", "advbnn"):
            decay = 5e-4 if (optimizer, defense) == ("sgd", "adv") else 0.0
            expected = {"optimizer": optimizer, "learning_rate": rate, "weight_decay": decay,
                        "rho": 0.005 if optimizer == "natural" else None}
            for flags in {}, {"learning_rate": 0.7, "weight_decay": 0.3}:
                settings = recipes.resolve(recipe, dataset, defense, {"optimizer": optimizer, **flags})
                assert (expected | flags).items() <= settings.items()


@pytest.mark.parametrize(("dataset", "flags", "step_size"), [
    ("cifar10", {}, 0.007),
    ("cifar10", {"epsilon": 0.2}, 0.007),
    ("cifar10", {"step_size": "auto"}, 2.5 * 8 / 256 / 10),
    ("cifar10", {"step_size": 0.01}, 0.01),
    ("digits", {}, 0.05),
    ("digits", {"epsilon": 0.1, "num_steps": 5}, 0.05),
    ("digits", {"step_size": 0.007}, 0.007),
    ("digits", {"step_size": 0.0}, 0.0),
    ("npz", {"num_steps": 0}, 2.5 * 8 / 256),
])
def test_the_step_is_0007_on_the_papers_data_sets_and_follows_epsilon_elsewhere(dataset, flags, step_size):
    assert recipes.resolve("ours", dataset, "advbnn", flags)["step_size"] == pytest.approx(step_size)


@pytest.mark.parametrize(("dataset", "step_size", "epsilons"), [
    ("cifar10", 0.007, (0, 0.015, 0.035, 0.055, 0.07)), ("stl10", 0.007, (0, 0.015, 0.035, 0.055, 0.07)),
    ("imagenet143", 0.007, (0, 0.004, 0.01, 0.016, 0.02)), ("npz", None, (0, 0.015, 0.035, 0.055, 0.07)),
    ("digits", None, (0, 0.1, 0.2, 0.3)),
])
def test_evaluation_is_at_the_radii_of_table_1_but_of_digits_at_larger_ones(dataset, step_size, epsilons):
    assert protocol.default_epsilons(dataset) == epsilons and recipes.default_step_size(dataset) == step_size


def test_figures_3_and_5_are_measured_as_in_the_authors_scripts():
    sets = ("cifar10", "stl10", "imagenet143", "digits")
    assert [protocol.default_transfer_epsilon(name) for name in sets] == [0.06, 0.06, 0.02, 0.2]
    assert [protocol.default_ensemble_epsilons(name) for name in sets] == 3 * [(0, 0.01, 0.02)] + [(0, 0.1, 0.2)]
    assert len(protocol.FIGURE_5_STEPS) == 17 and (protocol.FIGURE_5_STEPS[0], protocol.FIGURE_5_STEPS[-1]) == (3, 1000)


@pytest.mark.parametrize(("side", "name"), [(8, "convnet"), (28, "convnet"), (32, "vgg16"), (96, "vgg16")])
def test_images_of_ones_own_get_a_network_that_takes_them(side, name):
    assert recipes.default_network(side) == name
    network = networks.build_network(name, 3, 1, 2).eval()
    assert network(torch.zeros(1, 1, side, side)).shape == (1, 3)


def test_stages_divide_the_rate_by_ten_at_their_ends_whatever_the_length_of_the_run():
    stages = (80, 60, 40, 20)
    for epoch, factor in [(0, 1), (79.9, 1), (80, 0.1), (139, 0.1), (140, 0.01), (190, 1e-3)]:
        assert recipes.learning_rate_factor("stages", stages, epoch / 200) == pytest.approx(factor)


def test_cosine_rises_over_a_tenth_and_falls_to_nothing():
    at = {p: recipes.learning_rate_factor("cosine", (), p) for p in (0.0, 0.05, 0.1, 0.55, 1.0)}
    assert at == pytest.approx({0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0}, abs=1e-12)
    assert recipes.learning_rate_factor("constant", (), 0.7) == 1.0


def test_weights_are_perturbed_after_a_tenth_of_the_training_unless_a_flag_says_otherwise():
    assert recipes.resolve("ours", "cifar10", "advbnn", {"awp": 0.005})["awp_start"] == 0.1


def test_the_authors_initialization_is_uniform_by_fan_in_with_batchnorm_scales_in_0_to_1():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(256, 100))
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(7.0)
    recipes.initialize_(network, "default")
    assert all((p == 7).all() for p in network.parameters())
    recipes.initialize_(network, "authors")
    convolution, norm, _, linear = network
    for weight, fan_in in ((convolution.weight.detach(), 36), (linear.weight.detach(), 256)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert norm.weight.min() >= 0 and norm.weight.max() <= 1 and norm.weight.std() > 0.2 and (norm.bias == 0).all()


@pytest.mark.parametrize(("network", "num_train", "alpha"), [
    (networks.convnet(), 1287, 0.0026), (networks.vgg16(width=16), 49_000, 0.00036), (networks.vgg16(), 49_000, 0.000022),
    (networks.vgg16(), 10**9, 0.000022), (networks.model_a(), 4500, 0.00015), (torch.nn.Linear(20, 10), 49_000, 1.0)])
def test_alpha_auto_makes_the_kl_500_nats_in_all_where_the_stds_are_a_twentieth_of_the_means_in_squares(
        network, num_train, alpha):
    classifier = ab.BayesianClassifier(network, prior_std=1.0)
    classifier.mean.data.fill_(math.sqrt(20 / 21))
    classifier.log_std.data.fill_(math.log(1 / 21) / 2)                     # mean^2 + std^2 is the prior's 1
    found = recipes.auto_alpha(num_train, len(classifier.mean))
    with pytest.raises(ab.InputError, match="num_weights must be"):
        recipes.auto_alpha(num_train, 0)
    assert found == pytest.approx(alpha, rel=0.03)
    if found < 1:
        assert found * classifier.kl().item() == pytest.approx(min(500, 0.2 * num_train), rel=1e-3)


def test_the_prior_by_auto_decays_means_as_sgd_s_l2_factor_does_whatever_alpha_is(tmp_path, capsys):
    for alpha in (0.5, 0.02, 0):
        config, training, _ = build(alpha=alpha, kl_over="all")
        classifier, num_train = training.classifier, config["num_train"]
        assert config["settings"]["prior_std"] == "auto"
        assert config["classifier"]["prior_std"] == pytest.approx(math.sqrt((alpha or 1) / (5e-4 * num_train)))
        (alpha / num_train * classifier.kl()).backward()
        torch.testing.assert_close(classifier.mean.grad, 5e-4 * (alpha > 0) * classifier.mean.detach())
    run(tmp_path / "run", alpha=0.02, epochs=1)
    assert "/ N, BatchNorm by the mean's statistics, normal prior_std auto (0.63), init_std" in capsys.readouterr().out
    for alpha, num_train in ((-1, 10), (1, 0)):
        with pytest.raises(ab.InputError, match="alpha must be" if alpha < 0 else "num_train must be"):
            ab.auto_prior_std(alpha, num_train)


@pytest.mark.parametrize(("flags", "num_weights"), [
    ({}, 1206), ({"kl_over": "last"}, 90), ({"prior": "scale_mixture", "prior_std": 0.1}, 1206)])
def test_a_run_by_alpha_auto_records_the_number_and_keeps_it_with_what_it_means(
        tmp_path, capsys, monkeypatch, flags, num_weights):
    folder = run(tmp_path / "run", alpha="auto", epochs=1, **flags)
    config = json_files.read_config(folder)
    assert config["settings"]["alpha"] == recipes.auto_alpha(100, num_weights)
    assert config["flags"]["alpha"] == "auto"
    prior_std = checkpoints.load(folder).settings()["prior_std"]
    told = f"x alpha {config['settings']['alpha']:.2g} / N, "
    assert told in capsys.readouterr().out
    monkeypatch.setattr(recipes, "KL_BUDGET", 5)         # as for a run made by another budget and decay
    monkeypatch.setattr(recipes, "DECAY", 1e-3)
    train(resume=folder, epochs=2)
    assert told in capsys.readouterr().out
    assert json_files.read_config(folder)["settings"]["alpha"] == config["settings"]["alpha"]
    assert checkpoints.load(folder).settings()["prior_std"] == prior_std
