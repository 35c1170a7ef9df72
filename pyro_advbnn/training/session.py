"""One training from its flags to its end: what can be refused is refused, the run folder is locked, and it trains."""
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from pyro_advbnn.cli import signals
from pyro_advbnn.system import distributed, json_files, locks
from pyro_advbnn.system.devices import describe_device, only_deterministic
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.system.precision import float32_products
from pyro_advbnn.system.process_settings import process_settings
from pyro_advbnn.training import configuration, construction, cuda_graphs, loop, run_folders
from pyro_advbnn.training.flags import MAY_CHANGE_ON_RESUME


@process_settings()
def start(flags, at_end=None):
    """Collective: train as flags say, those of `train` that are given, by name.

    at_end: a function of the run folder, called in the first process when the training has ended or stopped, but for a second
    signal.
    """
    dry, max_minutes = flags.pop("dry_run", False), flags.get("max_minutes")
    with distributed.together():
        folder, resumed, flags = _place(flags)
    with nullcontext() if dry else _alone_in(folder):
        config, training, held_out, best = _prepare(folder, resumed, flags)
        if dry:
            return print(json_files.as_json(config))
        _open(folder, config, training, resumed)
        _train(folder, config, training, held_out, best, max_minutes, at_end)


def _place(flags):
    """(run folder, whether a run goes on there, the other flags), checked as far as nothing has to be loaded."""
    others = {name: value for name, value in flags.items() if name not in ("out", "resume")}
    if "resume" in flags:
        run_folders.read_config(flags["resume"])         # no lock is left in a folder that is no run
        return flags["resume"], True, others | ({"out": flags["out"]} if "out" in flags else {})
    if "out" not in flags and distributed.launched():
        raise InputError("under torchrun --out or --resume must be given: the processes share a folder, also when started anew")
    known = configuration.DEFAULTS | flags
    folder = Path("runs") / f"{known['dataset']}-{known['defense']}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = flags.get("out", folder)
    if not _is_this_jobs(folder, others):
        run_folders.refuse_existing(folder)
        return folder, False, others
    if run_folders.is_finished(folder):
        print(f"{folder} is finished")
        distributed.leave()
    return folder, True, {name: value for name, value in others.items() if name in MAY_CHANGE_ON_RESUME}


def _is_this_jobs(folder, flags):
    """Whether the run in `folder` is the one that these flags began, and torchrun has started its processes anew."""
    if not distributed.launched() or not (folder / "config.json").exists():
        return False
    config = run_folders.read_config(folder)
    return distributed.is_this_job(config["job"]) and not configuration.changed_flags(config, flags)


@contextmanager
def _alone_in(folder):
    """Collective: the lock of the run folder, which the first process has for all."""
    with ExitStack() as stack:
        with distributed.together():
            if distributed.is_main():
                stack.enter_context(locks.locked(folder))
        yield


def _prepare(folder, resumed, flags):
    """Collective: (config, training, held-out images, best so far), everything checked, nothing written."""
    with distributed.together():
        if resumed:
            config, training, held_out, best = configuration.resume(folder, flags)
            if run_folders.out_of_patience(best, training.epochs_done, config["patience"]):
                raise InputError(f"{folder} has had no better held-out accuracy for {training.epochs_done - best['epoch']}"
                                 f" epochs; a larger --patience goes on")
        else:
            config, images, held_out = configuration.configure(flags)
            training, best = construction.build(config, images), None
    distributed.require_same(
        [config["images_sha256"], str(folder), training.epochs_done, training.steps_done],
        "the machines do not see the same images and the same run folder; both must lie where all of them can read")
    return config, training, held_out, best


def _open(folder, config, training, resumed):
    """Make the run folder, or write the config of a run that goes on."""
    if not distributed.is_main():
        return
    if not resumed:
        return run_folders.create(folder, config)
    run_folders.reopen(folder, config, training.epochs_done)
    now, then = describe_device(training.device), config["environment"].get("device")
    if config["deterministic"] and now != then:
        print(f"note: the run began on {then}, this is {now}: its end will not have the same bits")
    if not training.progress:
        print(f"{folder} has trained nothing yet and starts from the beginning")


def _train(folder, config, training, held_out, best, max_minutes, at_end):
    """Collective: train to the end, or until a signal asks to stop, which then is raised: the run is saved."""
    for classifier in dict.fromkeys([training.classifier, training.result]):
        distributed.broadcast_([*classifier.parameters(), *classifier.buffers()])
    with only_deterministic(config["deterministic"]), float32_products(config["precision"]), signals.asking() as asked:
        for note in cuda_graphs.accelerate(training, config):
            print(note)
        try:
            finished = loop.run(folder, config, training, held_out, best, max_minutes, asked)
        except InputError:                               # numbers that went wrong have a course, too
            _end(at_end, folder)
            raise
        _end(at_end, folder)
    if asked.number:
        raise signals.Interrupted(asked.number, f"{folder} is finished" if finished else "")


def _end(function, folder):
    if function and distributed.is_main():
        function(folder)
