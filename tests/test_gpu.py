"""What only a GPU can show; skipped where there is none."""
import os
import threading

import pyro
import pytest
import torch

import pyro_advbnn as ab
from pyro_advbnn import benchmark, datasets, reproduce
from pyro_advbnn.bayes.build import build_classifier
from pyro_advbnn.cli import commands
from pyro_advbnn.evaluation import uncertainty
from pyro_advbnn.experiments import timings, uncertainty_verb
from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.system import json_files
from pyro_advbnn.system.memory import is_out_of_memory
from pyro_advbnn.system.precision import float32_products
from pyro_advbnn.train import train
from pyro_advbnn.training import algorithm1, checkpoints, recipes
from pyro_advbnn.training.algorithm1 import gradients
from pyro_advbnn.training.cuda_graphs import GraphedAttack, GraphedGradients
from pyro_advbnn.training.nonfinite import NotFinite
from pyro_advbnn.training.trainer import Training

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")           # read once, when a process first multiplies matrices
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.rand(8, 1, 8, 8, device="cuda"), torch.randint(10, (8,), device="cuda")


def both_devices(**settings):
    network = ab.networks.convnet(width=4)
    return ab.BayesianClassifier(network, **settings), ab.BayesianClassifier(network, **settings).cuda()


def test_all_of_the_papers_evidence_is_made_on_the_gpu(tmp_path):
    """The longest of all that need a GPU, and so the first of the first file (`conftest.LONGEST`)."""
    tiny = ["--epochs=1", "--num_train=100", "--num_test=20", "--width=4", "--attack_samples=2", "--device=cuda"]
    commands.run(reproduce.VERBS, ["all", *tiny, f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "report.html").exists()
    assert {path.stem for path in (tmp_path / "out" / "evaluation").glob("*.csv")} == set(csv_tables.TABLES) - {
        *uncertainty_verb.TABLES, "robust", "robust_examples", "checks", "many_draws", "runs", "gains"}


@pytest.mark.parametrize("prior_std", [0.1, "fan_in"])
def test_kl_and_its_gradient_are_those_of_the_cpu(prior_std):
    gradients = []
    for classifier in both_devices(prior_std=prior_std, init_std=0.03):
        gradients.append([g.cpu() for g in torch.autograd.grad(classifier.kl(), [classifier.mean, classifier.log_std])])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_loss_at_a_certain_posterior_is_that_of_the_cpu(batch):
    x, y = batch
    losses = [ab.negative_elbo(c.eval(), x.to(c.mean.device), y.to(c.mean.device), kl_weight=1e-6).item()
              for c in both_devices(init_std=1e-8)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_adversarial_step_lowers_the_loss(batch, precision):
    classifier = both_devices(init_std=0.01)[1]
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2, fused=True)
    attack = ab.PGD(0.1, 0.03, 3)
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        losses = [ab.train_step(classifier, optimizer, *batch, attack=attack, kl_weight=1e-6).loss.item() for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def test_pgd_stays_in_the_ball(batch):
    x, y = batch
    x_adv = ab.pgd(both_devices(init_std=0.1)[1], x, y, epsilon=0.1, step_size=0.03, num_steps=5, random_start=True)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6 and 0 <= x_adv.min() and x_adv.max() <= 1


def test_a_mixture_prior_follows_its_classifier_to_the_gpu(batch):
    prior = ab.priors.scale_mixture([0.5, 0.5], [0.3, 0.01])
    classifier = both_devices(prior=prior, init_std=0.03)[1]
    ab.negative_elbo(classifier, *batch, kl_weight=1e-3).backward()
    assert torch.isfinite(classifier.mean.grad).all() and classifier.mean.grad.is_cuda


def test_a_checkpoint_moves_between_devices(tmp_path, batch):
    classifier = both_devices(init_std=1e-8)[1].eval()
    config = {"network": "convnet", "num_classes": 10, "in_channels": 1, "width": 4}
    ab.save(tmp_path / "c.pt", classifier, config)
    on_cpu = ab.load(tmp_path / "c.pt")
    torch.testing.assert_close(on_cpu(batch[0].cpu()), classifier(batch[0]).cpu(), rtol=1e-2, atol=1e-3)


def test_averaged_weights_are_kept_on_the_gpu_and_go_on_after_a_stop(tmp_path):
    tiny = {"num_train": 100, "width": 4, "num_steps": 2, "validation": 20, "epochs": 2, "device": "cuda"}
    train(**tiny, weight_averaging=0.9, out=tmp_path / "run", max_minutes=1e-9)
    train(resume=tmp_path / "run")
    content = checkpoints.read(tmp_path / "run" / "checkpoint.pt")
    averaged, trained = content["state"]["mean"], content["training"]["trained"]["mean"]
    assert torch.isfinite(averaged).all() and not torch.equal(averaged, trained)
    assert 0 < (averaged - trained).abs().max() < 0.5


def test_doubt_is_that_of_the_cpu_and_the_attacker_who_hides_runs_on_the_gpu(batch):
    found = []
    for classifier in both_devices(init_std=1e-8):
        x, y = (part.to(classifier.mean.device) for part in batch)
        found.append(uncertainty.scores(classifier, [(x, y)], num_samples=2))
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=1e-3, atol=1e-4)
    hiding = ab.PGD(0.3, num_steps=5, attack_samples=2, loss=uncertainty.ConfidentError(), average="probability")
    _, classifier = both_devices(init_std=0.01)
    clean, attacked = (uncertainty.scores(classifier, [batch], attack, num_samples=4) for attack in (None, hiding))
    assert attacked["nll"].mean() > clean["nll"].mean() and attacked["nll"].device.type == "cpu"


def attacked(attack, batch, steps=4):
    """A classifier after some steps, and what the attack made in each."""
    torch.manual_seed(0)
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), init_std=0.05).cuda()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3, fused=True)
    made = []
    for _ in range(steps):
        ab.train_step(classifier, optimizer, *batch, attack=lambda *a: made.append(attack(*a)) or made[-1], kl_weight=1e-5)
    return classifier, made


