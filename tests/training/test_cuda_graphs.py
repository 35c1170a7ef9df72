import ctypes
import json
import resource
import shutil
import sys
import warnings
from functools import partialmethod

import pyro
import pytest
import torch
from torch import nn
from victims import in_a_process

import pyro_advbnn as ab
from pyro_advbnn import datasets
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.cli import commands
from pyro_advbnn.system.devices import keep_freed_memory
from pyro_advbnn.system.precision import autocast, resolve_precision
from pyro_advbnn.system.random_streams import undisturbed
from pyro_advbnn.train import train
from pyro_advbnn.training import algorithm1, cuda_graphs, recipes
from pyro_advbnn.training.cuda_graphs import GraphedAttack, GraphedGradients, compile_network
from pyro_advbnn.training.trainer import Training
from pyro_advbnn.training.weight_perturbation import buffers_kept

CPU = torch.device("cpu")


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.rand(8, 1, 8, 8), torch.randint(10, (8,))


def test_without_a_gpu_a_graphed_attack_says_why_and_attacks_all_the_same(batch):
    classifier, attack = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.1), ab.PGD(0.1, 0.03, 3)
    graphed = GraphedAttack(attack)
    torch.manual_seed(1)
    expected = attack(classifier, *batch)
    for _ in range(2):                                   # what comes once is no reason for a graph
        assert graphed.failure is None
        torch.manual_seed(1)
        assert torch.equal(graphed(classifier, *batch), expected)
    assert graphed.failure == "the images are on cpu"
    assert graphed.num_steps == 3 and graphed.reaches_ball == attack.reaches_ball


class Rerun:
    """In a CUDA graph's place: a replay runs the function once more, into the tensors of the first time."""

    def __init__(self, run, classifier, device):
        self.run = run
        with undisturbed(), buffers_kept(classifier):
            self.result = run()

    def replay(self):
        (parts, gradients), (new_parts, new_gradients) = self.result, self.run()
        for kept, new in zip([*vars(parts).values(), *gradients], [*vars(new_parts).values(), *new_gradients], strict=True):
            kept.copy_(new)


def trained(batches, take_gradients, **options):
    """The state and the last loss of a classifier, one parameter frozen, after a step on each of (x, y, weight of the KL)."""
    torch.manual_seed(0)
    network = ab.networks.vgg11(width=2)
    network.classifier.bias.requires_grad_(False)
    classifier = ab.BayesianClassifier(network, init_std=0.1)
    optimizer = torch.optim.SGD(classifier.parameters(), 0.01)
    for x, y, kl_weight in batches:
        parts = algorithm1.step(classifier, optimizer, x, y, kl_weight=kl_weight, take_gradients=take_gradients, **options)
    return classifier.state_dict() | {"loss": parts.loss.detach()}


@pytest.mark.parametrize("options, graphs", [({}, 1), ({"awp": 0.01}, 2), ({"micro_batch": 4}, 0), ({"share": 0.5}, 0)])
def test_graphed_gradients_are_those_without_graphs(monkeypatch, options, graphs):
    monkeypatch.setattr(cuda_graphs, "captured", lambda *given: (graph := Rerun(*given), graph.result))
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    warm_up = [(x, y, weight) for weight in (0.0, 1e-4, 2e-4)]   # weights that do not come again
    batches = [*warm_up, *[(x.flip(3), y, 1e-3), (x[:5], y[:5], 1e-3), (x, y, 1e-3)] * 3]
    graphed = GraphedGradients()
    torch.testing.assert_close(trained(batches, graphed, **options), trained(batches, None, **options))
    assert len(graphed._graphs) == graphs and graphed.failure is None


def test_where_a_graph_fails_all_are_given_up_and_the_statistics_are_as_if_nothing_had_been_tried(monkeypatch):
    def failing(run, classifier, device):
        with undisturbed(), buffers_kept(classifier):
            run()
            raise RuntimeError("no graph\nof this")

    monkeypatch.setattr(cuda_graphs, "captured", failing)
    batches = [(torch.rand(8, 3, 32, 32), torch.arange(8), 1e-3)] * 3
    graphed = GraphedGradients()
    torch.testing.assert_close(trained(batches, graphed), trained(batches, None))
    assert graphed.failure.startswith("no graph") and not graphed._graphs


