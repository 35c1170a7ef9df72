"""python -m pyro_advbnn.reproduce table1|fig2|...|all: the paper's evidence from nothing, each piece by one command.

A plan is a list of `train` and `evaluate` commands that anyone could give by hand. Trainings resume where they were,
evaluations compute only the rows that are not there yet, and reproduce.jsonl tells which commands are finished: the same
command given again goes on, whatever stopped it.
"""
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pyro_advbnn import datasets, networks
from pyro_advbnn.attacks.pgd import pgd
from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.cli import commands
from pyro_advbnn.evaluation.accuracy import predict
from pyro_advbnn.experiments.plans import PIECES, Plan, Reproduction
from pyro_advbnn.reporting import summaries
from pyro_advbnn.system import json_files, locks
from pyro_advbnn.system.devices import resolve_device
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import resolve_precision
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.system.random_streams import separate_randomness
from pyro_advbnn.train import train
from pyro_advbnn.training import configuration, run_folders


def table1(*, of: Reproduction):
    """Table 1: adversarial training and Adv-BNN under PGD, with one and with many draws per gradient."""
    _reproduce(["table1"], of)


def fig2(*, of: Reproduction):
    """Fig. 2: accuracy of the five defences against the radius of the attack."""
    _reproduce(["fig2"], of)


def fig3(*, of: Reproduction):
    """Fig. 3: transfer attacks between the five defences, Eq. (14)."""
    _reproduce(["fig3"], of)


def fig4(*, of: Reproduction):
    """Fig. 4: density of the posterior's log std; and pruning by it, which section 3.3 only promises."""
    _reproduce(["fig4"], of)


def fig5(*, of: Reproduction):
    """Fig. 5: accuracy against the draws of a prediction, and against the steps of the attack."""
    _reproduce(["fig5"], of)


def alpha(*, of: Reproduction):
    """The claim below Table 1 that a smaller alpha buys back clean accuracy: alpha 1, 1/10, 1/50 and 0."""
    _reproduce(["alpha"], of)


def prior(*, of: Reproduction):
    """The claim of Table 2 that the prior's std does not matter: 0.05, 0.1 and 0.15."""
    _reproduce(["prior"], of)


def lipschitz(*, of: Reproduction):
    """The paper's motivation, Eq. (11) to (13): l_1 norm of the input gradient on training and on test images."""
    _reproduce(["lipschitz"], of)


def kl(*, of: Reproduction):
    """Beyond the paper: Adv-BNN with the KL of all weights, from Table 2 as printed to what trains; failures are shown."""
    _reproduce(["kl"], of)


def beyond(*, of: Reproduction):
    """Beyond the paper: a tuned adversarial baseline, Adv-BNNs that start from it, and an ensemble of attacks on them."""
    _reproduce(["beyond"], of)


def everything(*, of: Reproduction):
    """All that the paper shows or claims, and the report."""
    _reproduce(PIECES, of)


def _reproduce(pieces, wanted):
    device = resolve_device(wanted.device)
    one_thread = wanted.scale == "smoke" and device.type == "cpu"       # networks this small lose by a second thread
    with process_settings(1 if one_thread else None):
        _reproduce_on(device, pieces, wanted, one_thread)


def _reproduce_on(device, pieces, wanted, one_thread):
    began = time.monotonic()
    resolve_precision(wanted.precision, device)
    images = _images(wanted)
    _check_numbers(wanted, images)
    plan = Plan(pieces, wanted, len(images["train"]), len(images["test"]), on_gpu=device.type == "cuda")
    if not _Journal(plan).waiting():
        return print(f"nothing to do: all {len(plan.steps)} steps are done; see {plan.out / 'report.html'}")
    with nullcontext() if wanted.dry_run else _alone_in(plan.out):
        journal = _Journal(plan)                         # as it is now that nobody else writes it
        waiting = journal.waiting()
        _print(plan, waiting, _seconds_per_image(plan, images["test"]))
        if one_thread:
            print("on one thread: put OMP_NUM_THREADS=1 before a command to have the same by hand")
        if not wanted.dry_run:
            _run(plan, journal, waiting, began)


def _run(plan, journal, waiting, began):
    """Run the steps that are waiting, to the end or until --max_minutes are over."""
    for step in plan.steps:
        if step.is_training and (step.arguments["out"] / "config.json").exists():
            _refuse_other_run(step.arguments["out"], step.arguments)
    journal.open()
    max_minutes = plan.wanted.max_minutes
    deadline = began + 60 * max_minutes if max_minutes else float("inf")
    if waiting and waiting[-1] is not plan.steps[-1]:
        waiting.append(plan.steps[-1])                   # the report shows what the others have brought
    for number, step in enumerate(waiting, 1):
        print(f"\n[{number}/{len(waiting)}] {step.command}", flush=True)
        if time.monotonic() > deadline or not journal.run(step, deadline):
            return print(f"stopped: --max_minutes {max_minutes:g} are over; the same command goes on")
    for summary in summaries.summaries(plan.out):
        if summary.name.startswith("table1"):
            print(f"\n{summaries.as_text(summary)}")
    print(f"done in {_duration(time.monotonic() - began)}: see {plan.out / 'report.html'}")


def _images(wanted):
    """The two splits, which tell whether the data are there before any work."""
    return {split: datasets.load(wanted.dataset, split, wanted.data_dir) for split in datasets.SPLITS}


@contextmanager
def _alone_in(out):
    """The lock of the results' folder, for the time inside."""
    run_folders.check_writable(out)
    with locks.locked(out):
        yield


