"""A reproduction at work: the steps of a plan that are not done yet, in turn or side by side, and how long they may take."""
import hashlib
import itertools
import shlex
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from pyro_advbnn import datasets, networks
from pyro_advbnn.cli import help
from pyro_advbnn.cli.text_tables import counted, duration
from pyro_advbnn.datasets.cache import update_with_names
from pyro_advbnn.datasets.folders import list_folder
from pyro_advbnn.evaluation import worst_case
from pyro_advbnn.experiments import costs, scales
from pyro_advbnn.experiments.plans import PIECES, Plan
from pyro_advbnn.reporting import summaries
from pyro_advbnn.reporting.csv_tables import Table
from pyro_advbnn.system import json_files, locks
from pyro_advbnn.system.children import Children
from pyro_advbnn.system.devices import resolve_device
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import resolve_precision
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.training import construction, run_folders


def run(piece, wanted, programs, **more):
    """Make a piece of evidence, or "all", as a `scales.Reproduction` wants it.

    programs: {`Step.program`: function}. more: arguments of the `Plan`.
    """
    device = resolve_device(wanted.device)
    one_thread = scales.of(wanted) == "smoke" and device.type == "cpu"  # networks this small lose by a second thread
    with process_settings(1 if one_thread else None):
        plan, images = _plan(PIECES if piece == "all" else [piece], wanted, device, **more)
        if not Journal(plan).waiting():
            return print(f"nothing to do: all {len(plan.steps)} steps are done; see {plan.out / 'report.html'}")
        with nullcontext() if wanted.dry_run else locks.locked(plan.out):
            journal = Journal(plan)                      # as it is now that nobody else writes it
            with process_settings(_share(wanted.jobs)):
                _print(plan, journal.waiting(), device, *_seconds_per_gradient(plan, images, device))
            if one_thread:
                print("on one thread: put OMP_NUM_THREADS=1 before a command to have the same by hand")
            if not wanted.dry_run:
                _run(plan, journal, programs)


def _share(jobs):
    """The threads of each of so many processes, all of them where it is one."""
    return max(1, torch.get_num_threads() // jobs)


def _plan(pieces, wanted, device, **more):
    """The plan, and the test images.   Raises InputError where there are no data, or fewer than asked for."""
    resolve_precision(wanted.precision, device)
    images = {split: datasets.load(wanted.dataset, split, wanted.data_dir, image_size=wanted.image_size)
              for split in datasets.SPLITS}
    for name, split in (("num_train", "train"), ("num_test", "test")):
        asked, there = getattr(wanted, name), len(images[split])
        if asked and asked > there:                      # a scale takes fewer where the data set is small
            raise InputError(f"--{name} {asked} is more than the {there} {split} images of {wanted.dataset}")
    plan = Plan(pieces, wanted, len(images["train"]), len(images["test"]), on_gpu=device.type == "cuda",
                digest=_digest(wanted, images), **more)
    return plan, images["test"]


def _digest(wanted, images):
    """A digest of images of the user's own, None for others: of a folder's by name and size, as memory may not hold them."""
    if wanted.dataset not in ("npz", "folder"):
        return None
    digest = hashlib.sha256()
    for split in datasets.SPLITS:
        if wanted.dataset == "folder":
            update_with_names(digest, list_folder(wanted.data_dir, split)[0])
        else:
            images[split].update_hash(digest)
    return digest.hexdigest()[:12]


class Journal:
    """What of a plan is done: <out>/reproduce.jsonl, a line of the plan's settings and one per command that is finished.

    Raises InputError where the plan's folder holds another plan's, or something else.
    """

    def __init__(self, plan):
        self.path, self.plan = plan.out / "reproduce.jsonl", plan
        if not self.path.exists():
            run_folders.refuse_existing(plan.out, hint="")
        lines = json_files.read_jsonl(self.path)
        if lines and lines[0] != {"settings": plan.identity}:
            raise InputError(f"{plan.out} holds a reproduction with other flags ({_difference(lines[0], plan.identity)}); "
                             f"choose another --out")
        self._done = {str(line.get("command")) for line in lines[1:]}

    def open(self):
        """Make the journal, where it is not there yet."""
        if not json_files.read_jsonl(self.path):
            json_files.write_jsonl(self.path, [{"settings": self.plan.identity}])

    def waiting(self):
        """The steps of the plan that are not done, whose results are lost, or whose runs are to be trained."""
        waiting, to_train = [], set()
        for step in self.plan.steps:
            unfinished = step.is_training and not run_folders.is_finished(step.flags["out"])     # its epochs were raised since
            lost = not all(path.exists() for path in step.leaves)
            anew = not step.is_training and to_train & _needed(step)
            if self._name(step) not in self._done or lost or unfinished or anew:
                waiting.append(step)
                to_train |= {step.flags["out"]} if step.is_training else set()
        return waiting

    def note(self, step, seconds):
        """The step is done, which took `seconds`."""
        json_files.append_jsonl(self.path, {"command": self._name(step), "seconds": round(seconds, 1)})

    def _name(self, step):
        return step.command.replace(str(self.plan.out), "OUT")           # so that the folder may be moved


def _difference(before, now):
    before = before.get("settings", {})
    return ", ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in before | now
                     if before.get(name) != now.get(name))


