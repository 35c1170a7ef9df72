"""CUDA graphs and torch.compile: the same computation with less work for the host. Both say why where they cannot help."""
import torch

from pyro_advbnn import datasets
from pyro_advbnn.attacks.attack import unchecked
from pyro_advbnn.system.errors import InputError, reason
from pyro_advbnn.system.precision import autocast
from pyro_advbnn.system.random_streams import undisturbed


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
    if training.attack and use_cuda_graphs(config["cuda_graphs"], training.device):
        training.attack = GraphedAttack(training.attack)
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
        """What is allocated inside belongs to the graph; work memory is released so that nobody else comes to hold it."""
        self._classifier, self._x, self._y = classifier, x.clone(), y.clone()
        if x.device.type != "cuda":
            raise RuntimeError(f"the images are on {x.device.type}")
        with undisturbed():                              # what is tried out draws nothing
            stream = torch.cuda.Stream(x.device)
            stream.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(stream):
                for _ in range(3):                       # kernels are chosen and libraries loaded before the capture
                    self._run(classifier, self._x, self._y)
            torch.cuda.current_stream(x.device).wait_stream(stream)
        classifier.release_buffers()
        graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[x.device.index]
        fresh = generator.clone_state()
        try:                                             # on the stream's device; other threads may copy and pin meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._x_adv = self._run(classifier, self._x, self._y)
        except RuntimeError:                             # torch may leave the generator as if the capture still went on
            generator.graphsafe_set_state(fresh)
            raise
        finally:
            classifier.release_buffers()
        self._graph = graph


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