def _check_numbers(wanted, images):
    """Raises InputError for more images than there are; those that a scale takes are fewer where the data set is small."""
    for name, split in (("num_train", "train"), ("num_test", "test")):
        asked, there = getattr(wanted, name), len(images[split])
        if asked and asked > there:
            raise InputError(f"--{name} {asked} is more than the {there} {split} images of {wanted.dataset}")


class _Journal:
    """What of a plan is done, in <out>/reproduce.jsonl: one line per finished command. Raises InputError for another plan's."""

    def __init__(self, plan):
        self.path, self.out, self.settings, self._steps = plan.out / "reproduce.jsonl", plan.out, plan.identity, plan.steps
        if not self.path.exists():
            run_folders.refuse_existing(plan.out, hint="")
        lines = json_files.read_jsonl(self.path)
        if lines and lines[0] != {"settings": self.settings}:
            raise InputError(f"{plan.out} holds a reproduction with other flags ({_difference(lines[0], self.settings)}); "
                             f"choose another --out")
        self._done = {line["command"] for line in lines[1:] if isinstance(line.get("command"), str)}

    def open(self):
        """Make the journal, where it is not there yet."""
        if not json_files.read_jsonl(self.path):
            json_files.write_jsonl(self.path, [{"settings": self.settings}])

    def waiting(self):
        """The steps of the plan that are not done, or whose results are lost."""
        return [step for step in self._steps if self._name(step) not in self._done
                or not all(path.exists() for path in step.leaves) or step.is_training and _is_begun(step.arguments["out"])]

    def _name(self, step):
        return step.command.replace(str(self.out), "OUT")   # so that the folder may be moved

    def run(self, step, deadline):
        """Run a step and note it; whether it was finished before the deadline."""
        began = time.monotonic()
        if step.is_training and not _train(step.arguments, deadline):
            return False
        if not step.is_training:
            step.function(**step.arguments)
        self._done.add(self._name(step))
        json_files.append_jsonl(self.path, {"command": self._name(step), "seconds": round(time.monotonic() - began, 1)})
        return True


def _is_begun(folder):
    """Whether a training lies there that is not finished; one whose checkpoint was taken away is as finished as it was."""
    return run_folders.has_checkpoint(folder) and not run_folders.is_finished(folder)


def _difference(before, now):
    before = before.get("settings", {}) if isinstance(before, dict) else {}
    return ", ".join(f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name])


def _train(arguments, deadline):
    """Train, or go on with the training; whether it is finished."""
    folder = arguments["out"]
    minutes = max(deadline - time.monotonic(), 1) / 60
    limit = {} if minutes == float("inf") else {"max_minutes": minutes}
    if not (folder / "config.json").exists():
        train(**arguments, **limit)
        return run_folders.is_finished(folder)
    if not run_folders.is_finished(folder):
        own = {name: arguments[name] for name in ("network", "data_dir") if arguments[name]}
        train(resume=folder, device=arguments["device"], **own, **limit)
    return run_folders.is_finished(folder)


def _refuse_other_run(folder, arguments):
    """Raises InputError where the run in `folder` was not started with these flags; where and how long may differ."""
    flags = configuration.DEFAULTS | run_folders.read_config(folder)["flags"]
    arguments = configuration.DEFAULTS | {name: value for name, value in arguments.items() if value is not None}
    for each in (flags, arguments):                      # the folder of all runs may have been moved
        each["init_from"] = Path(each["init_from"]).name if each.get("init_from") else None
    for name in sorted({*flags, *arguments} - {"out", "device", "data_dir", "max_minutes", "tensorboard"}):
        if flags.get(name) != arguments.get(name):
            raise InputError(f"{folder} was trained with --{name} {flags.get(name)}, not {arguments.get(name)}; choose another "
                             f"--out")


def _seconds_per_image(plan, images):
    """(with a gradient by the image, without) seconds, measured on a few batches of the plan's network."""
    device = resolve_device(plan.wanted.device)
    name = plan.network_for(images.image_shape[-1])
    network = networks.build_network(name, images.num_classes, images.image_shape[0], plan.settings.get("width"))
    configuration.check_memory(network, "advbnn", device)
    classifier = BayesianClassifier(network, 0.05, 0.01).to(device)
    some = images.take(range(min(100, len(images)))).in_memory().to(device)
    x, y = some.images.float() / 255, some.labels
    with separate_randomness(0):
        pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=1).cpu()      # warms up; .cpu() waits for a GPU
        times = [time.perf_counter()]
        pgd(classifier, x, y, epsilon=0.1, step_size=0.1, num_steps=3).cpu()
        times.append(time.perf_counter())
        predict(classifier, x, num_samples=3).cpu()
        times.append(time.perf_counter())
    return [(end - start) / (3 * len(x)) for start, end in zip(times, times[1:], strict=False)]


def _print(plan, waiting, seconds):
    """The plan, with the time that each step may take."""
    cost = {step.command: step.gradients * seconds[0] + step.forwards * seconds[1] for step in plan.steps}
    print(f"{len(plan.steps)} steps to {plan.out}, {len(plan.steps) - len(waiting)} of them done; about "
          f"{_duration(sum(cost[step.command] for step in waiting))} on this machine, by a measurement of single batches")
    for step in plan.steps:
        state = _duration(cost[step.command]) if step in waiting else "done"
        print(f"{state:>9}  {step.command}")


def _duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


VERBS = {"table1": table1, "fig2": fig2, "fig3": fig3, "fig4": fig4, "fig5": fig5, "alpha": alpha, "prior": prior,
         "lipschitz": lipschitz, "kl": kl, "beyond": beyond, "all": everything}


def main(argv=None, under=""):
    """The command, for words that are given or those of the process.   under: as of `cli.run`."""
    commands.run(VERBS, argv, under=under, way_on="the same command goes on")


if __name__ == "__main__":
    main()