def _run(plan, journal, programs):
    """Run the steps that are waiting, to the end or until --max_minutes are over, and say how it ended."""
    journal.open()
    began = time.monotonic()
    max_minutes = plan.wanted.max_minutes
    deadline = began + 60 * max_minutes if max_minutes else float("inf")
    waiting = journal.waiting()
    if waiting and waiting[-1] is not plan.steps[-1]:
        waiting.append(plan.steps[-1])                   # the report shows what the others have brought
    with Children(_share(plan.wanted.jobs)) as trainings:
        finished = _work_off(waiting, trainings, plan, journal, deadline, programs)
    if not finished:
        return print(f"stopped: --max_minutes {max_minutes:g} are over; the same command goes on")
    for summary in summaries.summaries(plan.out):
        if summary.name.startswith(("table1", "gains")):
            print(f"\n{summary.as_text()}")
    print(f"done in {duration(time.monotonic() - began)}: see {plan.out / 'report.html'}")


def _work_off(waiting, trainings, plan, journal, deadline, programs):
    """Whether all steps were done before the deadline.

    With --jobs above 1 a training is one of `trainings`, a `Children`. What this process does itself has a job, too; where
    none is free, or what comes next needs a run that is not there yet, it waits for one of them.
    """
    count, jobs = len(waiting), plan.wanted.jobs
    while waiting or trainings.tasks:
        step = _next(waiting, trainings.tasks) if len(trainings.tasks) < jobs else None
        if time.monotonic() > deadline:
            return False
        if step is None:
            step, seconds = _ended(trainings)
        else:
            waiting.remove(step)
            print(f"\n[{count - len(waiting)}/{count}] {step.command}", flush=True)
            if jobs > 1 and step.is_training and not run_folders.is_finished(step.flags["out"]):
                words = shlex.split(help.typed("pyro_advbnn.train", _training_flags(step, deadline)))[1:]
                trainings.start(step, words, _log(step))
                continue
            began = time.monotonic()
            if step is plan.steps[-1] and plan.pairs:
                write_gains(plan.out, plan.pairs)
            with process_settings(trainings.num_threads if trainings.tasks else None):
                _run_step(step, deadline, programs)
            seconds = time.monotonic() - began
        if step.is_training and not run_folders.is_finished(step.flags["out"]):
            return False
        journal.note(step, seconds)
    return True


def _ended(trainings):
    """(the next training that ends, how many seconds it took).   Raises InputError where it failed."""
    step, code, seconds = trainings.wait_for_one()
    if code:
        raise InputError(f"the training of {step.flags['out']} ended with code {code}: {_last_line(_log(step))}; all that it "
                         f"said is in {_log(step)}")
    print(f"{step.flags['out']}: {_last_line(_log(step))}", flush=True)
    return step, seconds


def _next(waiting, at_work):
    """The first of the waiting steps whose runs are all trained, or None; the report comes last of all."""
    unfinished = {step.flags["out"] for step in [*waiting, *at_work] if step.is_training}
    for step in waiting:
        if not unfinished & _needed(step) and (len(waiting) == 1 and not at_work or step.program != "evaluate report"):
            return step


def _needed(step):
    """The run folders that a step reads."""
    return {*(step.flags.get("runs") or step.flags.get("mixture") or [step.flags.get("init_from")])}


def _log(step):
    """The file for the output of a training beside others."""
    folder = step.flags["out"]
    return folder.parents[1] / "logs" / f"{folder.name}.log"


def _last_line(path):
    lines = path.read_text(errors="replace").split("\n")
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.strip()), "it said nothing")


