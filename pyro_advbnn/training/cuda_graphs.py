"""CUDA graphs and torch.compile: the same computation with less work for the host. Both say why where they cannot help."""
from dataclasses import replace

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
        x, y = next(iter(datasets.batches(training.images, training.images_at_a_time, prepare=training.batches.prepare)))
        with autocast(training.device, training.precision):
            failure = compile_network(training.classifier, x, y)
        notes += [f"--compile: not compiled: {failure}"] if failure else []
    if use_cuda_graphs(config["cuda_graphs"], training.device):
        training.gradients = GraphedGradients()
        training.attack = training.attack and GraphedAttack(training.attack)
    return notes


class GraphedAttack:
    """`attack`, a callable (classifier, x, y) -> x_adv, as one CUDA graph that is captured at its first call.

    A replay draws anew whatever the attack draws: the generator of the device moves on with each. The graph reads the
    classifier's tensors where they lie, so these may change but not move. Batches of another shape are attacked as usual.
    failure: why there is no graph, None as long as nothing went wrong.
    """

    def __init__(self, attack):
        self.attack, self.failure = attack, None
        self._run = unchecked(attack)                    # a check would wait for the device, which no capture can
        self._graph = self._classifier = None

    def __getattr__(self, name):
        return getattr(self.__dict__["attack"], name)    # its settings, for the records

    def __call__(self, classifier, x, y):
        if self._graph is None and self.failure is None:
            try:
                self._capture(classifier, x, y)
            except RuntimeError as error:
                self._graph, self.failure = None, reason(error)
        if self.failure is not None or x.shape != self._x.shape or classifier is not self._classifier:
            return self._run(classifier, x, y)
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        return self._x_adv.clone()

    def _capture(self, classifier, x, y):
        self._classifier, self._x, self._y = classifier, x.clone(), y.clone()
        self._graph, self._x_adv = captured(lambda: self._run(classifier, self._x, self._y), classifier, x.device)


class GraphedGradients:
    """`algorithm1.gradients` as CUDA graphs: forward, backward and all of Pyro's between, without the host.

    One is captured for the first batch shape and each of its first two weights of the KL: with `awp` a step takes gradients
    without the KL, too. The gradients lie where the graph has them, until it runs again. All else, micro-batches and parts of
    a joined batch too, is done as usual. failure: as of `GraphedAttack`.
    """

    def __init__(self):
        self.failure, self._graphs, self._x = None, {}, None

    def __call__(self, classifier, x, y, *, kl_weight, micro_batch=None, share=1.0):
        if micro_batch is None and share == 1 and self.failure is None:
            try:
                self._capture(classifier, x, y, kl_weight)
            except RuntimeError as error:
                self.failure = reason(error)
        if (tuple(x.shape), kl_weight, micro_batch, share) not in self._graphs or self.failure is not None:
            return gradients(classifier, x, y, kl_weight=kl_weight, micro_batch=micro_batch, share=share)
        self._x.copy_(x)
        self._y.copy_(y)
        graph, (parts, found) = self._graphs[tuple(x.shape), kl_weight, micro_batch, share]
        graph.replay()
        for parameter, gradient in zip(_trained(classifier), found, strict=True):
            parameter.grad = gradient
        return parts

    def _capture(self, classifier, x, y, kl_weight):
        if self._x is None:
            self._x, self._y = x.clone(), y.clone()
        key = tuple(x.shape), kl_weight, None, 1.0
        if key in self._graphs or len(self._graphs) == 2 or x.shape != self._x.shape:
            return

        def run():
            parts = objective(classifier, self._x, self._y, kl_weight=kl_weight)
            found = torch.autograd.grad(parts.loss, _trained(classifier), allow_unused=True)
            return replace(parts, loss=parts.loss.detach()), list(map(_laid_out_like, found, _trained(classifier)))

        with buffers_kept(classifier.network):           # what is tried out moves no running statistics
            self._graphs[key] = captured(run, classifier, x.device)


def _laid_out_like(gradient, parameter):
    """The gradient in memory as its parameter is, which fused optimizers ask for."""
    return None if gradient is None else torch.empty_like(parameter).copy_(gradient)


def _trained(classifier):
    return [p for p in classifier.parameters() if p.requires_grad]


def captured(run, classifier, device):
    """(a CUDA graph of run(), what it returned there).

    What is allocated inside belongs to the graph; the classifier's work memory is released so that nobody else comes to hold
    it.   Raises RuntimeError where run() is nothing for a graph.
    """
    if device.type != "cuda":
        raise RuntimeError(f"the images are on {device.type}")
    with undisturbed():                                  # what is tried out draws nothing
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):                           # kernels are chosen and libraries loaded before the capture
                run()
        torch.cuda.current_stream(device).wait_stream(stream)
    classifier.release_buffers()
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[device.index]
    fresh = generator.clone_state()
    try:                                                 # on the stream's device; other threads may copy and pin meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = run()
    except RuntimeError:                                 # torch may leave the generator as if the capture still went on
        generator.graphsafe_set_state(fresh)
        raise
    finally:
        classifier.release_buffers()
    return graph, result


def compile_network(classifier, x, y):
    """Have torch.compile translate the classifier's network; None, or why that fails on the batch (x, y).

    Parameters and buffers keep their names and values; a checkpoint does not tell.
    """
    classifier.network.compile()
    state = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    try:
        with undisturbed():
            torch.nn.functional.cross_entropy(classifier(x).float(), y).backward()
        return None
    except Exception as error:                           # no compiler, an operation that it does not know, ...
        classifier.network._compiled_call_impl = None
        return reason(error)
    finally:
        classifier.zero_grad()
        classifier.network.load_state_dict(state)
