"""Tests of training in several processes: what they compute together."""
import time

import pytest
import torch
from process_groups import TINY, command_in_group, group, processes
from tiny_runs import tiny
from torch import nn

import pyro_advbnn as ab
from pyro_advbnn import datasets
from pyro_advbnn.bayes import batch_norm
from pyro_advbnn.system import distributed
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import configuration, construction, loop


def course(flags, large=1 << 20):
    """The averages after every step of a training of two epochs with the same draws everywhere, and its state at the end."""
    distributed._LARGE = large
    config, images, _ = configuration.configure({**tiny(flags.get("defense"), TINY), **flags})
    run = construction.build(config, images)
    torch.manual_seed(3)
    averages = []
    for _ in range(2):
        for _ in run.epoch():
            averages.append(torch.tensor(list(run.averages().values())))
        run.restart_averages()
    return torch.stack(averages), run.classifier.state_dict()


def courses(cases):
    return [course(*case) for case in cases]


SGD = {"optimizer": "sgd"}           # Adam brings gradients that are rounding errors, of biases before a BatchNorm, to its rate
CASES = [({"defense": "advbnn", **SGD},), ({"defense": "advbnn", **SGD}, 1),
         ({"defense": "adv", **SGD},), ({"defense": "adv", **SGD}, 100),
         ({"defense": "bnn", "optimizer": "natural"},), ({"defense": "bnn", "prior": "scale_mixture", "prior_std": 0.5},),
         ({"defense": "bnn", "precision": "bf16", "batch_statistics": "draw", **SGD},),
         ({"defense": "advbnn", "batch_statistics": "mean", **SGD},),
         ({"defense": "advbnn", "awp": 0.05, "awp_start": 0.0, **SGD},)]


@pytest.fixture(scope="module")
def two_courses():
    return group(courses, CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=str)
def test_two_processes_with_equal_draws_train_as_one_does_with_the_joined_batch(two_courses, number):
    (averages, state), (_, other_state) = (rank[number] for rank in two_courses)
    expected_averages, expected = course(*CASES[number])
    rounds = "precision" in CASES[number][0]
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if rounds else {"rtol": 1e-4, "atol": 1e-4}
    numbers, accuracy = [0, 1, 3], 2                     # nll, kl and loss; by rounding some answers may be others
    torch.testing.assert_close(averages[:, numbers], expected_averages[:, numbers], **tolerance)
    torch.testing.assert_close(averages[:, accuracy], expected_averages[:, accuracy],
                               **({"rtol": 0, "atol": 0.05} if rounds else tolerance))
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, **tolerance)
        assert torch.equal(state[name], other_state[name]), name


def gradient(kl_weight):
    torch.manual_seed(1)
    classifier = ab.BayesianClassifier(ab.networks.convnet(width=4), prior_std=0.2, init_std=0.1)
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    first, step = distributed.shard()
    ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 0.0), x[first::step], y[first::step],
                  kl_weight=kl_weight, share=len(x[first::step]) / 5)
    return classifier.mean.detach(), classifier.mean.grad, classifier.log_std.grad


def gradients():
    return gradient(0.0), gradient(1.0)


def test_the_kl_counts_once():
    for without, (mean, *whole) in group(gradients):
        kl_by_mean, kl_by_log_std = (w - o for w, o in zip(whole, without[1:]))
        torch.testing.assert_close(kl_by_mean, mean / 0.2**2, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kl_by_log_std, torch.full_like(mean, 0.1**2 / 0.2**2 - 1), rtol=1e-4, atol=1e-5)


