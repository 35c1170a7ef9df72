"""Functions in processes of their own; commands there for tests to kill: from outside, or by themselves at a certain call."""
import importlib
import io
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from tqdm import tqdm

from pyro_advbnn.cli import commands
from pyro_advbnn.training import loop

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["pyro_advbnn.train", "pyro_advbnn.evaluate", "pyro_advbnn.reproduce", "pytest",
                                   "sklearn.datasets", "torchvision.datasets",
                                   "torch._dynamo"])     # by optimizers, in seconds that no process needs to spend anew
PATIENCE = 120                                           # seconds, on a machine that others use too


def in_a_process(function, *arguments):
    """What function(*arguments) returns in a process of its own, in which all that commands need is imported."""
    with ProcessPoolExecutor(1, mp_context=FORKSERVER) as pool:
        return pool.submit(function, *arguments).result(timeout=PATIENCE)


class Victim:
    """`cli.run(verbs, words)` in a process, verbs as "module:name"; fault: (function, number of the call, when).

    when: "before" or "after" the call, or "inside": half of what torch.save would write is written; then the process kills
    itself. "hang": it hangs there instead, for a signal to come, and the file `hangs` appears beside out.
    """

    def __init__(self, verbs, words, out, fault=None, every_step=False):
        self.out = Path(out)
        self.hangs = self.out.with_name(f"{self.out.name}-hangs")
        self.process = FORKSERVER.Process(target=_be, args=(verbs, list(map(str, words)), self.out, fault, every_step))
        self.process.start()

    def send(self, number):
        os.kill(self.process.pid, number)

    def end(self):
        """The exit code; -9 after SIGKILL."""
        self.process.join(PATIENCE)
        self._give_up_unless(self.process.exitcode is not None)
        return self.process.exitcode

    def wait_for(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self._give_up_unless(self.process.exitcode is None and time.monotonic() < deadline)
            time.sleep(0.005)

    def _give_up_unless(self, good):
        if not good:
            self.process.kill()                          # or the tests that come later would find it
            self.process.join()
            raise AssertionError(f"the process does not do what it should: {self.said()}")

    def said(self):
        return self.out.read_text() if self.out.exists() else ""


def _be(verbs, words, out, fault, every_step):
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())                     # a kill would leave its own, of which a warning would tell
    signal.signal(signal.SIGINT, signal.default_int_handler)         # where the tests run in the background it is ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    module, name = verbs.split(":")
    module = importlib.import_module(module)
    if every_step:                                       # a checkpoint after each step, not each ten minutes
        loop.SECONDS_BETWEEN_CHECKPOINTS = -1
    if fault:
        _set(*fault, out)
    with out.open("w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        commands.run(getattr(module, name), words)


def _set(function, call, when, out):
    owner, name = {"os": os, "torch": torch}[function.split(".")[0]], function.split(".")[1]
    real, calls = getattr(owner, name), 0

    def faulty(*arguments, **more):
        nonlocal calls
        calls += 1
        if calls != call:
            return real(*arguments, **more)
        if when == "after":
            real(*arguments, **more)
        if function == "torch.save" and when in ("inside", "hang"):
            whole = io.BytesIO()
            real(arguments[0], whole)
            arguments[1].write(whole.getvalue()[: whole.tell() // 2])
            arguments[1].flush()
        if when == "hang":
            out.with_name(f"{out.name}-hangs").touch()
            time.sleep(PATIENCE)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, faulty)
