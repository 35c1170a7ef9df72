"""Calls in a process of their own, whose memory the C library handles as it does where nobody tells it otherwise."""
import multiprocessing

import pyro
import torch

from pyro_advbnn.experiments.measurement import timed


class Elsewhere:
    """`make(*arguments)`, a call, built and timed in another process with as many threads; `make` is found by its name.

    The process lives from the construction until `close`. What fails there fails here, as a RuntimeError.
    """

    def __init__(self, make, *arguments):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, torch.get_num_threads(), make, arguments), daemon=True)
        self._process.start()
        there.close()
        self._answer()

    def timed(self):
        """(wall, CPU) seconds of one call, as `measurement.timed` there."""
        self._pipe.send("call")
        return self._answer()

    def close(self):
        self._pipe.close()
        self._process.join()

    def _answer(self):
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the process of a contestant has ended") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def _serve(pipe, num_threads, make, arguments):
    torch.set_num_threads(num_threads)
    pyro.enable_validation(False)
    try:
        call = make(*arguments)
        pipe.send(None)
        while pipe.recv():
            pipe.send(timed(call, torch.device("cpu")))
    except EOFError:                                     # the other end was closed: nothing is left to do
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
