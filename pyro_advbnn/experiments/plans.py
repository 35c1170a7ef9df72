"""What has to be run for each piece of the paper's evidence: commands, in order, with what they leave and what they cost."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyro_advbnn import datasets, evaluate
from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.cli import help, python_calls
from pyro_advbnn.cli.flag_types import BatchSize, Count, Epochs, Images, Minutes, Seed, Width
from pyro_advbnn.experiments import ablations, radii, robustness_verbs
from pyro_advbnn.experiments.selection import Selection
from pyro_advbnn.system.precision import PRECISIONS
from pyro_advbnn.train import train
from pyro_advbnn.training import recipes

PIECES = ("table1", "fig2", "fig3", "fig4", "fig5", "alpha", "prior", "lipschitz")
BEYOND_THE_PAPER = ("kl", "beyond")
FIVE = tuple(name for name, defense in DEFENSES.items() if defense.in_paper)
ALPHAS = (1.0, 1 / 10, 1 / 50, 0.0)
PRIOR_STDS = (0.05, 0.1, 0.15)


@python_calls.flags
class Reproduction:
    """The flags that every piece takes.

    Args:
        dataset: digits comes with scikit-learn; the others read data_dir.
        data_dir: folder of the data set, as in train.
        scale: smoke (minutes, with digits), small (a subset and a narrow network), paper (all images and the paper's network,
            in 30 epochs of one cycle with batches of 256).
        recipe: paper, authors or ours, as in train; default ours, at scale paper authors.
        network: as in train; default by data set and scale.
        width: base number of channels.
        epochs: passes over the training set.
        batch_size: images per training step.
        num_train: class-balanced subset of the training images.
        num_test: class-balanced subset of the test images, for all pieces alike.
        attack_samples: weight draws per gradient of the honest attack, which stands beside the paper's with one.
        seed: of all random streams.
        device: auto (cuda if present), cpu, cuda or cuda:N.
        precision: of the training: fp32, tf32 (GPUs only) or bf16; default fp32, at scale paper as in train.
        out: folder of the runs, csv files, figures, tables and the report; default runs/reproduce-<dataset>-<scale>.
        max_minutes: stop a training after this time, or start no further step; the same command goes on.
        dry_run: print the plan and stop.
    """

    dataset: Literal[datasets.DATASETS] = "digits"
    data_dir: Path | None = None
    scale: Literal["smoke", "small", "paper"] = "smoke"
    recipe: Literal[tuple(recipes.RECIPES)] | None = None
    network: str | None = None
    width: Width | None = None
    epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    num_train: Images | None = None
    num_test: Images | None = None
    attack_samples: Count | None = None
    seed: Seed = 0
    device: str = "auto"
    precision: Literal[PRECISIONS] | None = None
    out: Path | None = None
    max_minutes: Minutes | None = None
    dry_run: bool = False


# Per scale: the flags of train and num_test, where nobody chose them; num_few is the number of test images for what takes
# many passes (1000 steps, pruning), num_honest for 1000 steps of many draws, which the other scales leave out, and num_worst
# for the ensemble of attacks. On digits all images and the convnet as it is are small enough for "smoke".
_SCALES = {
    "smoke": {"recipe": "ours", "epochs": 8, "num_train": 600, "num_test": 100, "num_few": 100, "width": 8, "validation": 60,
              "attack_samples": 10},
    "small": {"recipe": "ours", "epochs": 16, "batch_size": 64, "num_train": 5000, "num_test": 1000, "num_few": 200,
              "width": 12, "validation": 500, "attack_samples": 10},
    "paper": {"recipe": "authors", "epochs": 30, "schedule": "cosine", "batch_size": 256, "attack_samples": 20,
              "num_honest": 500, "trial_epochs": 10, "num_worst": 1000},
}
_CHOICES = ("recipe", "network", "width", "epochs", "batch_size", "num_train", "num_test", "attack_samples")
_SMALL_NETWORKS = {"cifar10": "vgg11", "imagenet143": "vgg11"}
_DIGITS = {"smoke": {"num_train": None, "num_test": None, "width": None, "validation": None}}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a plan.

    function(**arguments) runs it; leaves: what is there once it has run; gradients and forwards: how many images go
    through the network with and without a gradient by the image, for an estimate of the time.
    """

    program: str
    function: Any
    arguments: dict
    leaves: tuple[Path, ...]
    gradients: float = 0.0
    forwards: float = 0.0
    is_training: bool = False

    @property
    def command(self):
        return help.command_line(self.program, self.function, self.arguments)


