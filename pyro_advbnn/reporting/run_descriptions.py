"""Runs as readers know them: their settings as texts, from config.json, what they share and how they differ. No torch."""
from collections import Counter
from pathlib import PurePath

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.reporting import paper, texts
from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError

SETTINGS = {
    "defence": lambda config: defense(config),
    "data set": lambda config: dataset(config),
    "N (training images)": lambda config: texts.count(config.get("num_train")),
    "held out": lambda config: texts.count(config.get("num_held_out")),
    "network": lambda config: texts.of(config.get("network")) + _suffix(", width {}", config["settings"].get("width")),
    "weights": lambda config: texts.count(config.get("num_weights")),
    "recipe": lambda config: texts.of(config.get("recipe")),
    "epochs": lambda config: texts.of(config["settings"].get("epochs")),
    "batch": lambda config: texts.of(config["settings"].get("batch_size")),
    "optimizer": lambda config: _list(config["settings"], "optimizer", "learning_rate", "schedule"),
    "weight decay": lambda config: _where_set(config["settings"].get("weight_decay")),
    "weights averaged, decay": lambda config: _where_set(config["settings"].get("weight_averaging")),
    "by running statistics from": lambda config: _running(config["settings"].get("running_statistics")),
    "starts from": lambda config: _where_set(_last_part(config.get("init_from"))),
    "alpha": lambda config: _of_bayesian(config, "alpha"),
    "KL over weights": lambda config: _of_bayesian(config, "kl_over"),
    "prior": lambda config: _of_bayesian(config, "prior", "prior_std"),
    "KL warm-up": lambda config: _of_bayesian(config, "kl_warmup"),
    "initial std": lambda config: _of_bayesian(config, "init_std"),
    "attack in training": lambda config: _training_attack(config),
    "seed": lambda config: texts.of(config.get("seed")),
    "precision": lambda config: texts.of(config.get("precision")),
    "trained on": lambda config: texts.of(environment(config).get("device")),
    "torch": lambda config: texts.of(mapping(environment(config).get("versions")).get("torch")),
    "commit": lambda config: _short(environment(config).get("git_commit")),
}
# elsewhere a dash means that it does not apply
_OPTIONAL = ("weight decay", "weights averaged, decay", "by running statistics from", "starts from")
LAST_EPOCH = {
    "last epoch": lambda metrics: texts.of(metrics.get("epoch")),
    "nll": lambda metrics: texts.of(metrics.get("nll")),
    "held out, clean": lambda metrics: texts.percent(metrics.get("held_out_accuracy")),
    "held out, PGD": lambda metrics: texts.percent(metrics.get("held_out_robust_accuracy")),
}


def run_folders(folder):
    """The run folders of a result folder, by name; the folder itself where it is one."""
    if (folder / "config.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("runs/[!.]*/config.json"))  # one with a dot is still being made


def read(runs):
    """{name: config} of the run folders; a config gains its last line of metrics.

    Raises InputError where a folder is no run, or two have the same name.
    """
    configs = {}
    for run in runs:
        name, config = run.resolve().name, json_files.read_json(run / "config.json")
        if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
            raise InputError(f"{run} is no run folder: its config.json is not that of a training")
        if name in configs:
            raise InputError(f"two runs are named {name}; runs are told apart by the names of their folders")
        configs[name] = config | {"metrics": (json_files.read_jsonl(run / "metrics.jsonl") or [{}])[-1]}
    return configs


def shared_and_differing(configs):
    """({setting: text} that the runs share, {setting: [text of each run]} in which they differ)."""
    cells = {name: [show(config) for config in configs.values()] for name, show in SETTINGS.items()}
    shared = {name: values[0] for name, values in cells.items() if len(set(values)) == 1 and values[0] != texts.NOTHING}
    return shared, {name: values for name, values in cells.items() if len(set(values)) > 1}


def peculiarities(configs):
    """{name of a run: the settings, but for the defence, in which it is unlike most of the others, as a text}."""
    told = {name: [] for name in configs}
    for setting, values in shared_and_differing(configs)[1].items():
        usual = Counter(values).most_common(1)[0][0]
        for name, value in zip(configs, values, strict=True):
            value_told = value if value != texts.NOTHING else "none" if setting in _OPTIONAL else None
            told[name] += [f"{setting} {value_told}"] if value != usual and value_told and setting != "defence" else []
    return {name: "; ".join(words) for name, words in told.items()}


def defense(config):
    """The defence of a run, or of a row, as readers know it."""
    return paper.DEFENSE_NAMES.get(str(config.get("defense")), texts.of(config.get("defense")))


def environment(record):
    """The environment that a record names, {} where it names none."""
    return mapping(record.get("environment"))


def dataset(config):
    """The data set of a run as readers know it."""
    return paper.DATASET_NAMES.get(str(config.get("dataset")), texts.of(config.get("dataset")))


def mapping(value):
    """The value where it is a mapping, else {}."""
    return value if isinstance(value, dict) else {}


def _where_set(value):
    return texts.of(value) if value else texts.NOTHING


def _running(share):
    return f"{texts.of(share)} of the training on" if isinstance(share, int | float) and share < 1 else texts.NOTHING


def _last_part(path):
    """The run that a path names."""
    return PurePath(path).name if isinstance(path, str) else path


def _of_bayesian(config, *names):
    bayesian = mapping(config.get("classifier")).get("kind") == "bayesian"
    return _list(config["settings"], *names) if bayesian else texts.NOTHING


def _training_attack(config):
    settings = config["settings"]
    known = DEFENSES.get(str(config.get("defense")))
    if known is None or not known.adversarial:
        return "none"
    return (f"PGD, ε {texts.of(settings.get('epsilon'))}, {texts.of(settings.get('num_steps'))} steps of "
            f"{texts.of(settings.get('step_size'))}, {texts.draws(settings.get('attack_samples'))}")


def _list(settings, *names):
    return ", ".join(texts.of(settings.get(name)) for name in names)


def _suffix(pattern, value):
    return "" if value is None else pattern.format(texts.of(value))


def _short(commit):
    """A commit in 12 digits, with what git says of uncommitted changes."""
    digits, dash, dirty = str(commit or "").partition("-")
    return texts.of(digits[:12] + dash + dirty)