def test_an_attack_as_a_cuda_graph_draws_anew_and_sees_the_weights_of_the_moment(batch):
    graphed = GraphedAttack(ab.PGD(0.1, 0.03, 3))
    classifier, made = attacked(graphed, batch)
    assert graphed.failure is None
    plain, expected = attacked(ab.PGD(0.1, 0.03, 3), batch)
    assert all(not torch.equal(one, other) for one, other in zip(made, made[1:], strict=False))
    for one, other in zip(made, expected, strict=True):          # the same draws: the generator goes on as without a graph
        assert (one != other).float().mean() < 0.05
    torch.testing.assert_close(classifier.mean, plain.mean, rtol=1e-2, atol=1e-3)


def test_a_graph_is_captured_while_another_thread_pins_memory(batch):
    graphed, done = GraphedAttack(ab.PGD(0.1, 0.03, 3)), threading.Event()

    def pin():
        kept = []
        while not done.is_set():
            kept.append(torch.empty(1 << 12, pin_memory=True))             # kept, so that each asks CUDA for memory

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        attacked(graphed, batch)
    finally:
        done.set()
        thread.join()
    assert graphed.failure is None


def test_an_attack_that_no_graph_can_hold_is_made_without_one_and_draws_on(batch):
    def waiting(classifier, x, y):
        assert classifier(x).sum().item() < 1e9
        return ab.pgd(classifier, x, y, epsilon=0.1, step_size=0.03, num_steps=2)

    graphed = GraphedAttack(waiting)
    _, made = attacked(graphed, batch)
    assert graphed.failure is not None and not torch.equal(made[0], made[1])
    assert not torch.equal(*torch.rand(2, 9, device="cuda"))


def test_a_graph_leaves_other_shapes_to_the_attack_itself(batch):
    graphed = GraphedAttack(ab.PGD(0.1, 0.03, 3))
    classifier, _ = attacked(graphed, batch, steps=2)
    assert graphed(classifier, batch[0][:3], batch[1][:3]).shape == (3, 1, 8, 8) and graphed.failure is None


