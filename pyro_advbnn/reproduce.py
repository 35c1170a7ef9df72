"""python -m pyro_advbnn.reproduce table1|fig2|...|all: the paper's evidence from nothing, each piece by one command.

A plan is a list of `train` and `evaluate` commands that anyone could give by hand. Trainings resume where they were,
evaluations compute only the rows that are not there yet, and reproduce.jsonl tells which commands are finished: the same
command given again goes on, whatever stopped it.
"""
import time
from contextlib import nullcontext

from pyro_advbnn import datasets, evaluate, networks
from pyro_advbnn.cli import commands
from pyro_advbnn.cli.text_tables import duration
from pyro_advbnn.experiments import costs
from pyro_advbnn.experiments.journal import Journal
from pyro_advbnn.experiments.plans import PIECES, Plan
from pyro_advbnn.experiments.scales import Reproduction
from pyro_advbnn.reporting import summaries
from pyro_advbnn.system import locks
from pyro_advbnn.system.devices import resolve_device
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import resolve_precision
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.train import train
from pyro_advbnn.training import construction, run_folders

_TOLD = {
    "table1": "Table 1: adversarial training and Adv-BNN under PGD, with one and with many draws per gradient.",
    "fig2": "Fig. 2: accuracy of the five defences against the radius of the attack.",
    "fig3": "Fig. 3: transfer attacks between the five defences, Eq. (14).",
    "fig4": "Fig. 4: density of the posterior's log std; and pruning by it, which section 3.3 only promises.",
    "fig5": "Fig. 5: accuracy against the draws of a prediction, and against the steps of the attack.",
    "alpha": "The claim below Table 1 that a smaller alpha buys back clean accuracy: alpha 1, 1/10, 1/50 and 0.",
    "prior": "The claim of Table 2 that the prior's std does not matter: 0.05, 0.1 and 0.15.",
    "lipschitz": "The paper's motivation, Eq. (11) to (13): l_1 norm of the input gradient on training and on test images.",
    "kl": "Beyond the paper: Adv-BNN with the KL of all weights, from Table 2 as printed to what trains; failures are shown.",
    "beyond": "Beyond the paper: a tuned adversarial baseline, Adv-BNNs that start from it, an ensemble of attacks on them.",
    "all": "All that the paper shows or claims, and the report.",
}


def _verb(name):
    def verb(*, of: Reproduction):
        _reproduce(PIECES if name == "all" else [name], of)

    verb.__doc__ = _TOLD[name]
    return verb


VERBS = {name: _verb(name) for name in _TOLD}


def _reproduce(pieces, wanted):
    device = resolve_device(wanted.device)
    one_thread = wanted.scale == "smoke" and device.type == "cpu"       # networks this small lose by a second thread
    with process_settings(1 if one_thread else None):
        plan, images = _plan(pieces, wanted, device)
        if not Journal(plan).waiting():
            return print(f"nothing to do: all {len(plan.steps)} steps are done; see {plan.out / 'report.html'}")
        with nullcontext() if wanted.dry_run else locks.locked(plan.out):
            journal = Journal(plan)                      # as it is now that nobody else writes it
            _print(plan, journal.waiting(), _seconds_per_gradient(plan, images, device))
            if one_thread:
                print("on one thread: put OMP_NUM_THREADS=1 before a command to have the same by hand")
            if not wanted.dry_run:
                _run(plan, journal)


def _plan(pieces, wanted, device):
    """The plan, and the test images.   Raises InputError where there are no data, or fewer than asked for."""
    resolve_precision(wanted.precision, device)
    images = {split: datasets.load(wanted.dataset, split, wanted.data_dir) for split in datasets.SPLITS}
    for name, split in (("num_train", "train"), ("num_test", "test")):
        asked, there = getattr(wanted, name), len(images[split])
        if asked and asked > there:                      # a scale takes fewer where the data set is small
            raise InputError(f"--{name} {asked} is more than the {there} {split} images of {wanted.dataset}")
    on_gpu = device.type == "cuda"
    return Plan(pieces, wanted, len(images["train"]), len(images["test"]), on_gpu=on_gpu), images["test"]


def _run(plan, journal):
    """Run the steps that are waiting, to the end or until --max_minutes are over."""
    journal.open()
    began = time.monotonic()
    max_minutes = plan.wanted.max_minutes
    deadline = began + 60 * max_minutes if max_minutes else float("inf")
    waiting = journal.waiting()
    if waiting and waiting[-1] is not plan.steps[-1]:
        waiting.append(plan.steps[-1])                   # the report shows what the others have brought
    for number, step in enumerate(waiting, 1):
        print(f"\n[{number}/{len(waiting)}] {step.command}", flush=True)
        step_began = time.monotonic()
        if step_began > deadline or not _run_step(step, deadline):
            return print(f"stopped: --max_minutes {max_minutes:g} are over; the same command goes on")
        journal.note(step, time.monotonic() - step_began)
    for summary in summaries.summaries(plan.out):
        if summary.name.startswith("table1"):
            print(f"\n{summary.as_text()}")
    print(f"done in {duration(time.monotonic() - began)}: see {plan.out / 'report.html'}")


def _run_step(step, deadline):
    """Whether the step was finished before the deadline."""
    flags = {name: value for name, value in step.flags.items() if value is not None}
    if not step.is_training:
        evaluate.VERBS[step.program.removeprefix("evaluate ")](**flags)
        return True
    folder = flags["out"]
    if deadline < float("inf"):
        flags["max_minutes"] = max(deadline - time.monotonic(), 1) / 60
    if (folder / "config.json").exists():
        own = ("device", "network", "data_dir", "max_minutes")
        flags = {"resume": folder} | {name: flags[name] for name in own if name in flags}
    if not run_folders.is_finished(folder):
        train(**flags)
    return run_folders.is_finished(folder)


def _seconds_per_gradient(plan, images, device):
    """`costs.seconds_per_gradient` of the plan's network."""
    name = plan.network_for(images.image_shape[-1])
    architecture = name, images.num_classes, images.image_shape[0], plan.settings.get("width")
    construction.check_memory(architecture, "advbnn", device)
    return costs.seconds_per_gradient(networks.build_network(*architecture).to(device), images)


def _print(plan, waiting, seconds):
    """The plan, with the time that each step may take."""
    total = sum(seconds * step.gradients for step in waiting)
    print(f"{len(plan.steps)} steps to {plan.out}, {len(plan.steps) - len(waiting)} of them done; about {duration(total)} on "
          f"this machine, by a measurement of single batches")
    for step in plan.steps:
        state = duration(seconds * step.gradients) if step in waiting else "done"
        print(f"{state:>12}  {step.command}")


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `cli.run`."""
    commands.run(VERBS, argv, under=under, way_on="the same command goes on")


if __name__ == "__main__":
    main()
