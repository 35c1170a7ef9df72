"""Tests of exported files: they are run, and answer as the classifier does."""
import pytest
import torch

import pyro_advbnn as ab
from pyro_advbnn.evaluation import export

X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OTHER = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Centred(torch.nn.Module):
    def forward(self, x):
        return x.mul_(2).sub_(1)


def classifier(defense="advbnn"):
    torch.manual_seed(2)
    network = ab.networks.convnet(3, width=2)
    if defense == "in place":
        network, defense = torch.nn.Sequential(Centred(), network), "advbnn"
    wide = {"init_std": 0.3} if defense == "advbnn" else {}
    return ab.build_classifier(defense, network, **wide).eval()


def run(path, x):
    """The answer of an exported file to images x."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(x)
    onnxruntime = pytest.importorskip("onnxruntime")
    program = onnxruntime.InferenceSession(path)
    return torch.from_numpy(program.run(["probabilities"], {"images": x.numpy()})[0])


OF_TORCH_2_11 = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The given buffer is not writable")


@OF_TORCH_2_11
@pytest.mark.parametrize("ending, defense, draws", [
    ("pt2", "rse", 2), ("pt2", "mixture", 0), ("onnx", "advbnn", 3), ("pt2", "in place", 2)])
def test_an_exported_file_answers_any_number_of_images_as_the_networks_it_was_made_of(tmp_path, ending, defense, draws):
    if ending == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    given = ab.Mixture([classifier(), classifier("adv")]).eval() if defense == "mixture" else classifier(defense)
    path = tmp_path / f"a.{ending}"
    torch.manual_seed(7)
    ab.export(given, path, X[:1], draws=draws)
    torch.manual_seed(7)
    networks = [given.draw() for _ in range(draws)] or [given.mean_network()]
    for x in (OTHER, OTHER[:1]):
        expected = torch.stack([network(x.clone()).softmax(-1) for network in networks]).mean(0)
        torch.testing.assert_close(run(path, x), expected, rtol=0, atol=1e-5)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name, defense, more, says", [
    ("a.pth", "adv", {}, r"path must end in \.onnx or \.pt2, got .*a\.pth"), ("", "adv", {}, "path must be that of a file"),
    ("a.pt2", "rse", {}, "draws must be at least 1 for a classifier with noise"), ("a.pt2", "adv", {"draws": -1}, "draws must"),
    ("a.pt2", "adv", {"x": X * 255}, r"images must lie in \[0, 1\]"), ("a.onnx", "adv", {}, "a.onnx needs the package onnx: ")])
def test_what_cannot_be_exported_is_refused_in_a_line_and_writes_nothing(tmp_path, monkeypatch, name, defense, more, says):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ab.InputError, match=says):
        ab.export(classifier(defense), tmp_path / name, **{"x": X} | more)
    assert not list(tmp_path.iterdir())


class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 3)

    def forward(self, x):
        return self.layer(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


class Noisy(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) + torch.randn(3)


def test_a_network_with_random_numbers_of_its_own_and_images_of_another_dtype_are_refused(tmp_path):
    with pytest.raises(ab.InputError, match="the network draws random numbers of its own"):
        ab.export(ab.Classifier(Noisy(64, 3)), tmp_path / "a.pt2", X)
    with pytest.raises(ab.InputError, match="x must be torch.float64 on cpu, as the classifier is, got torch.float32 on cpu"):
        ab.export(ab.Classifier(Branches().double()), tmp_path / "a.pt2", X)
    assert not list(tmp_path.iterdir())


@OF_TORCH_2_11
@pytest.mark.parametrize("name", ["a.pt2", "a.onnx"])
def test_a_network_that_torch_cannot_follow_is_refused_for_its_own_reason_and_the_old_file_stays(tmp_path, name):
    if name == "a.onnx":
        pytest.importorskip("onnxscript")
    (tmp_path / name).write_text("old")
    with pytest.raises(ab.InputError, match="the network cannot be exported: Could not guard on data-dependent expression"):
        ab.export(ab.Classifier(Branches()), tmp_path / name, X)
    assert (tmp_path / name).read_text() == "old"
