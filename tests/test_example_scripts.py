"""Tests of examples/: each script is short, runs, draws its figure and prints what must hold; the gallery shows it."""
import pickle
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from hostile import write_cifar10

ROOT = Path(__file__).parents[1]
FIXTURE = ROOT.parent / "shared" / "data" / "fixture_small.npz"
TINY = {"epochs": 1, "num_train": 60, "num_test": 20}
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", text)]


def every_weight_is_bayesian(lines, example):
    weights = sum(p.numel() for p in example["resnet18_for_digits"]().parameters())
    assert numbers(lines[-1])[0] == weights and 0 <= numbers(lines[-1])[1] <= 100


def the_loss_falls(lines, _):
    losses = [numbers(line)[1] for line in lines]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert all(kl < loss and clean <= 100 >= attacked for _, loss, kl, clean, attacked in map(numbers, lines))


def three_classifiers_have_an_accuracy_for_each_number_of_draws(lines, _):
    assert [line.partition(":")[0] for line in lines] == ["RSE", "Adv-BNN, wide posterior", "Adv-BNN, narrow posterior"]
    for line in lines:
        shares = re.findall(r"([\d.]+) % \((\d+)\)", line)
        assert [draws for _, draws in shares] == ["1", "2"] and all(float(share) % 5 == 0 for share, _ in shares)


def each_of_three_attacks_has_three_aims(lines, _):
    assert len({line.partition(":")[0] for line in lines}) == 9
    assert all(low <= middle <= high for middle, low, high in (numbers(line)[-3:] for line in lines))


def an_auroc_lies_in_its_interval(lines, _):
    assert [line.partition(" ")[0] for line in lines] == ["attacked", "foreign"]
    assert all(0 <= low <= auroc <= high <= 1 for auroc, low, high in map(numbers, lines))


def without_any_weight_all_images_get_one_class(lines, _):
    assert len(lines) == 4 and all(line.endswith("10.0 % without 100 %") for line in lines)
    assert all(float(re.search(r": ([\d.]+) % without 0 %", line)[1]) > 10 for line in lines if ", clean" in line)


def a_robust_network_withstands_a_small_attack_and_not_a_large_one(lines, _):
    assert [line.partition(":")[0] for line in lines] == ["adversarial training", "Adv-BNN", "Adv-BNN, 2 draws per gradient"]
    for line in lines:
        clean, small, large = (float(share) for share in re.findall(r"([\d.]+) % \(at", line))
        assert clean >= small > 20 >= large


CHECKS = {
    "attack_a_robust_network": (a_robust_network_withstands_a_small_attack_and_not_a_large_one,
                                {"epochs": None, "num_train": None, "num_test": 20, "radii": (0, 4, 32), "draws": (1, 2)}),
    "any_network": (every_weight_is_bayesian, {"num_test": None}),
    "algorithm1_by_hand": (the_loss_falls, {"epochs": 4}),
    "what_one_draw_hides": (three_classifiers_have_an_accuracy_for_each_number_of_draws, {"draws": (1, 2)}),
    "your_own_attack": (each_of_three_attacks_has_three_aims, {}),
    "uncertainty_and_rejection": (an_auroc_lies_in_its_interval, {}),
    "prune_by_the_posterior": (without_any_weight_all_images_get_one_class, {"epochs": 15, "shares": (0, 1)}),
}


def real_images(root, monkeypatch):
    """A folder in CIFAR-10's layout with the 200 test images of the fixture."""
    if not FIXTURE.exists():
        pytest.skip(f"{FIXTURE} with real images is absent")
    images = np.load(FIXTURE)
    batch = {"data": images["cifar10_test_images"].transpose(0, 3, 1, 2).reshape(-1, 3072),
             "labels": images["cifar10_test_labels"].tolist()}
    write_cifar10(root, monkeypatch, pickle.dumps(batch, protocol=3))
    return root


@pytest.mark.filterwarnings("ignore:Please import .gaussian_filter:DeprecationWarning")       # of foolbox
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_draws_its_figure_and_what_it_prints_holds(name, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib").use("agg")
    check, settings = CHECKS[name]
    if name == "attack_a_robust_network":
        settings = settings | {"data_dir": real_images(tmp_path, monkeypatch)}
    settings = {key: value for key, value in (TINY | settings).items() if value is not None}
    example = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    example["main"](out=tmp_path / "figure.png", **settings)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    check(capsys.readouterr().out.splitlines(), example)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_the_gallery_shows_a_small_picture_of_it(name):
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert source.startswith('"""') and len(source.splitlines()) <= 80
    assert (ROOT / "docs" / "gallery" / f"{name}.png").stat().st_size <= 40_000
    gallery, readme = (ROOT / "docs" / "gallery.md").read_text(), (ROOT / "examples" / "README.md").read_text()
    assert f"(gallery/{name}.png)" in gallery and f"examples/{name}.py" in gallery and f"({name}.py)" in readme