@pytest.mark.parametrize(("defense", "optimizer"), [("adv", None), ("advbnn", "adam"), ("advbnn", "natural")])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_an_epoch_never_waits_for_the_gpu(defense, optimizer, precision):
    settings = recipes.resolve("ours", "digits", defense, {
        "batch_size": 64, "num_steps": 2, "optimizer": optimizer, "alpha": 0.01, "weight_averaging": 0.9, "awp": 0.005,
        "awp_start": 0.0})
    images = datasets.balanced_subset(datasets.load("digits", "train"), 256, 0).to("cuda")
    pyro.enable_validation(False)
    training = Training(build_classifier(defense, ab.networks.convnet(width=4)).cuda(), images, settings, adversarial=True,
                        augmentation="crop_flip", precision=precision)
    training.attack, training.take_gradients = GraphedAttack(training.attack), GraphedGradients()
    with float32_products(precision):
        for _ in training.epoch():                       # captures
            pass
        steps = training.epoch()
        next(steps)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(2):
                next(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert training.attack.failure is None and training.take_gradients.failure is None


@pytest.mark.parametrize("awp", [0.0, 0.01])
@pytest.mark.parametrize("kind", [ab.Classifier, ab.BayesianClassifier])
def test_gradients_as_a_cuda_graph_are_those_without_one(kind, awp, batch):
    pyro.enable_validation(False)
    ends, batch = [], (batch[0].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), batch[1])
    for take_gradients in (None, GraphedGradients()):
        torch.manual_seed(0)
        classifier = kind(ab.networks.convnet(width=4, in_channels=3)).cuda()
        optimizer = torch.optim.SGD(classifier.parameters(), 0.1, fused=True)
        parts = [algorithm1.step(classifier, optimizer, *batch, kl_weight=1e-4, awp=awp, take_gradients=take_gradients)
                 for _ in range(4)]
        ends.append((classifier.state_dict(), parts[-1].loss, torch.rand(1, device="cuda")))
    assert take_gradients.failure is None and len(take_gradients._graphs) == 1 + bool(awp)
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)         # the same draws, and running statistics


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "natural"])
def test_a_bad_step_on_the_gpu_is_named_when_the_training_asks(optimizer):
    settings = recipes.resolve("ours", "digits", "bnn", {"batch_size": 64, "optimizer": optimizer, "learning_rate": 0.01,
                                                          "alpha": 0.01})
    images = datasets.balanced_subset(datasets.load("digits", "train"), 256, 0).to("cuda")
    pyro.enable_validation(False)
    training = Training(build_classifier("bnn", ab.networks.convnet(width=4)).cuda(), images, settings, adversarial=False)
    steps = training.epoch()
    next(steps)
    handle = training.classifier.network.register_forward_hook(lambda module, inputs, logits: logits * torch.nan)
    next(steps)
    handle.remove()
    with pytest.raises(NotFinite, match="at step 2 of epoch 1"):
        list(steps)


def test_deterministic_trainings_on_the_gpu_end_with_equal_bits(tmp_path):
    ends = []
    for name in "ab":
        train(dataset="digits", width=4, num_train=200, validation=20, epochs=2, num_steps=2, device="cuda", deterministic=True,
              out=tmp_path / name)
        ends.append(checkpoints.read(tmp_path / name / "checkpoint.pt")["state"])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_micro_batches_have_the_gradient_of_the_whole_on_the_gpu(batch):
    results = []
    for micro_batch in (None, 3):
        torch.manual_seed(0)
        classifier = both_devices(init_std=0.1)[1].eval()
        torch.manual_seed(1)
        x_adv = algorithm1._attacked(classifier, *batch, ab.PGD(0.1, 0.03, 2), micro_batch)
        gradients(classifier, x_adv, batch[1], kl_weight=1e-4, micro_batch=micro_batch)
        results.append(classifier.mean.grad)
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-4)


def test_a_training_of_arrays_on_the_gpu_comes_back_to_where_they_are():
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
    for images in (x, x.numpy(), x.cuda()):
        fitted = ab.fit(images, y, network="convnet", epsilon=0.1, epochs=1, device="cuda")
        expected = images.device.type if isinstance(images, torch.Tensor) else "cpu"
        assert {tensor.device.type for tensor in fitted.state_dict().values()} == {expected}
        assert ab.predict(fitted, torch.as_tensor(images), num_samples=2).device.type == expected


def test_out_of_memory_on_the_gpu_is_known_as_such():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50, device="cuda")
    assert is_out_of_memory(raised.value)


def test_the_benchmark_measures_time_memory_and_parts_on_the_gpu(tmp_path):
    commands.run(benchmark.benchmark, ["--network=convnet", "--image_size=8", "--num_steps=2", "--repeats=1", "--batch_sizes=4",
                                  "--precisions=fp32,bf16,tf32", "--device=cuda", f"--out={tmp_path / 'out'}"])
    content = json_files.read_json(tmp_path / "out" / "benchmark.json")
    for row in content["rows"]:
        assert row["peak_memory_bytes"] > 0 and row["wall_s"] > 0
        if row["attack_s"] is not None:
            cut = sum(row[f"{part}_s"] for part in timings.PARTS)
            assert cut == pytest.approx(row["wall_s"], rel=0.5)
