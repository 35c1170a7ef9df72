import ctypes
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from process_groups import train_command
from torch import nn
from victims import in_a_process

import pyro_advbnn as ab
from pyro_advbnn.bayes.classifier import Classifier
from pyro_advbnn.bayes.rse import add_noise
from pyro_advbnn.system.memory import is_out_of_memory
from pyro_advbnn.training.algorithm1 import _attacked, gradients

ATTACK = ab.PGD(0.1, 0.03, 3)


def network(norm=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
    return nn.Sequential(*layers)


def batch(size=10):
    torch.manual_seed(1)
    return torch.rand(size, 1, 8, 8), torch.randint(10, (size,))


def gradient(classifier, micro_batch, *, attack=ATTACK, size=10):
    torch.manual_seed(2)
    classifier.zero_grad()
    x, y = batch(size)
    x_adv = _attacked(classifier, x, y, attack, micro_batch)
    parts = gradients(classifier, x_adv, y, kl_weight=0.01, micro_batch=micro_batch)
    return parts, [p.grad.clone() for p in classifier.parameters()]


@pytest.mark.parametrize("attack", [ATTACK, None], ids=["attacked", "clean"])
@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("wrap", [Classifier, lambda n: ab.BayesianClassifier(n, init_std=0.1),
                                  lambda n: ab.BayesianClassifier(n, init_std=0.1, deterministic=["0.bias"])])
def test_attack_loss_and_gradient_are_those_of_the_whole_batch(wrap, size, attack):
    classifier = wrap(network())
    whole, expected = gradient(classifier, None, attack=attack)
    parts, got = gradient(classifier, size, attack=attack)
    for name in ("loss", "nll", "kl", "logits"):
        torch.testing.assert_close(getattr(parts, name).detach(), getattr(whole, name).detach(), rtol=1e-4, atol=1e-6)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_batch_norm_normalises_each_piece_by_itself():
    classifier = Classifier(network(norm=True))
    sizes = []
    classifier.network[1].register_forward_hook(lambda m, inputs, _: sizes.append(len(inputs[0])) if m.training else None)
    gradient(classifier, 4, attack=None)
    assert sizes == [4, 4, 2]


def test_noise_differs_from_piece_to_piece():
    classifier = Classifier(add_noise(network()))
    seen = []
    classifier.network[0].rse_noise.register_forward_hook(lambda m, inputs, output: seen.append(output - inputs[0]))
    x = torch.zeros(4, 1, 8, 8)
    gradients(classifier, x, torch.zeros(4, dtype=torch.long), kl_weight=0.0, micro_batch=2)
    assert (seen[0] != seen[1]).float().mean() > 0.9


def test_the_network_never_sees_more_images_at_a_time():
    classifier = ab.BayesianClassifier(network(), init_std=0.1)
    sizes = []
    classifier.network[0].register_forward_pre_hook(lambda m, inputs: sizes.append(len(inputs[0])))
    gradient(classifier, 4)
    assert sizes == [4] * 3 + [4] * 3 + [2] * 3 + [4, 4, 2]      # three steps for each piece, then the update


def test_random_streams_go_on_as_after_a_step_of_the_whole_batch():
    classifier = ab.BayesianClassifier(network(), init_std=0.1)
    after = []
    for micro_batch in (None, 4):
        gradient(classifier, micro_batch)
        after.append(torch.rand(()))
    assert torch.equal(*after)


def test_the_cpu_running_out_of_memory_is_known_as_such():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("status", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"])
def test_a_library_of_the_gpu_running_out_of_memory_is_known_by_its_status(status):
    assert is_out_of_memory(RuntimeError(f"error: {status}"))


WARM = ["--epochs=1", "--width=2", "--num_train=40", "--validation=0", "--num_steps=1", "--num_samples=1", "--device=cpu"]


def limited(words, mebibytes, folder):
    """(exit code, stdout, stderr) of a training in so much memory more than a small one has taken before, in `folder`."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-8, 1)                     # M_ARENA_MAX: another thread reserves none of it
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (1 << 50, hard))
    train_command([*WARM, f"--out={folder}"])            # everything is loaded before the limit
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + mebibytes * 2**20, hard))
    return train_command(words)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets a limit as Linux does")
def test_a_training_out_of_memory_says_what_may_fit_and_can_be_resumed_with_it(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (256, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=x, y_train=np.arange(256) % 4, x_test=x[:8], y_test=np.arange(8) % 4)
    flags = ["--dataset=npz", f"--data_dir={tmp_path / 'images.npz'}", "--network=convnet", "--width=16", "--batch_size=256",
             "--num_steps=1", "--epochs=1", "--device=cpu", "--validation=0", "--num_samples=1", f"--out={tmp_path / 'run'}"]

    # In 450 MiB: all 256 images take 850, 16 take 240, so that what the libraries take for themselves matters little.
    code, _, err = in_a_process(limited, flags, 450, tmp_path / "warm1")
    assert (code, err) == (2, "error: out of memory with 256 images at a time; --resume "
                              f"{tmp_path / 'run'} with a smaller --micro_batch may fit\n")
    code, _, err = in_a_process(limited, ["--resume", tmp_path / "run", "--micro_batch", "16"], 450, tmp_path / "warm2")
    assert code == 0, err
    assert (tmp_path / "run" / "checkpoint.pt").exists()