def test_a_capture_that_fails_makes_earlier_graphs_of_others_anew(monkeypatch):
    """As it leaves the device another generator than that from which they draw."""
    made = []

    def sometimes(run, classifier, device):
        made.append(run)
        if len(made) == 2:
            raise RuntimeError("no graph")
        return (graph := Rerun(run, classifier, device)), graph.result

    monkeypatch.setattr(cuda_graphs, "captured", sometimes)
    monkeypatch.setattr(Rerun, "replay", lambda self: None)
    classifier, x, y = Classifier(ab.networks.convnet(width=2)), torch.rand(8, 1, 8, 8), torch.arange(8)
    attack, take_gradients = GraphedAttack(ab.PGD(0.1, num_steps=1)), GraphedGradients()
    for _ in range(4):
        attack(classifier, x, y)
        take_gradients(classifier, x, y, kl_weight=0.0)
    assert len(made) == 3 and attack.failure is None and take_gradients.failure == "no graph"


def test_a_step_leaves_no_graph_of_autograd_behind():
    """For its nodes, which hold the stream of the step, would be in the way of a capture."""
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=2))
    optimizer = torch.optim.SGD(classifier.parameters(), 0.1)
    for micro_batch in (None, 4):
        parts = ab.train_step(classifier, optimizer, torch.rand(8, 1, 8, 8), torch.arange(8), kl_weight=0.1,
                              micro_batch=micro_batch)
        assert not any(value.requires_grad for value in vars(parts).values())


def test_a_training_prints_once_why_there_is_no_graph(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "accelerate", lambda training, config: vars(training).update(
        attack=GraphedAttack(training.attack), take_gradients=GraphedGradients()) or [])
    commands.run(train, ["--epochs=2", "--width=2", "--num_train=100", "--validation=0", "--device=cpu", "--num_steps=1",
                    f"--out={tmp_path / 'run'}"])
    out = capsys.readouterr().out
    assert all(out.count(f"--cuda_graphs: none of the {part}: the images are on cpu") == 1 for part in ("attack", "gradients"))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_answers_as_before_and_keeps_its_state(batch):
    classifier = Classifier(ab.networks.convnet(width=2))
    expected, state = classifier.eval()(batch[0]).detach(), {k: v.clone() for k, v in classifier.state_dict().items()}
    classifier.train()
    rng = torch.get_rng_state()
    with warnings.catch_warnings(action="ignore"):               # torch's own, while it looks at tensors
        failure = compile_network(classifier, *batch)
        got = classifier.eval()(batch[0]).detach()
    assert failure is None
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(state[name], tensor) for name, tensor in classifier.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng) and all(p.grad is None for p in classifier.parameters())


def test_a_compiled_network_stays_so_from_step_to_step(batch):
    classifier, compiled, called = ab.BayesianClassifier(ab.networks.convnet(width=2), 0.1, 0.1), [], []

    def backend(module, _):
        compiled.append(module)
        return lambda *inputs: called.append(module) or module(*inputs)

    classifier.network.compile(backend=backend)
    with warnings.catch_warnings(action="ignore"):       # torch's own, while it looks at tensors
        for _ in range(10):                              # more often than torch compiles one function anew
            ab.negative_elbo(classifier, *batch, kl_weight=0.1)
    assert len(called) == 10 * len(compiled) == 20       # the mean network and the draw, both with BatchNorm


def test_a_compiled_network_stays_so_for_batches_of_several_sizes(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=2), 0.1, 0.1)
    batches = [(torch.rand(size, 1, 8, 8), torch.arange(size) % 10) for size in (10, 4, 6)]
    limits = torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True)
    with limits, warnings.catch_warnings(action="ignore"):
        assert compile_network(classifier, *batches[0]) is None
        for x, y in batches:
            ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 0.1), x, y, kl_weight=0.01,
                          attack=ab.PGD(0.1, num_steps=1))
            ab.predict(classifier, x, num_samples=1)


