"""Tests of averaged weights: the formula, that no step changes for it, and that the average is what is measured and kept."""
import pytest
import torch
from tiny_runs import assert_same_run, content, equal, metrics, run, tiny

import pyro_advbnn as ab
from pyro_advbnn.system import distributed
from pyro_advbnn.training import loop, run_folders, session
from pyro_advbnn.training.ema import MovingAverage
from pyro_advbnn.training.trainer import Training


def bayesian():
    return ab.BayesianClassifier(ab.networks.convnet(10, in_channels=1, width=4), prior_std=0.1, init_std=0.01)


def test_the_average_is_the_sum_of_all_states_with_weights_that_decay_after_a_beginning_with_less():
    torch.manual_seed(0)
    classifier = bayesian()
    average, states = MovingAverage(classifier, 0.15), [classifier.state_dict()["mean"].clone()]
    for step in range(1, 4):
        with torch.no_grad():
            for value in classifier.state_dict().values():
                value.copy_(torch.randn_like(value) if value.is_floating_point() else torch.full_like(value, step))
        average.update(classifier, step - 1)
        states.append(classifier.state_dict()["mean"].clone())
    expected = states[0]
    for decay, state in zip((1 / 10, 0.15, 0.15), states[1:], strict=True):      # the second, 2 / 11, is more than 0.15
        expected = decay * expected + (1 - decay) * state
    torch.testing.assert_close(average.classifier.state_dict()["mean"], expected)
    counts = [value for name, value in average.classifier.state_dict().items() if "num_batches_tracked" in name]
    assert counts and all(count == 3 for count in counts)


@pytest.mark.parametrize("defense", ["advbnn", "adv", "rse"])
def test_no_step_changes_and_the_average_is_what_is_measured_and_kept(tmp_path, monkeypatch, defense):
    plain = run(tmp_path / "plain", defense=defense)
    followed, real = [], Training._step

    def step(self, x, y):
        if not followed:
            followed.append({name: value.clone() for name, value in self.classifier.state_dict().items()})
        real(self, x, y)
        decay = min(0.7, len(followed) / (9 + len(followed)))
        followed.append({name: decay * followed[-1][name] + (1 - decay) * value if value.is_floating_point() else value.clone()
                         for name, value in self.classifier.state_dict().items()})

    monkeypatch.setattr(Training, "_step", step)
    averaged = run(tmp_path / "averaged", defense=defense, weight_averaging=0.7)
    left = content(averaged)
    assert all(torch.equal(left["training"]["trained"][name], value) for name, value in content(plain)["state"].items())
    torch.testing.assert_close(left["state"], followed[-1])
    classifier, _, _ = run_folders.load_classifier(averaged, "last")
    torch.testing.assert_close(dict(classifier.state_dict()), followed[-1])
    assert any(not torch.equal(content(averaged, "best.pt")["state"][name], value)
               for name, value in content(plain, "best.pt")["state"].items())
    steps = [[row[name] for name in ("nll", "kl", "batch_accuracy")] for row in metrics(plain)]
    assert steps == [[row[name] for name in ("nll", "kl", "batch_accuracy")] for row in metrics(averaged)]


def test_a_training_that_starts_from_an_averaged_run_starts_at_its_average(tmp_path):
    first = run(tmp_path / "first", defense="adv", weight_averaging=0.9)
    second = run(tmp_path / "second", init_from=first, learning_rate=1e-12, epochs=1)
    kept = torch.cat([value.flatten() for name, value in content(first, "best.pt")["state"].items()
                      if value.is_floating_point() and "running" not in name])
    assert torch.allclose(content(second)["state"]["mean"], kept, atol=1e-6)


def test_what_has_two_names_is_averaged_once():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    network[1].weight = network[0].weight
    classifier = ab.Classifier(network)
    average, before = MovingAverage(classifier, 0.75), network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight.add_(1)
    average.update(classifier, 100)
    torch.testing.assert_close(average.classifier.network[0].weight.detach(), before + 0.25)


def test_a_mask_of_infinities_stays_as_it_is():
    network = torch.nn.Linear(2, 2)
    network.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1), persistent=False)
    classifier = ab.BayesianClassifier(network)
    average = MovingAverage(classifier, 0.9)
    average.update(classifier, 0)
    assert torch.equal(average.classifier.network.mask, network.mask)


def test_layers_are_measured_of_what_is_kept_and_draw_from_no_stream_of_the_training(tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", weight_averaging=0.7)
    seen, real = [], loop.module_numbers

    def module_numbers(classifier, kl_weight):
        torch.rand(3)                                    # as where the KL has no closed form
        seen.append({name: value.clone() for name, value in classifier.state_dict().items()})
        return real(classifier, kl_weight)

    monkeypatch.setattr(loop, "module_numbers", module_numbers)
    again = run(tmp_path / "again", weight_averaging=0.7)
    assert_same_run(plain, again)
    assert equal(seen[-1], {name: content(again)["state"][name] for name in seen[-1]})


def test_the_average_too_begins_in_all_processes_as_in_the_first(tmp_path, monkeypatch):
    begun, sent = [], []
    monkeypatch.setattr(loop, "run", lambda folder, config, training, *_: begun.append(training))
    monkeypatch.setattr(distributed, "broadcast_", sent.extend)
    session.start({**tiny("adv"), "defense": "adv", "weight_averaging": 0.7, "out": tmp_path / "run"})
    expected = [tensor for each in (begun[0].classifier, begun[0].result) for tensor in (*each.parameters(), *each.buffers())]
    assert list(map(id, sent)) == list(map(id, expected))