class LeftOut(nn.Module):
    """Each process leaves out a layer of its own, as stochastic depth does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.still = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        return sum(layer(x) for i, layer in enumerate(self.layers) if i != distributed.rank())


def gradients_of_layers():
    torch.manual_seed(0)
    network = LeftOut()
    ((distributed.rank() + 1) * network(torch.ones(1, 4)).sum()).backward()
    distributed.sum_gradients_(torch.optim.SGD(network.parameters(), 0.1))
    return [parameter.grad for parameter in (*(layer.bias for layer in network.layers), network.still)]


def test_a_layer_that_a_process_leaves_out_gets_the_gradient_of_the_others():
    for first, second, still in group(gradients_of_layers):
        assert torch.equal(first, torch.full((4,), 2.0)) and torch.equal(second, torch.ones(4))
        assert still is None                             # a frozen one has no part in decay and momentum


def test_tensors_of_several_types_are_joined_type_by_type():
    tensors = [torch.ones(2), torch.ones(3, dtype=torch.int64), torch.ones(2, 2), torch.ones(1, dtype=torch.float64)]
    distributed._as_one_vector(tensors, lambda vector: vector.mul_(2))
    assert all((tensor == 2).all() for tensor in tensors)


def test_without_a_share_a_step_asks_no_other_process():
    assert group(step_of_one) == [False, True]


def step_of_one():
    if distributed.is_main():
        classifier = ab.BayesianClassifier(ab.networks.convnet(width=4))
        ab.train_step(classifier, torch.optim.SGD(classifier.parameters(), 0.1), torch.rand(4, 1, 8, 8), torch.arange(4),
                      kl_weight=0.0)
    return not distributed.is_main()


def parts_of(x):
    return (x[:2], x[2:]) if distributed.world_size() > 1 else (x, None)


NORMS = [(nn.BatchNorm2d(3), (7, 3, 4, 5)), (nn.BatchNorm1d(3), (7, 3)), (nn.BatchNorm2d(3, affine=False), (7, 3, 2, 2)),
         (nn.BatchNorm2d(3, momentum=None), (7, 3, 2, 2)), (nn.BatchNorm1d(3, track_running_stats=False), (7, 3, 4)),
         (nn.BatchNorm3d(3, dtype=torch.float64), (7, 3, 2, 2, 2))]


def normalised(number):
    """Outputs, gradients and buffers of a norm after two batches, of which this process has its part."""
    norm, shape = NORMS[number]
    norm = batch_norm.synchronise(nn.Sequential(norm), "cpu")
    with torch.no_grad():
        for i, p in enumerate(norm.parameters()):
            p.copy_(torch.linspace(0.5, 1.5, 3) + i)
    dtype = torch.float64 if len(shape) == 5 else torch.float32
    for seed in (1, 2):
        x, target = (t.to(dtype) for t in torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)) * 3 + 5)
        x, target = parts_of(x)[distributed.rank()].clone().requires_grad_(), parts_of(target)[distributed.rank()]
        out = norm(x)
        (out * target).sum().backward()
    gradients = [distributed.sum_(p.grad) for p in norm.parameters()]
    still = norm.eval()(x.detach()[:1] * 0).detach()
    return [out.detach(), x.grad], [*gradients, *norm.buffers(), still], list(norm.state_dict())


def all_normalised():
    return [normalised(number) for number in range(len(NORMS))]


def test_synchronised_batch_norm_is_that_of_the_joined_batch_forward_backward_and_in_its_statistics():
    for first, second, whole in zip(*group(all_normalised), all_normalised(), strict=True):
        for joined, expected in zip(zip(first[0], second[0]), whole[0], strict=True):
            torch.testing.assert_close(torch.cat(joined), expected, rtol=1e-4, atol=1e-5)
        for rank in first, second:
            assert rank[2] == whole[2]
            for value, expected in zip(rank[1], whole[1], strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def converted():
    torch.manual_seed(0)
    network = ab.networks.convnet(width=4)
    before = network.state_dict()
    after = batch_norm.synchronise(network, "cpu")
    cuda = batch_norm.synchronise(ab.networks.convnet(width=4), "cuda")
    return ([type(m).__name__ for m in after.modules() if "Norm" in type(m).__name__], list(before) == list(after.state_dict()),
            all(torch.equal(a, b) for a, b in zip(before.values(), after.state_dict().values())),
            {type(m) for m in cuda.modules() if "Norm" in type(m).__name__} == {nn.SyncBatchNorm},
            list(cuda.state_dict()) == list(before))


def test_a_network_with_synchronised_norms_keeps_names_order_and_values():
    assert group(converted) == 2 * [(4 * ["SyncedBatchNorm"], True, True, True, True)]
    network = ab.networks.convnet(width=4)
    assert batch_norm.synchronise(network, "cpu") is network and "SyncedBatchNorm" not in str(network)   # in one process


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled():
    own = nn.BatchNorm2d(4)
    own.forward = lambda x: 2 * x
    for norm, name in ((Doubled(4), "Doubled"), (own, "BatchNorm2d")):
        with pytest.raises(InputError, match=f"^--batch_norm sync cannot join the batches of 1, a {name} with a forward"):
            batch_norm.synchronise(nn.Sequential(nn.ReLU(), norm), "cpu")


def kinds_under_two_names():
    found = []
    for device_type in ("cpu", "cuda"):
        network = nn.Module()
        network.first = network.second = nn.BatchNorm1d(2)
        batch_norm.synchronise(network, device_type)
        found.append((type(network.first).__name__, network.second is network.first))
    return found


def test_a_norm_under_two_names_is_synchronised_under_both():
    assert group(kinds_under_two_names) == 2 * [[("SyncedBatchNorm", True), ("SyncBatchNorm", True)]]


def hooks_of_converted():
    norm = nn.BatchNorm2d(3).requires_grad_(False).eval()
    norm.register_forward_hook(lambda *_: None)
    network = batch_norm.synchronise(nn.Sequential(norm), "cpu")
    return [type(network[0]).__name__, network[0].training, network[0].weight.requires_grad, len(network[0]._forward_hooks)]


def test_a_synchronised_norm_keeps_hooks_and_mode():
    assert group(hooks_of_converted) == 2 * [["SyncedBatchNorm", False, False, 1]]


def test_a_norm_with_a_forward_of_its_own_is_not_taken_for_a_plain_one():
    group(doubled)
    network = nn.Sequential(Doubled(4))
    assert batch_norm.synchronise(network, "cpu") is network


def broadcast_course():
    config, images, _ = configuration.configure({**tiny("none", TINY), "defense": "none", "batch_norm": "broadcast"})
    run = construction.build(config, images)
    norms = [m for m in run.classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    own = []
    norms[0].register_forward_hook(lambda module, *_: own.append(module.running_mean.clone()))
    next(run.epoch())
    return own[-1], norms[0].running_mean, {type(norm) for norm in norms}


def test_broadcast_leaves_each_process_its_own_batch_and_brings_the_running_statistics_of_rank_0():
    (own, after, kinds), (other_own, other_after, _) = group(broadcast_course)
    assert kinds == {nn.BatchNorm2d}
    assert torch.equal(after, own) and torch.equal(other_after, own) and not torch.equal(other_own, own)


def test_the_parts_of_the_processes_do_not_overlap_and_cover_every_batch_of_the_epoch():
    images = datasets.Images(torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1), torch.arange(23), tuple("c" * 23))

    def passes(shard):
        batches = datasets.batches(images, 10, shuffle_with=torch.Generator().manual_seed(4), shard=shard)
        return [set(y.tolist()) for _ in range(2) for _, y in batches]

    whole, parts = passes((0, 1)), [passes((rank, 3)) for rank in range(3)]
    assert [len(batch) for batch in whole] == [10, 10, 3] * 2
    for batch, *of_ranks in zip(whole, *parts, strict=True):
        assert set.union(*of_ranks) == batch and sum(map(len, of_ranks)) == len(batch)
        assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1


def test_a_process_without_a_part_of_a_batch_leaves_it_out():
    images = datasets.Images(torch.zeros(7, 1, 1, 1, dtype=torch.uint8), torch.arange(7), tuple("c" * 7))
    assert [len(y) for _, y in datasets.batches(images, 5, shard=(2, 4))] == [1]


def measured(defense):
    config, images, held_out = configuration.configure({**tiny(defense, TINY), "defense": defense})
    classifier = construction.build(config, images).classifier
    return [loop.accuracies(classifier, sample, config["settings"], seed=1)
            for sample in (held_out, images, held_out.take([0]))]


def test_accuracies_are_measured_in_parts_and_are_those_of_all_images():
    first, second = group(measured, "adv")
    assert first == second == measured("adv")


def test_own_seeds_are_the_seed_itself_on_rank_0_and_differ_between_ranks_and_positions():
    assert distributed.own_seed(5) == 5
    first, second = group(seeds)
    assert first[0] == 5 and len({seed % 2**32 for seed in first + second}) == 6   # torch's CPU generator reads 32 bits


def seeds():
    return [distributed.own_seed(5), distributed.own_seed(6), distributed.own_seed(5, 1, 2)]


def stream_seeds():
    config, images, _ = configuration.configure(TINY)
    run = construction.build(config, images)
    return torch.initial_seed(), run._augment.initial_seed(), distributed.own_seed(0), distributed.own_seed(1)


def test_weights_and_augmentation_are_drawn_from_streams_of_each_process():
    for weights, augmentation, own, own_of_augmentation in group(stream_seeds):
        assert (weights, augmentation) == (own, own_of_augmentation)


def wrong_input(ranks, message):
    with distributed.together():
        if distributed.rank() in ranks:
            raise InputError(message + (" here" if message == "own" and distributed.rank() else ""))
    print("went on")


@pytest.mark.parametrize(("ranks", "message", "expected"), [
    ((), "x", [(0, "went on\n", ""), (0, "", "")]),
    ((0, 1), "same", [(2, "", "error: same\n"), (0, "", "")]),
    ((1,), "lone", [(0, "", ""), (2, "", "error: [rank 1] lone\n")]),
    ((0, 1), "own", [(2, "", "error: own\n"), (2, "", "error: [rank 1] own here\n")]),
], ids=["none", "same", "lone", "own"])
def test_wrong_input_ends_all_processes_and_every_error_is_told_once(ranks, message, expected):
    assert processes(command_in_group, wrong_input, ranks, message) == expected


def different():
    distributed.require_same([1, "a"], "not the same one")
    print("the same")
    distributed.require_same(distributed.rank(), "not the same")


def test_processes_that_do_not_see_the_same_are_refused_once():
    assert processes(command_in_group, different) == [(2, "the same\n", "error: not the same\n"), (0, "", "")]


def passage():
    with distributed.one_at_first():
        entered = time.monotonic()
        time.sleep(0.2)
    return entered


def test_one_process_of_a_machine_goes_first_and_the_others_wait_for_it():
    first, second, third = group(passage, world=3)
    assert min(second, third) > first + 0.2


def failing(rank):
    distributed._SECONDS_TO_BE_ENDED = 0
    distributed.sum_(torch.zeros(()))                    # the group is whole
    if distributed.rank() == rank:
        raise RuntimeError("out of memory")
    distributed.sum_(torch.zeros(()))


def failing_command(rank):
    try:
        return command_in_group(failing, rank)
    except RuntimeError as error:
        return str(error)


def test_the_error_of_one_process_is_its_own_and_the_others_say_that_they_lost_it():
    (code, out, err), error = processes(failing_command, 1)
    assert (code, out, error) == (1, "", "out of memory") and err.startswith("[rank 0] lost another process (")


def test_a_job_is_told_from_another_by_its_name_or_where_it_has_none_by_a_counted_restart(monkeypatch):
    assert not distributed.is_this_job(None) and not distributed.is_this_job("a")
    for name in "RANK", "LOCAL_RANK", "WORLD_SIZE":
        monkeypatch.setenv(name, "0")
    seen = {}
    for job in "a", "none":
        for restarts in "0", "1":
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
            seen[job, restarts] = [distributed.is_this_job(name) for name in (None, "a", "none")]
    assert seen == {("a", "0"): [False, True, False], ("a", "1"): [False, True, False],
                    ("none", "0"): [False, False, False], ("none", "1"): [False, False, True]}