class Plan:
    """The steps for some pieces of evidence, in order, each needed step once.

    wanted: a `Reproduction`. num_train, num_test: sizes of the data set's splits. on_gpu: whether it is to run on one.
    """

    def __init__(self, pieces, wanted, num_train, num_test, *, on_gpu=False):
        self.wanted, self.out = wanted, wanted.out or Path("runs") / f"reproduce-{wanted.dataset}-{wanted.scale}"
        scale = _SCALES[wanted.scale] | (_DIGITS.get(wanted.scale, {}) if wanted.dataset == "digits" else {})
        own = {name: getattr(wanted, name) for name in _CHOICES if getattr(wanted, name) is not None}
        self.settings = dict.fromkeys(_CHOICES) | {"network": self._default_network()} | scale | own
        self.num_train = min(self.settings["num_train"] or num_train, num_train)
        self.num_test = min(self.settings["num_test"] or num_test, num_test)
        self.num_few = self.num_test if wanted.num_test else min(scale.get("num_few", num_test), self.num_test)
        if self.settings.get("validation"):
            self.settings["validation"] = min(self.settings["validation"], self.num_train // 5)
        if ":" in (wanted.network or "") and wanted.width is None:
            self.settings["width"] = None                # only our own networks have one
        self.precision = wanted.precision or ("bf16" if on_gpu and wanted.scale == "paper" else "fp32")
        self.draws = (1, self.settings["attack_samples"])
        self.steps, self._runs = [], {}
        for piece in pieces:
            getattr(self, f"_{piece}")()
        self._report(pieces)
        self.steps = list({step.command: step for step in self.steps}.values())

    @property
    def identity(self):
        """What two plans for one folder must have in common: all that changes a result, as plain values."""
        wanted = self.wanted
        return {"dataset": wanted.dataset, "scale": wanted.scale, "seed": wanted.seed, "precision": self.precision,
                **self.settings, "num_train": self.num_train, "num_test": self.num_test, "num_few": self.num_few}

    # Pieces

    def _table1(self):
        self._accuracy("adv", radii.default_epsilons(self.wanted.dataset), (1,))
        self._accuracy("advbnn", radii.default_epsilons(self.wanted.dataset), self.draws)

    def _fig2(self):
        """All radii with the paper's attack; where draws differ, those of Table 1 with the honest one too."""
        for defense in FIVE:
            self._accuracy(defense, radii.figure_2_epsilons(self.wanted.dataset), (1,))
            if DEFENSES[defense].random:
                self._accuracy(defense, radii.default_epsilons(self.wanted.dataset), self.draws)

    def _fig3(self):
        runs = [self._run(defense) for defense in FIVE]
        self._evaluate(evaluate.transfer, runs, ["transfer"], gradients=5 * 20 * self.num_test,
                       forwards=(25 + 5) * 20 * self.num_test)

    def _fig4(self):
        cost = 2 * len(evaluate.PRUNED_FRACTIONS) * self.num_few
        self._evaluate(evaluate.posterior, [self._run("advbnn")], ["density", "layers", "pruning"], num_test=self.num_few,
                       save_fractions=[0.5], gradients=40 * cost, forwards=42 * cost)

    def _fig5(self):
        self._evaluate(evaluate.ensemble, [self._run("advbnn")], ["ensemble"], gradients=2 * 20 * self.num_test,
                       forwards=3 * 50 * self.num_test)
        runs, most = [self._run("adv"), self._run("advbnn")], max(evaluate.FIGURE_5_STEPS)
        self._evaluate(evaluate.steps, runs, ["steps"], num_test=self.num_few, gradients=2 * most * self.num_few,
                       forwards=17 * 21 * self.num_few)
        if "num_honest" in self.settings:
            count = min(self.settings["num_honest"], self.num_test)
            self._evaluate(evaluate.steps, runs[1:], ["steps"], num_test=count, attack_samples=[self.draws[1]],
                           gradients=most * self.draws[1] * count, forwards=17 * 20 * count)

    def _alpha(self):
        self._compare("alpha", ALPHAS)

    def _prior(self):
        self._compare("prior_std", PRIOR_STDS)

    def _lipschitz(self):
        runs = [self._run(defense) for defense in FIVE]
        self._evaluate(evaluate.gradients, runs, ["gradients"], gradients=5 * 2 * 21 * self.num_test)

    def _kl(self):
        """Each Adv-BNN is evaluated before the next one is trained, so that what is stopped leaves rows."""
        for name, flags in ablations.KL_OF_ALL_WEIGHTS.items():
            flags = {"epochs": self.settings.get("trial_epochs"), **flags}
            self._compared("advbnn", self._named_run("advbnn", f"kl-{name}", flags))

    def _beyond(self):
        wanted = [("adv", name, flags) for name, flags in ablations.BASELINES.items()]
        wanted += [("advbnn", f"advbnn-{name}", flags) for name, flags in ablations.CONTENDERS.items()]
        for defense, name, flags in wanted:
            self._compared(defense, self._named_run(defense, name, flags))
        count = min(self.settings.get("num_worst") or self.num_few, self.num_test)
        for defense, name, _ in wanted:
            draws = self._draws(defense, [self.draws[1]])[0]
            self._evaluate(robustness_verbs.robust, [self._runs[name]], ["robust"], num_test=count, epsilon=self._radii()[-1],
                           attack_samples=self.draws[1], gradients=3 * 40 * draws * count, forwards=1000 * draws * count)

    def _radii(self):
        """Clean, and the radii of the two comparisons that are wanted: the paper's 0.035, and 8/255."""
        own = recipes.training_epsilon(self.wanted.dataset)
        return [0.0, 0.035, 8 / 255] if self.wanted.dataset in ("cifar10", "stl10") else [0.0, own]

    # Steps

    def _compared(self, defense, run):
        """A line of the table of runs: clean and attacked, with one and with many draws."""
        self._white_box(defense, run, "runs", self._radii(), self.draws, against="run")

    def _compare(self, name, values):
        """Adv-BNN runs that differ in one setting, in one table; the value that the recipe has anyway is the main run."""
        main = recipes.RECIPES[self.settings["recipe"]](self.wanted.dataset, "advbnn")[name]
        runs = [self._run("advbnn", **({} if value == main else {name: value})) for value in values]
        epsilons = [0.0, recipes.training_epsilon(self.wanted.dataset)]
        cost = len(values) * sum(self.draws) * self.num_test
        self._evaluate(evaluate.accuracy, runs, [name], against=name, epsilons=epsilons, attack_samples=list(self.draws),
                       gradients=20 * cost, forwards=len(values) * 4 * 20 * self.num_test)

    def _run(self, defense, **flags):
        """The folder of a run, whose training becomes a step where it is none yet."""
        return self._named_run(defense, "-".join([defense, *(f"{flag}-{value:g}" for flag, value in flags.items())]), flags)

    def _named_run(self, defense, name, flags):
        """`_run` with a name of its own; flags stand over the plan's settings, and init_from names another run."""
        flags = {flag: value for flag, value in flags.items() if value is not None}
        if "init_from" in flags:
            source = flags["init_from"]
            flags |= {"init_from": self._runs.get(source) or self._run(source)}
        folder = self.out / "runs" / name
        if name not in self._runs:
            self._runs[name] = folder
            wanted = self.wanted
            arguments = {"dataset": wanted.dataset, "data_dir": wanted.data_dir, "defense": defense,
                         "recipe": self.settings["recipe"], "validation": self.settings.get("validation"),
                         **{name: self.settings.get(name) for name in ("network", "width", "epochs", "batch_size", "schedule")},
                         "num_train": self.num_train if self.settings["num_train"] else None, "seed": wanted.seed,
                         "device": wanted.device, "precision": self.precision, "out": folder, **flags}
            self.steps.append(Step(program="pyro_advbnn.train", function=train, arguments=arguments, is_training=True,
                                   leaves=(folder / "config.json",), **self._training_cost(arguments)))
        return folder

    def _default_network(self):
        return _SMALL_NETWORKS.get(self.wanted.dataset) if self.wanted.scale != "paper" else None

    def network_for(self, side):
        """The network of the plan's runs, for images of `side` pixels."""
        own = recipes.RECIPES[self.settings["recipe"]](self.wanted.dataset, "advbnn")["network"]
        return self.settings["network"] or own or recipes.default_network(side)

    def _training_cost(self, arguments):
        defense = arguments["defense"]
        settings = recipes.RECIPES[arguments["recipe"]](self.wanted.dataset, defense)
        settings |= {name: arguments[name] for name in settings if arguments.get(name) is not None}
        epochs, held_out = settings["epochs"], settings["validation"]
        attack = settings["num_steps"] * settings["attack_samples"]
        per_image = 1.5 + attack * DEFENSES[defense].adversarial     # an update's gradient is by weights and input
        return {"gradients": epochs * (self.num_train * per_image + 2 * held_out * attack),
                "forwards": epochs * 4 * held_out * settings["num_samples"]}

    def _accuracy(self, defense, epsilons, draws):
        self._white_box(defense, self._run(defense), "accuracy", epsilons, draws)

    def _white_box(self, defense, run, table, epsilons, draws, **flags):
        attacked, counted = sum(epsilon > 0 for epsilon in epsilons), self._draws(defense, draws)
        per_prediction, = self._draws(defense, [20])
        self._evaluate(evaluate.accuracy, [run], [table], epsilons=list(epsilons), attack_samples=list(draws), **flags,
                       gradients=20 * attacked * sum(counted) * self.num_test,
                       forwards=per_prediction * len(epsilons) * len(counted) * self.num_test)

    @staticmethod
    def _draws(defense, counts):
        """The numbers of draws that are worth a pass of their own: of a deterministic network one is as good as many."""
        return sorted({count if DEFENSES[defense].random else 1 for count in counts})

    def _evaluate(self, function, runs, tables, num_test=None, gradients=0.0, forwards=0.0, leaves=(), **arguments):
        verb = next(verb for verb, known in evaluate.VERBS.items() if known is function)
        wanted = self.wanted
        limited = num_test or (self.num_test if self.settings["num_test"] else None)
        of = Selection(run=None, runs=runs, out=self.out, num_test=limited, data_dir=wanted.data_dir, seed=wanted.seed,
                       network=wanted.network if wanted.network and ":" in wanted.network else None, device=wanted.device)
        self.steps.append(Step(
            program=f"pyro_advbnn.evaluate {verb}", function=function, arguments={"of": of, **arguments}, gradients=gradients,
            forwards=forwards, leaves=(*(self.out / "evaluation" / f"{table}.csv" for table in tables),
                                       *(self.out / name for name in leaves))))

    def _report(self, pieces):
        """The last step: the page with all that the plan's runs brought, as far as it is there."""
        five = [self._runs[name] for name in FIVE if name in self._runs]
        if not five or set(pieces) & set(BEYOND_THE_PAPER):
            five = list(self._runs.values())
        self._evaluate(evaluate.write_report, five, [], gradients=20 * 6 * len(five), forwards=40 * 6 * len(five),
                       leaves=("report.html", "tables", *["figures"] * bool(set(pieces) & set(PIECES))))