def test_a_network_that_cannot_be_compiled_is_called_as_it_is_and_the_reason_told(batch, monkeypatch):
    classifier = Classifier(ab.networks.convnet(width=2))

    def no_compiler(*args, **kwargs):
        raise RuntimeError("no working C++ compiler\nfound")

    monkeypatch.setattr(type(classifier.network), "compile", lambda self: setattr(self, "_compiled_call_impl", no_compiler))
    assert compile_network(classifier, *batch) == "no working C++ compiler found"
    assert classifier(batch[0]).shape == (8, 10)


def test_a_training_prints_why_it_is_not_compiled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "compile_network", lambda classifier, x, y: "no compiler")
    commands.run(train, ["--epochs=1", "--width=2", "--num_train=100", "--validation=0", "--device=cpu", "--num_steps=1",
                    "--compile", f"--out={tmp_path / 'run'}"])
    assert "--compile: not compiled: no compiler" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["compile"] is True


@pytest.mark.parametrize(("name", "device", "expected"), [
    (None, "cpu", "fp32"), (None, "cuda", "bf16"), ("fp32", "cuda", "fp32"), ("tf32", "cuda", "tf32"), ("bf16", "cpu", "bf16")])
def test_precision_goes_by_the_device_where_nothing_is_said(name, device, expected):
    assert resolve_precision(name, torch.device(device)) == expected


def test_losses_and_weights_of_a_bf16_step_are_float32(batch):
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.01)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2, fused=True)
    with autocast(CPU, "bf16"):
        parts = ab.train_step(classifier, optimizer, *batch, attack=ab.PGD(0.1, 0.03, 3), kl_weight=1e-4)
    assert parts.loss.dtype == parts.nll.dtype == parts.kl.dtype == torch.float32
    assert classifier.mean.dtype == classifier.mean.grad.dtype == torch.float32


@pytest.mark.parametrize("wrap", [Classifier, ab.BayesianClassifier, lambda n: ab.BayesianClassifier(n, kl_over="last")])
def test_a_step_on_a_gpu_reads_nothing_from_the_device_and_copies_no_number_to_it(wrap, operations):
    pyro.enable_validation(False)
    classifier = wrap(ab.networks.convnet(width=2))
    defense = "adv" if wrap is Classifier else "advbnn"
    settings = recipes.resolve("ours", "digits", defense, {"batch_size": 32} | ({} if defense == "adv" else {"alpha": 0.01}))
    training = Training(classifier, datasets.load("digits", "train"), settings, adversarial=True,
                        augmentation="crop_flip")
    training._check_every_step = False
    next(training.epoch())                               # in which both ways of calling the network are compared
    with operations:
        next(training.epoch())
        for waits in ("_local_scalar_dense", "nonzero", "scalar_tensor"):  # for which the host would wait
            assert not operations.count[waits], waits
        assert operations.count["lift_fresh"] == 1       # new_tensor and torch.tensor: Pyro's plate makes an empty one, here
        assert training.averages()["nll"] > 0 and torch.ones(()).item() and operations.count["_local_scalar_dense"]


def test_what_is_measured_during_a_training_is_computed_in_its_precision(tmp_path, capsys):
    seen = []

    def look(module, inputs, logits):
        if isinstance(module, ab.BayesianClassifier) and not module.training and len(logits) > 8:      # eight: tried out
            seen.append(torch.is_autocast_enabled("cpu"))

    hook = torch.nn.modules.module.register_module_forward_hook(look)
    for precision in ("fp32", "bf16"):
        commands.run(train, ["--epochs=1", "--width=2", "--num_train=100", "--validation=20", "--device=cpu", "--num_steps=1",
                        f"--precision={precision}", f"--out={tmp_path / precision}"])
        assert set(seen) == {precision == "bf16"}
        assert ("device cpu, bf16\n" in capsys.readouterr().out) == (precision == "bf16")     # and told at the start
        seen.clear()
    hook.remove()


def faults():
    """How many new pages five tensors of 64 MiB take."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(1 << 24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def faults_without_and_with_memory_kept():
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)              # PR_SET_THP_DISABLE: a huge page counts as one
    before = faults()
    keep_freed_memory()
    for _ in range(10):                                  # the heap grows to what is needed
        faults()
    return before, faults()


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_was_freed_is_used_again_without_new_pages():
    before, kept = in_a_process(faults_without_and_with_memory_kept)       # for it cannot be taken back
    assert kept < 100 and before > 80_000 * 4096 / resource.getpagesize()
