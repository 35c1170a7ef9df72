"""Several processes of one training, as torchrun would start them, on the CPU with gloo."""
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from tempfile import TemporaryFile

import tiny_runs
import torch
from victims import FORKSERVER, PATIENCE

from pyro_advbnn.cli import commands
from pyro_advbnn.system import distributed
from pyro_advbnn.train import train

TINY = tiny_runs.TINY | {"num_train": 88, "validation": 21}         # a last batch of 17 images, one more for rank 0


def processes(function, *arguments, world=2, tasks=None, **environment):
    """What function(*arguments) returns in each of the processes that torchrun would start, in their order.

    tasks: 1 has each process end after it, as torchrun's do, by which the others see that it is lost.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        environment |= {"WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1]}
    with ProcessPoolExecutor(world, mp_context=FORKSERVER, max_tasks_per_child=tasks) as pool:
        futures = [pool.submit(_as_rank, rank, environment, function, arguments) for rank in range(world)]
        return [future.result(timeout=PATIENCE) for future in futures]


def _as_rank(rank, environment, function, arguments):
    torch.set_num_threads(1)
    os.environ |= {name: str(value) for name, value in {**environment, "RANK": rank, "LOCAL_RANK": rank}.items()}
    return function(*arguments)


def group(function, *arguments, world=2):
    """What function(*arguments) returns in each process of a group; no process leaves it before all have come."""
    return processes(distributed.run, _then_together, function, *arguments, world=world)


def _then_together(function, *arguments):
    result = function(*arguments)
    distributed.sum_(torch.zeros(()))
    return result


def command(verbs, words, **how):
    """(exit code, stdout, stderr) of a command line."""
    code = 0
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err, redirect_stdout(out), redirect_stderr(err):
        try:
            commands.run(verbs, list(map(str, words)), **how)
        except SystemExit as end:
            code = end.code
        return code, *((file.seek(0), file.read())[1] for file in (out, err))


def command_in_group(function, *arguments):
    return command(lambda: distributed.run(function, *arguments), [], processes=True)


def train_command(words):
    return command(train, words, processes=True)


def words(folder, **flags):
    return tiny_runs.words({**TINY, **flags, "out": folder})