def write_gains(folder, pairs):
    """Add a row to folder/evaluation/gains.csv for each of `Plan.pairs`, from the rows of `evaluate robust` there.

    The interval of each holds for all names of pairs at once.
    """
    comparisons = len({pair["pair"] for pair in pairs})
    with locks.locked(folder / "evaluation"):
        robust, examples, gains = (Table(folder, name) for name in ("robust", "robust_examples", "gains"))
        found = [[_images(examples, result) for result in _made_alike(robust, pair)] for pair in pairs]
        gains.add([pair | worst_case.gain(*images, comparisons) for pair, images in zip(pairs, found, strict=True)])


def _made_alike(robust, pair):
    """The rows of the contender and of the control that were made alike, by the most draws per gradient."""
    contenders, controls = (_finished(robust, pair[role], pair["epsilon"]) for role in ("contender", "control"))
    for contender, control in itertools.product(contenders, controls):
        if _measured(contender) == _measured(control):
            return contender, control
    raise InputError(f"{robust.path} holds no results that were made alike for {pair['contender']} and {pair['control']}")


def _finished(robust, name, epsilon):
    """The finished results of a run, by the most draws per gradient first, of equally many the newest."""
    rows = [row for row in robust.select(run=name, epsilon=epsilon) if row["tried"] == row["attacks"]]
    return sorted(reversed(rows), key=lambda row: -(row["attack_samples"] or 1))


def _images(examples, result):
    """The rows of a result's images, of every attack of its ensemble."""
    rows = examples.select(**{name: result[name] for name in examples.columns if name in result})
    return [row for row in rows if row["attack"] in (worst_case.CLEAN, *result["attacks"].split())]


def _measured(row):
    """What two rows of `evaluate robust` must share to be compared; of attacks on stand-ins the targeted ones at the mean."""
    columns = ("dataset", "network", "images", "norm", "num_steps", "num_queries")
    names = [name.removesuffix("@mean") if name.startswith("apgd-t") else name for name in row["attacks"].split()]
    return *(row[name] for name in columns), Path(row["checkpoint"]).name, {name for name in names if "@" not in name}


def _run_step(step, deadline, programs):
    """Run a step in this process; a training may be left unfinished at the deadline."""
    if not step.is_training:
        programs[step.program](**{name: value for name, value in step.flags.items() if value is not None})
    elif not run_folders.is_finished(step.flags["out"]):
        programs[step.program](**_training_flags(step, deadline))


def _training_flags(step, deadline):
    """The flags with which a training begins, or goes on."""
    flags = {name: value for name, value in step.flags.items() if value is not None}
    folder = flags["out"]
    if deadline < float("inf"):
        flags["max_minutes"] = max(deadline - time.monotonic(), 1) / 60
    if (folder / "config.json").exists():
        own = ("device", "network", "data_dir", "max_minutes")
        flags = {"resume": folder} | {name: flags[name] for name in own if name in flags}
    return flags


def _seconds_per_gradient(plan, images, device):
    """`costs.seconds_per_gradient` of the plan's network, in the precision of its trainings and in that of evaluations."""
    name = plan.network_for(min(images.image_shape[-2:]))
    architecture = name, images.num_classes, images.image_shape[0], plan.settings.get("width")
    construction.check_memory(architecture, "advbnn", device)
    network = networks.build_network(*architecture)
    construction.logits_of_first(network, images)
    network.to(device)
    evaluated = costs.seconds_per_gradient(network, images)
    return evaluated if plan.precision == "fp32" else costs.seconds_per_gradient(network, images, plan.precision), evaluated


def _print(plan, waiting, device, trained, evaluated):
    """The plan, with the time that each step may take.   trained, evaluated: seconds of a gradient."""
    def seconds(step):
        return step.gradients * (trained if step.is_training else evaluated)

    jobs = plan.wanted.jobs
    at_once = jobs if device.type == "cpu" else 1        # a GPU is shared
    total = sum(seconds(step) / (at_once if step.is_training else 1) for step in waiting)
    side_by_side = f", {jobs} trainings at once on {counted(torch.get_num_threads(), 'thread')} each" if jobs > 1 else ""
    print(f"{len(plan.steps)} steps to {plan.out}, {len(plan.steps) - len(waiting)} of them done; about {duration(total)} on "
          f"this machine{side_by_side}, by a measurement of single batches")
    for step in plan.steps:
        state = duration(seconds(step)) if step in waiting else "done"
        print(f"{state:>12}  {step.command}")
