"""CUDA graphs and torch.compile: the same computation with less work for the host. Both say why where they cannot help."""
from dataclasses import replace
from functools import partial

import torch

from pyro_advbnn import datasets
from pyro_advbnn.attacks.attack import unchecked
from pyro_advbnn.bayes.elbo import objective
from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.system.precision import autocast
from pyro_advbnn.system.random_streams import undisturbed
from pyro_advbnn.training.algorithm1 import gradients
from pyro_advbnn.training.weight_perturbation import buffers_kept


def use_cuda_graphs(choice, device):
    """Whether `--cuda_graphs choice` (auto, on or off) means yes on this device.   Raises InputError for on without a GPU."""
    if choice == "on" and device.type != "cuda":
        raise InputError("--cuda_graphs on needs a GPU")
    return choice != "off" and device.type == "cuda"


def accelerate(training, config):
    """CUDA graphs and torch.compile as far as config asks for them and they work; a line for each that does not."""
    notes = []
    if config["compile"]:
        x, y = next(iter(datasets.batches(training.images, training.images_at_a_time)))
        with autocast(training.device, training.precision):
            failure = compile_network(training.classifier, x, y)
        notes += [f"--compile: not compiled: {failure}"] if failure else []
    if use_cuda_graphs(config["cuda_graphs"], training.device):
        training.take_gradients = GraphedGradients()
        training.attack = training.attack and GraphedAttack(training.attack)
    return notes


class _Graphs:
    """What is done with batches (x, y), as CUDA graphs: one for each key that comes a second time, all for one batch shape.

    What comes once, as the last batch of an epoch in the first, is no reason for a graph. Graphs read the classifier's tensors
    where they lie, so these may change but not move; what they draw, they draw anew, as the device's generator moves on. All
    else is done as usual. failure: why there are no graphs, None as long as nothing went wrong. A capture that fails, of
    whichever of them, leaves the device another generator (`captured`), of which graphs that are there do not know.
    """

    captures_failed = 0

    def __init__(self):
        self.failure, self._graphs, self._came, self._batch, self._made_after = None, {}, set(), None, 0

    def _replay(self, key, run, classifier, x, y):
        """What run(classifier, x, y) returns, in memory that the next replay writes anew; None where there is no graph."""
        key = classifier, tuple(x.shape), key
        if self._made_after != _Graphs.captures_failed:
            self._graphs, self._made_after = {}, _Graphs.captures_failed
        if key not in self._graphs:
            again, fits = key in self._came, self._batch is None or x.shape == self._batch[0].shape
            self._came.add(key)
            if not again or not fits or self.failure is not None:
                return None
            self._batch = self._batch or (x.clone(), y.clone())
            try:
                self._graphs[key] = captured(lambda: run(classifier, *self._batch), classifier, x.device)
            except RuntimeError as error:
                self.failure = reason(error)
                _Graphs.captures_failed += 1
                return None
        graph, result = self._graphs[key]
        for kept, given in zip(self._batch, (x, y), strict=True):
            kept.copy_(given)
        graph.replay()
        return result


class GraphedAttack(_Graphs):
    """`attack`, a callable (classifier, x, y) -> x_adv, as a CUDA graph."""

    def __init__(self, attack):
        super().__init__()
        self.attack = attack
        self._run = unchecked(attack)                    # a check would wait for the device, which no capture can

    def __getattr__(self, name):
        return getattr(self.__dict__["attack"], name)    # its settings, for the records

    def __call__(self, classifier, x, y):
        x_adv = self._replay(None, self._run, classifier, x, y)
        return self._run(classifier, x, y) if x_adv is None else x_adv.clone()


class GraphedGradients(_Graphs):
    """`algorithm1.gradients` of whole batches as CUDA graphs: forward, backward and Pyro's part, one for each weight of the KL.

    A step with `awp` has two. The gradients replace what lies in .grad; they and what is returned hold until the next call.
    """

    def __call__(self, classifier, x, y, *, kl_weight, micro_batch=None, share=1.0):
        found = None
        if micro_batch is None and share == 1:
            found = self._replay(kl_weight, partial(_objective_and_gradients, kl_weight), classifier, x, y)
        if found is None:
            return gradients(classifier, x, y, kl_weight=kl_weight, micro_batch=micro_batch, share=share)
        for parameter, gradient in zip(_trained(classifier), found[1], strict=True):
            parameter.grad = gradient
        return found[0]


def _objective_and_gradients(kl_weight, classifier, x, y):
    trained = _trained(classifier)
    parts = objective(classifier, x, y, kl_weight=kl_weight)
    found = torch.autograd.grad(parts.loss, trained, allow_unused=True)
    return replace(parts, loss=parts.loss.detach()), list(map(_laid_out_like, found, trained))


def _laid_out_like(gradient, parameter):
    """The gradient in memory as its parameter is, which fused optimizers ask for."""
    return None if gradient is None else torch.empty_like(parameter).copy_(gradient)


def _trained(classifier):
    return [p for p in classifier.parameters() if p.requires_grad]


def captured(run, classifier, device):
    """(a CUDA graph of run(), what it returned there).

    What is allocated inside belongs to the graph; what the classifier keeps is released so that nobody else comes to hold
    it.   Raises RuntimeError where run() is nothing for a graph.
    """
    if device.type != "cuda":
        raise RuntimeError(f"the images are on {device.type}")
    with undisturbed(), buffers_kept(classifier):        # what is tried out draws nothing and moves no running statistics
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):                       # kernels are chosen and libraries loaded before the capture
                    run()
        finally:                                         # what was begun before an error still reads memory of this stream
            torch.cuda.current_stream(device).wait_stream(stream)
    classifier.forget()
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[device.index]
    fresh = generator.clone_state()
    try:                                                 # on the stream's device; other threads may copy and pin meanwhile
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = run()
    except RuntimeError:                                 # torch may leave the generator as if the capture still went on
        generator.graphsafe_set_state(fresh)
        raise
    finally:
        classifier.forget()
    return graph, result


def compile_network(classifier, x, y):
    """Have torch.compile translate the classifier's network; None, or why that fails on the batch (x, y).

    Parameters and buffers keep their names and values; a checkpoint does not tell. torch's limit of how often a function is
    compiled anew, which is the process's, becomes 32.
    """
    config = torch._dynamo.config                        # 8: but there are attacks, statistics, draws, for several batch sizes
    config.recompile_limit = max(config.recompile_limit, 32)
    classifier.network.compile()
    try:
        with undisturbed(), buffers_kept(classifier.network):
            torch.nn.functional.cross_entropy(classifier(x).float(), y).backward()
        return None
    except Exception as error:                           # no compiler, an operation that it does not know, ...
        classifier.network._compiled_call_impl = None
        return reason(error)
    finally:
        classifier.zero_grad()
