"""What to keep in mind when reading results: what every attack leaves open, and what these rows and runs do."""
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.reporting import csv_tables, run_descriptions, texts
from pyro_advbnn.reporting.elements import element

_RANDOM = tuple(name for name, defense in DEFENSES.items() if defense.random)


def caveats(folder, configs):
    """The contents of the section: a list of sentences."""
    lines = ["PGD is one attack. A stronger one may find more: every accuracy under attack is an upper bound.",
             "An attacker who draws the weights once per gradient is weak against a random network (Zimmermann, "
             "arXiv 1907.00895). Compare defences by the attack with many draws.",
             "The 95 % intervals say how far the choice of test images may move a number. They do not say how far another "
             "training seed may."]
    rows = [row for name in ("accuracy", "alpha", "prior_std", "steps") for row in csv_tables.read(folder, name)]
    return [element("ul", *(element("li", line) for line in
                            [*lines, *_drawn_once(rows), *_out_of_reach(rows), *_few_images(rows), *_changed(configs)]))]


def _drawn_once(rows):
    random = {row["run"] for row in rows if row["defense"] in _RANDOM and row["epsilon"]}
    weak = random - {row["run"] for row in rows if (row["attack_samples"] or 0) > 1 and row["epsilon"]}
    return [f"Only attacked with one draw per gradient, so not yet honestly: {', '.join(sorted(weak))}."] if weak else []


def _out_of_reach(rows):
    attacks = {}
    for row in rows:
        if row["reaches_ball"] is False:
            attacks.setdefault((row["epsilon"], row["step_size"]), set()).add(row["num_steps"])
    told = [f"radius {texts.of(radius)} with {', '.join(map(texts.of, sorted(steps)))} steps of {texts.of(size)}"
            for (radius, size), steps in sorted(attacks.items())]
    return [f"Some attacks cannot reach the border of their ball and are weaker than their radius says: {'; '.join(told)}."
            ] if told else []


def _few_images(rows):
    numbers = sorted({row["num_examples"] for row in rows if row["num_examples"]})
    return [f"Accuracies are measured on {numbers[0]:,} images" + (f" to {numbers[-1]:,}." if numbers[1:] else ".")
            ] if numbers else []


def _changed(configs):
    changed = [name for name, config in configs.items()
               if str(run_descriptions.environment(config).get("git_commit")).endswith("-dirty")]
    return [f"Trained from code with uncommitted changes: {', '.join(changed)}."] if changed else []
