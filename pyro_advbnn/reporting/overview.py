"""What was run, as a section of the page: what runs share, how they differ, and all that their records say."""
from pyro_advbnn.reporting import texts
from pyro_advbnn.reporting.elements import definitions, element, missing, table
from pyro_advbnn.reporting.run_descriptions import LAST_EPOCH, environment, mapping, shared_and_differing
from pyro_advbnn.system import json_files


def runs(configs):
    """The contents of the section: what the runs share, how they differ, and all of each; configs: {name: config}."""
    if not configs:
        return missing("No run folders lie here (runs/*/config.json), so their settings are not shown.")
    shared, differing = shared_and_differing(configs)
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
                   element("pre", element("code", json_files.as_json(whole)), tabindex="0", role="region",
                           aria_label=f"config.json of {name}"))


def _flat(values):
    return ", ".join(f"{key} {texts.of(value)}" for key, value in mapping(values).items()) or texts.NOTHING
