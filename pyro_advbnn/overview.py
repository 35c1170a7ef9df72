"""What was run, from the config.json and metrics.jsonl of runs: settings, the last epoch, versions and hardware."""
from pathlib import PurePath

from pyro_advbnn import paper, records, texts
from pyro_advbnn.elements import definitions, element, missing, table

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
    "starts from": lambda config: _where_set(_last_part(config.get("init_from"))),
    "alpha": lambda config: _of_bayesian(config, "alpha"),
    "KL over weights": lambda config: _of_bayesian(config, "kl_over"),
    "prior": lambda config: _of_bayesian(config, "prior", "prior_std"),
    "initial std": lambda config: _of_bayesian(config, "init_std"),
    "attack in training": lambda config: _training_attack(config),
    "seed": lambda config: texts.of(config.get("seed")),
    "precision": lambda config: texts.of(config.get("precision")),
    "trained on": lambda config: texts.of(environment(config).get("device")),
    "torch": lambda config: texts.of(mapping(environment(config).get("versions")).get("torch")),
    "commit": lambda config: _short(environment(config).get("git_commit")),
}
LAST_EPOCH = {
    "last epoch": lambda metrics: texts.of(metrics.get("epoch")),
    "nll": lambda metrics: texts.of(metrics.get("nll")),
    "held out, clean": lambda metrics: texts.percent(metrics.get("held_out_accuracy")),
    "held out, PGD": lambda metrics: texts.percent(metrics.get("held_out_robust_accuracy")),
}


def runs(configs):
    """The contents of the section: what the runs share, how they differ, and all of each; configs: {name: config}."""
    if not configs:
        return missing("No run folders lie here (runs/*/config.json), so their settings are not shown.")
    cells = {name: [show(config) for config in configs.values()] for name, show in SETTINGS.items()}
    shared = {name: values[0] for name, values in cells.items() if len(set(values)) == 1 and values[0] != texts.NOTHING}
    differing = {name: values for name, values in cells.items() if len(set(values)) > 1}
    last = {name: [show(config["metrics"]) for config in configs.values()] for name, show in LAST_EPOCH.items()}
    rows = zip(configs, *differing.values(), *last.values())
    told = "Settings that the runs share." if len(configs) > 1 else "Settings."
    return [element("p", told), definitions(shared, "settings"),
            table("Runs: what differs, and the last epoch", ["run", *differing, *last], rows),
            *(_details(name, config) for name, config in configs.items())]


def _details(name, config):
    """All that a run's records say, folded away."""
    machine = environment(config)
    shown = {"commit": texts.of(machine.get("git_commit")), "device": texts.of(machine.get("device")),
             "hardware": _flat(machine.get("hardware")), "python": texts.of(machine.get("python")),
             "versions": _flat(machine.get("versions")), "last line of metrics": _flat(config["metrics"])}
    whole = {key: value for key, value in config.items() if key != "metrics"}
    return element("details", element("summary", element("b", name), ": versions, hardware and the whole configuration"),
                   definitions(shown, "settings"),
                   element("pre", element("code", records.as_json(whole)), tabindex="0", role="region",
                           aria_label=f"config.json of {name}"))


def defense(config):
    """The defence of a run, or of a row, as readers know it."""
    return paper.DEFENSE_NAMES.get(str(config.get("defense")), texts.of(config.get("defense")))


def environment(record):
    """The environment that a record names, {} where it names none."""
    return mapping(record.get("environment"))


def dataset(config):
    """The data set of a run as readers know it."""
    return paper.DATASET_NAMES.get(str(config.get("dataset")), texts.of(config.get("dataset")))


def _where_set(value):
    return texts.of(value) if value else texts.NOTHING


def _last_part(path):
    """The run that a path names."""
    return PurePath(path).name if isinstance(path, str) else path


def _of_bayesian(config, *names):
    bayesian = mapping(config.get("classifier")).get("kind") == "bayesian"
    return _list(config["settings"], *names) if bayesian else texts.NOTHING


def _training_attack(config):
    settings = config["settings"]
    if not str(config.get("defense")).startswith("adv"):
        return "none"
    return (f"PGD, ε {texts.of(settings.get('epsilon'))}, {texts.of(settings.get('num_steps'))} steps of "
            f"{texts.of(settings.get('step_size'))}, {texts.draws(settings.get('attack_samples'))}")


def _list(settings, *names):
    return ", ".join(texts.of(settings.get(name)) for name in names)


def _flat(values):
    return ", ".join(f"{key} {texts.of(value)}" for key, value in mapping(values).items()) or texts.NOTHING


def mapping(value):
    """The value where it is a mapping, else {}."""
    return value if isinstance(value, dict) else {}


def _suffix(pattern, value):
    return "" if value is None else pattern.format(texts.of(value))


def _short(commit):
    """A commit in 12 digits, with what git says of uncommitted changes."""
    digits, dash, dirty = str(commit or "").partition("-")
    return texts.of(digits[:12] + dash + dirty)
