"""Runs as readers know them: their settings as texts, from config.json, what they share and how they differ. No torch."""
from collections import Counter
from pathlib import PurePath

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.cli.text_tables import NONE, count, counted, share, shown
from pyro_advbnn.reporting.paper import dataset_name, defense_name
from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError


def run_folders(folder):
    """The run folders of a result folder, by name; the folder itself where it is one."""
    if (folder / "config.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("runs/*/config.json"))


def read(runs):
    """{name: config} of the run folders; a config gains its last line of metrics.

    Raises InputError where a folder is no run or has an unknown defence, or two have the same name.
    """
    configs = {}
    for run in runs:
        name, config = run.resolve().name, json_files.read_config(run)
        if name in configs:
            raise InputError(f"two runs are named {name}; runs are told apart by the names of their folders")
        if config["defense"] not in DEFENSES:
            raise InputError(f"{run / 'config.json'}: its defense must be one of {', '.join(DEFENSES)}, got "
                             f"{config['defense']!r}")
        configs[name] = config | {"metrics": (json_files.read_jsonl(run / "metrics.jsonl") or [{}])[-1]}
    return configs


def shared_and_differing(configs):
    """({setting: text} that the runs share, {setting: [text of each run]} in which they differ)."""
    cells = {name: [show(config) for config in configs.values()] for name, show in SETTINGS.items()}
    shared = {name: values[0] for name, values in cells.items() if len(set(values)) == 1 and values[0] != NONE}
    return shared, {name: values for name, values in cells.items() if len(set(values)) > 1}


def peculiarities(configs):
    """{run: as a text, its settings, but for the defence, where over half of the runs that know the setting share another}."""
    told = {name: [] for name in configs}
    for setting, values in shared_and_differing(configs)[1].items():
        values = ["none" if value == NONE and setting in _OPTIONAL else value for value in values]
        known = [value for value in values if value != NONE]
        (usual, times), = Counter(known).most_common(1)
        for name, value in zip(configs, values):
            if 2 * times > len(known) and value not in (usual, NONE) and setting != "defence":
                told[name].append(f"{setting} {value}")
    return {name: "; ".join(words) for name, words in told.items()}


def _field(name, write=shown):
    return lambda record: write(record.get(name))


def _setting(*names):
    return lambda config: ", ".join(shown(config["settings"].get(name)) for name in names)


def _of_bayesian(*names):
    """A setting that means something for a Bayesian network alone."""
    return lambda config: _setting(*names)(config) if config["classifier"].get("kind") == "bayesian" else NONE


def _prior(config):
    """Its family and std, beside "auto" the number that came of it."""
    text = _of_bayesian("prior", "prior_std")(config)
    return f"{text} ({shown(config['classifier']['prior_std'])})" if text.endswith("auto") else text


def _where_set(name):
    return lambda config: shown(config["settings"].get(name) or None)


def _network(config):
    width = config["settings"].get("width")
    return shown(config.get("network")) + ("" if width is None else f", width {width}")


def _training_attack(config):
    settings = config["settings"]
    if not DEFENSES[config["defense"]].adversarial:
        return "none"
    return (f"PGD, ε {shown(settings.get('epsilon'))}, {shown(settings.get('num_steps'))} steps of "
            f"{shown(settings.get('step_size'))}, {counted(settings.get('attack_samples'), 'draw', ' per gradient')}")


def _commit(config):
    """A commit in 12 digits, with what git says of uncommitted changes."""
    digits, dash, dirty = str(config["environment"].get("git_commit") or "").partition("-")
    return shown(digits[:12] + dash + dirty)


def _percent(value):
    return NONE if value is None else f"{share(value)} %"


SETTINGS = {                                             # name of a setting: function of a config that returns its text
    "defence": defense_name,
    "data set": dataset_name,
    "N (training images)": _field("num_train", count),
    "held out": _field("num_held_out", count),
    "network": _network,
    "weights": _field("num_weights", count),
    "recipe": _field("recipe"),
    "epochs": _setting("epochs"),
    "batch": _setting("batch_size"),
    "optimizer": _setting("optimizer", "learning_rate", "schedule"),
    "rho": _where_set("rho"),
    "curvature by": _where_set("curvature"),
    "weight decay": _where_set("weight_decay"),
    "weights averaged, decay": _where_set("weight_averaging"),
    "weights perturbed by": _where_set("awp"),
    "batch statistics of": _of_bayesian("batch_statistics"),
    "class weights": _where_set("class_weights"),
    "starts from": lambda config: shown(PurePath(config.get("init_from") or "").name),
    "alpha": _of_bayesian("alpha"),
    "KL over weights": _of_bayesian("kl_over"),
    "prior": _prior,
    "KL warm-up": _of_bayesian("kl_warmup"),
    "initial std": _of_bayesian("init_std"),
    "attack in training": _training_attack,
    "seed": _field("seed"),
    "precision": _field("precision"),
    "trained on": lambda config: shown(config["environment"].get("device")),
    "torch": lambda config: shown(config["environment"].get("versions", {}).get("torch")),
    "commit": _commit,
}
# elsewhere a dash means that it does not apply
_OPTIONAL = ("weight decay", "weights averaged, decay", "weights perturbed by", "class weights", "starts from")
LAST_EPOCH = {                                           # as SETTINGS, of the last line of metrics
    "last epoch": _field("epoch"),
    "nll": _field("nll"),
    "held out, clean": _field("held_out_accuracy", _percent),
    "held out, PGD": _field("held_out_robust_accuracy", _percent),
}
