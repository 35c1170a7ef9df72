"""What has to be run for each piece of the paper's evidence: commands in order, with what they leave and what they cost.

A command is the name of a program and its flags; whoever runs it knows the function.
"""
from dataclasses import dataclass
from pathlib import Path

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.cli import help
from pyro_advbnn.experiments import ablations, costs, protocol, scales
from pyro_advbnn.experiments.costs import attack, prediction
from pyro_advbnn.training import recipes

PIECES = ("table1", "fig2", "fig3", "fig4", "fig5", "alpha", "prior", "lipschitz")
BEYOND_THE_PAPER = ("kl", "beyond")
FIVE = tuple(name for name, defense in DEFENSES.items() if defense.in_paper)
ALPHAS = (1.0, 1 / 10, 1 / 50, 0.0)
PRIOR_STDS = (0.05, 0.1, 0.15)
OTHER_SEED = 1_000_000                                   # from one component of a mixture to the next


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a plan.

    program: "train", or "evaluate VERB". flags: by name, None for what is left to the program. leaves: what is there once it
    has run. gradients: what it costs, by `costs`, for an estimate of the time.
    """

    program: str
    flags: dict
    leaves: tuple[Path, ...]
    gradients: float

    @property
    def is_training(self):
        return self.program == "train"

    @property
    def command(self):
        """What one would type for it."""
        return help.typed(f"pyro_advbnn.{self.program}", self.flags)


class Plan:
    """The steps for some pieces of evidence, in order, each needed step once.

    wanted: a `scales.Reproduction`. num_train, num_test: sizes of the data set's splits. on_gpu: whether it is to run on one.
    digest: what tells data of the user's own from others, None for a published set.
    seeds: of the trainings of `beyond`, default wanted's. pairs: what is to be judged, mappings of the pair's name, its
    seed, the names of both runs in robust.csv (joined by + where they are mixtures) and the radius.
    """

    def __init__(self, pieces, wanted, num_train, num_test, *, on_gpu=False, digest=None, seeds=None):
        self.digest = digest
        self.seeds = list(dict.fromkeys(seeds or [wanted.seed]))
        self.wanted, self.out = wanted, wanted.out or Path("runs") / f"reproduce-{wanted.dataset}-{wanted.scale}"
        self.settings = scales.settings(wanted, num_train, num_test)
        self.num_train = min(self.settings["num_train"] or num_train, num_train)
        self.num_test = min(self.settings["num_test"] or num_test, num_test)
        self.num_few = self.settings["num_few"]
        self.precision = wanted.precision or ("bf16" if on_gpu and wanted.scale in ("medium", "paper") else "fp32")
        self.draws = [1, self.settings["attack_samples"]]
        self.steps, self.pairs, self._runs = [], [], {}
        for piece in pieces:
            getattr(self, f"_{piece}")()
        self._report(pieces)

    @property
    def identity(self):
        """What two plans for one folder must have in common: all that changes a result, as plain values."""
        wanted = self.wanted
        sized = {"image_size": wanted.image_size} if wanted.image_size else {}
        own = {"images": self.digest} if self.digest else {}
        return {"dataset": wanted.dataset, **own, **sized, "scale": wanted.scale, "seed": wanted.seed,
                "precision": self.precision, **self.settings, "num_train": self.num_train, "num_test": self.num_test}

    @property
    def _recipe(self):
        return recipes.RECIPES[self.settings["recipe"]](self.wanted.dataset, "advbnn")

    def network_for(self, side):
        """The network of the plan's runs, for images of `side` pixels."""
        return self.settings["network"] or self._recipe["network"] or recipes.default_network(side)

    # Pieces

    def _table1(self):
        self._accuracy("adv", protocol.default_epsilons(self.wanted.dataset), [1])
        self._accuracy("advbnn", protocol.default_epsilons(self.wanted.dataset), self.draws)

    def _fig2(self):
        """All radii with the paper's attack; where draws differ, those of Table 1 with the honest one too."""
        for defense in FIVE:
            self._accuracy(defense, protocol.figure_2_epsilons(self.wanted.dataset), [1])
            if DEFENSES[defense].random:
                self._accuracy(defense, protocol.default_epsilons(self.wanted.dataset), self.draws)

    def _fig3(self):
        runs = [self._run(defense) for defense in FIVE]
        one_source = attack() + (len(runs) + 1) * prediction()           # of every target, and of its own clean images
        self._evaluate("transfer", runs, ["transfer"], len(runs) * one_source)

    def _fig4(self):
        averaged, mean = (attack() + 2 * prediction(draws) for draws in (costs.PREDICTION_DRAWS, 1))
        criteria = 2 * len(protocol.PRUNED_FRACTIONS)
        self._evaluate("posterior", [self._run("advbnn")], ["density", "layers", "pruning"], criteria * (averaged + mean),
                       num_test=self.num_few, save_fractions=[0.5])

    def _fig5(self):
        advbnn, radii = self._run("advbnn"), protocol.default_ensemble_epsilons(self.wanted.dataset)
        self._evaluate("ensemble", [advbnn], ["ensemble"],
                       (len(radii) - 1) * attack() + len(radii) * prediction(max(protocol.ENSEMBLE_DRAWS)))
        runs, most, points = [self._run("adv"), advbnn], max(protocol.FIGURE_5_STEPS), len(protocol.FIGURE_5_STEPS)
        self._evaluate("steps", runs, ["steps"], num_test=self.num_few,
                       each=len(runs) * attack(steps=most) + points * (prediction() + prediction(1)))
        if "num_honest" in self.settings:
            self._evaluate("steps", [advbnn], ["steps"], num_test=min(self.settings["num_honest"], self.num_test),
                           each=attack(self.draws[1], most) + points * prediction(), attack_samples=[self.draws[1]])

    def _alpha(self):
        self._compare("alpha", ALPHAS)

    def _prior(self):
        self._compare("prior_std", PRIOR_STDS)

    def _lipschitz(self):
        runs = [self._run(defense) for defense in FIVE]
        self._evaluate("gradients", runs, ["gradients"], 2 * len(runs) * (1 + costs.PREDICTION_DRAWS))

    def _kl(self):
        """Each Adv-BNN is evaluated before the next one is trained, so that what is stopped leaves rows.

        Trainings this short are measured at their last weights.
        """
        last = {"weight_averaging": 0.0} if self.settings.get("weight_averaging") else {}
        for name, flags in ablations.KL_OF_ALL_WEIGHTS.items():
            flags = {"epochs": self.wanted.epochs or self.settings.get("trial_epochs"), **last, **flags}
            self._compared("advbnn", self._named_run("advbnn", f"kl-{name}", flags))

    def _beyond(self):
        """Seed by seed, so that what is stopped leaves whole ones."""
        for seed in self.seeds:
            for name in ablations.PAIRS:
                self._pair(name, name, [seed])
            for name, components in ablations.MIXTURES.items():
                self._pair(f"{name}-mixture", name, [(seed + OTHER_SEED * n) % 2**31 for n in range(components)])

    def _pair(self, title, name, seeds):
        """Adversarial training and Adv-BNN with the same flags, of several seeds as a mixture, attacked alike."""
        mixed, subjects, epsilon = len(seeds) > 1, [], self._compared_radii()[-1]
        for defense in ("adv", "advbnn"):
            runs = [self._pair_run(defense, name, seed) for seed in seeds]
            if not mixed:
                self._compared(defense, *runs)
            self._evaluate("robust", None if mixed else runs, ["robust", "robust_examples"],
                           mixture=runs if mixed else None,
                           each=costs.worst_case("advbnn" if mixed else defense, self.draws[1]), epsilon=epsilon,
                           num_test=min(self.settings.get("num_worst") or self.num_few, self.num_test),
                           attack_samples=self.draws[1])
            subjects.append("+".join(run.name for run in runs))
        self.pairs.append({"pair": title, "seed": seeds[0], "control": subjects[0], "contender": subjects[1],
                           "epsilon": epsilon})

    def _pair_run(self, defense, name, seed):
        """One training of a pair; the plan's own of that defence, where that has the pair's flags anyway."""
        averaging = self.settings.get("weight_averaging")
        flags = ablations.PAIRS[name] | ({"weight_averaging": averaging} if averaging else {}) | {"seed": seed}
        title = f"{defense}-{name}"
        if flags.items() <= self._training_flags(defense, title).items():
            self._runs[title] = self._run(defense)
        return self._named_run(defense, title, flags)

    def _report(self, pieces):
        """The last step: the page with all that the plan's runs brought, as far as it is there."""
        runs = [self._runs[name] for name in FIVE if name in self._runs]
        if not runs or set(pieces) & set(BEYOND_THE_PAPER):
            runs = list(dict.fromkeys(self._runs.values()))
        self._evaluate("report", runs, ["gains"] * bool(self.pairs), len(runs) * (attack() + 2 * prediction()),
                       num_images=costs.REPORTED_EXAMPLES, leaves=("report.html", "tables"))

    # Steps

    def _compared_radii(self):
        """Clean, and where defences are compared: on CIFAR-10 and STL-10 the paper's 0.035 and 8/255, else the training's."""
        own = recipes.training_epsilon(self.wanted.dataset)
        return [0.0, 0.035, 8 / 255] if self.wanted.dataset in ("cifar10", "stl10") else [0.0, own]

    def _accuracy(self, defense, epsilons, attack_samples):
        self._white_box([defense], [self._run(defense)], "accuracy", epsilons, attack_samples)

    def _compared(self, defense, run):
        """A line of the table of runs: clean and attacked, with one and with many draws."""
        self._white_box([defense], [run], "runs", self._compared_radii(), self.draws, against="run")

    def _compare(self, name, values):
        """Adv-BNN runs that differ in one setting, in one table; the value that the recipe has anyway is the main run.

        Where the recipe chooses a value by itself, that is one of them.
        """
        own = self._recipe[name]
        values = [*values, *([own] if own == "auto" else [])]
        runs = [self._run("advbnn", **({} if value == own else {name: value})) for value in values]
        epsilons = [0.0, recipes.training_epsilon(self.wanted.dataset)]
        self._white_box(["advbnn"] * len(runs), runs, name, epsilons, self.draws, against=name)

    def _white_box(self, defenses, runs, table, epsilons, attack_samples, **flags):
        """Many draws per gradient, and their control, on fewer images in a step of their own, where the scale has it so."""
        fewer, parts = self.settings.get("num_many", self.num_test), [(attack_samples, None)]
        if fewer < self.num_test:
            many = attack_samples[1:] if DEFENSES[defenses[0]].random else attack_samples[:1]
            parts = [(attack_samples[:1], None), *([(many, fewer)] if many else [])]
        for draws, num_test in parts:
            each = sum(costs.white_box(defense, epsilons, draws) for defense in defenses)
            self._evaluate("accuracy", runs, [table], each, num_test=num_test, epsilons=list(epsilons), attack_samples=draws,
                           **flags)

    def _run(self, defense, **flags):
        """The folder of a run, whose training becomes a step where it is none yet."""
        name = "-".join([defense, *(f"{flag}-{value:g}" for flag, value in flags.items())])
        if flags.get("alpha") == 0:                      # by which the natural gradient divides
            flags |= {"optimizer": "adam"}
        return self._named_run(defense, name, flags)

    def _named_run(self, defense, name, flags):
        """`_run` with a name of its own; flags stand over the plan's settings, and init_from names another run.

        Where flags has another seed than the plan's, both names end in it.
        """
        flags = {flag: value for flag, value in flags.items() if value is not None}
        seed = flags.get("seed", self.wanted.seed)
        suffix = f"-seed-{seed}" if seed != self.wanted.seed else ""
        name += suffix
        if "init_from" in flags:
            source = flags["init_from"]
            flags |= {"init_from": self._runs.get(source + suffix) or self._run(source)}
        if name not in self._runs:
            self._runs[name] = self.out / "runs" / name
            self._train(self._training_flags(defense, name) | flags)
        return self._runs[name]

    def _training_flags(self, defense, name):
        wanted, settings = self.wanted, self.settings
        chosen = ("recipe", "validation", "network", "width", "epochs", "batch_size", "schedule", "weight_averaging")
        return {"dataset": wanted.dataset, "data_dir": wanted.data_dir, "image_size": wanted.image_size, "defense": defense,
                **{flag: settings.get(flag) for flag in chosen}, "num_train": self.num_train if settings["num_train"] else None,
                "seed": wanted.seed, "device": wanted.device, "precision": self.precision, "out": self.out / "runs" / name}

    def _train(self, flags):
        self.steps.append(Step(program="train", flags=flags, leaves=(flags["out"] / "config.json",),
                               gradients=costs.training(flags, self.num_train)))

    def _evaluate(self, verb, runs, tables, each, *, num_test=None, num_images=None, leaves=(), **flags):
        """A step that evaluates runs on num_test images, or on num_images of them; each: what an image costs."""
        wanted = self.wanted
        flags = {"runs": runs, "out": self.out, "num_test": num_test or (self.num_test if self.settings["num_test"] else None),
                 "data_dir": wanted.data_dir, "network": wanted.network if ":" in (wanted.network or "") else None,
                 "seed": wanted.seed or None, "device": wanted.device if wanted.device != "auto" else None, **flags}
        leaves = [*(f"evaluation/{table}.csv" for table in tables), *leaves]
        step = Step(program=f"evaluate {verb}", flags=flags, leaves=tuple(self.out / name for name in leaves),
                    gradients=each * (num_images or num_test or self.num_test))
        if step not in self.steps:
            self.steps.append(step)
