"""Work on vectors of many million weights: chunks that stay in the cache, normals from several threads.

On the CPU a fresh 59 MB temporary (the 14.7 million weights of a VGG16) costs three to four times what the arithmetic on
it costs, in page faults. So a draw with its KL and its gradients go chunk by chunk.
"""
import math
from concurrent.futures import ThreadPoolExecutor

import torch

try:                                                     # compiled at installation, where there is a C compiler
    from pyro_advbnn.bayes.kernels import _normals  # type: ignore[attr-defined]
except ImportError:
    _normals = None

_CPU_CHUNK = 1 << 17          # floats: large enough to share among threads, small enough for a second-level cache
_GPU_CHUNK = 1 << 26          # a GPU wants few large kernels
_STREAM = 1 << 14             # normals that `_normals` makes from one seed
SHARE = 64 * _STREAM          # floats to one thread at a time
_LONG = 8 * _STREAM           # floats from which on compiled code is worth its call


def chunks(start, stop, device, size):
    """Slices of at most `size` numbers, without it one chunk, that cover [start, stop)."""
    size = size or (_CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK)
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]


def standard_normal_(out):
    """Fill the contiguous tensor `out` with N(0, 1) draws and return it.

    All randomness comes from torch's global generator of out's device. A long CPU vector takes from it only the seed of
    `_normals` (six times as fast), where that was compiled; the numbers do not depend on the number of threads.
    """
    vector = out.view(-1)
    if _normals is not None and are_long(vector):
        _fill(vector)
        return out
    return out.normal_()


def normal_(out, mean, std):
    """Fill the vector `out` with draws from N(mean, std^2), by the numbers of `standard_normal_`, and return it.

    mean, std: like out, contiguous.
    """
    if _normals is not None and are_long(out, mean, std):
        return _fill(out, mean, std)
    return torch.addcmul(mean, std, standard_normal_(out), out=out)


def how_normals_are_drawn():
    """For the records of a run: equal seeds give equal long draws only where these are made alike."""
    return "torch" if _normals is None else "xoshiro128++, compiled"


def are_long(*vectors):
    """Whether passes over them are worth compiled code, which takes contiguous float32 on the CPU alone."""
    return len(vectors[0]) > _LONG and all(
        (v.device.type, v.dtype, v.is_contiguous()) == ("cpu", torch.float32, True) for v in vectors)


def addresses(start, *vectors):
    """Where the number `start` of each vector is in memory."""
    return [vector.data_ptr() + start * vector.element_size() for vector in vectors]


def _fill(vector, *mean_and_std):
    key = int(torch.randint(2**63 - 1, ()))

    def piece(start):
        address, *given = addresses(start, vector, *mean_and_std)
        _normals.fill(address, min(SHARE, len(vector) - start), key, start // _STREAM, *(given or (0, 0)))

    in_threads(piece, range(0, len(vector), SHARE))
    return vector


def in_threads(function, arguments):
    """[function(argument), ...], in at most as many threads as torch uses."""
    arguments = list(arguments)
    workers = min(torch.get_num_threads(), len(arguments))
    if workers < 2:
        return list(map(function, arguments))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, arguments))


def in_transform():
    """Whether torch.func, torch.compile or torch.export looks on, which know torch's own operations alone."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def unflatten(vector, shapes):
    """The vector as views of the given shapes, in order."""
    views = vector.split([math.prod(shape) for shape in shapes])
    return tuple(view.view(shape) for view, shape in zip(views, shapes, strict=True))
