"""Csv tables of results: one list of columns per kind of evidence; every row is written whole, once, when it is known."""
import csv
import io
from pathlib import Path

from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError

RUN_FIELDS = ("run", "dataset", "network", "defense", "alpha", "prior_std", "checkpoint", "weights")
ROW_FIELDS = (
    *RUN_FIELDS, "source", "attack", "epsilon", "num_steps", "step_size", "attack_samples", "num_samples", "seed",
    "num_examples", "images", "batch_size", "accuracy", "accuracy_low", "accuracy_high", "reaches_ball",
)
_OPINIONS = tuple(f"{kind}_{name}" for kind in ("clean", "adversarial")
                  for name in ("prediction", "probability", "probability_std", "agreement"))
_IMAGE_FIELDS = ("seed", "num_examples", "images", "batch_size")
_DOUBT = ("nll", "brier", "calibration_error", "entropy", "expected_entropy", "mutual_information", "variation_ratio")
_DETECTION = ("num_positives", "auroc", "auroc_low", "auroc_high", "aupr", "mean_clean", "mean_other")
_GAIN = ("comparisons", "gain", "gain_low", "gain_high")
_ENSEMBLE_FIELDS = ("norm", "epsilon", "num_steps", "attack_samples", "average", "num_queries", "num_samples")
TABLES = {
    "accuracy": ROW_FIELDS,
    "alpha": ROW_FIELDS,
    "prior_std": ROW_FIELDS,
    "runs": ROW_FIELDS,
    "ensemble": ROW_FIELDS,
    "steps": ROW_FIELDS,
    "transfer": (*ROW_FIELDS, "source_checkpoint", "source_weights", "accuracy_clean", "accuracy_white_box", "rho", "note"),
    "pruning": (*ROW_FIELDS, "prune_by", "fraction", "prediction"),
    "density": (*RUN_FIELDS, "quantity", "layer", "left", "right", "share"),
    "layers": (*RUN_FIELDS, "layer", "num_weights", "prior_log_std", "log_std_mean", "log_std_q05", "log_std_median",
               "log_std_q95", "log10_signal_to_noise_median"),
    "gradients": (*RUN_FIELDS, "split", "num_samples", *_IMAGE_FIELDS, "l1_norm", "l1_norm_low", "l1_norm_high"),
    "uncertainty": (*ROW_FIELDS, "confidence_weight", *_DOUBT),
    "detection": (*RUN_FIELDS, "attack", "epsilon", "num_steps", "step_size", "attack_samples", "confidence_weight", "ood",
                  "ood_images", "num_samples", *_IMAGE_FIELDS, "score", "positives", *_DETECTION),
    "rejection": (*ROW_FIELDS, "confidence_weight", "score", "rejected", "num_kept"),
    "calibration": (*ROW_FIELDS, "confidence_weight", "left", "right", "num_in_bin", "confidence"),
    "many_draws": ROW_FIELDS,
    "robust": (*RUN_FIELDS, "attacks", *_ENSEMBLE_FIELDS, *_IMAGE_FIELDS, "accuracy", "accuracy_low", "accuracy_high",
               "unbroken", "single_draw_accuracy", "undecided", "tried"),
    "robust_examples": (*RUN_FIELDS, "attack", *_ENSEMBLE_FIELDS, *_IMAGE_FIELDS, "index", "label", "judged_margin",
                        "leaves", "margin", "broken", "wrong_draws", "predicted", "seconds"),
    "gains": ("pair", "seed", "contender", "control", "epsilon", "num_examples", "accuracy", "control_accuracy", *_GAIN),
    "checks": (*RUN_FIELDS, "epsilon", "num_steps", "attack_samples", "num_samples", "num_queries", *_IMAGE_FIELDS, "check",
               "verdict", "measured", "expected"),
    "examples": (*RUN_FIELDS, "attack", "epsilon", "num_steps", "step_size", "attack_samples", "num_samples", "seed",
                 "num_examples", "images", "index", "label", *_OPINIONS, "clean_image", "perturbation_image",
                 "adversarial_image"),
}
_RESULTS = {"accuracy", "accuracy_low", "accuracy_high", "reaches_ball", "accuracy_clean", "accuracy_white_box", "rho", "note",
            "l1_norm", "l1_norm_low", "l1_norm_high", "label", "clean_image", "perturbation_image", "adversarial_image",
            "judged_margin", "leaves", "margin", "broken", "wrong_draws", "predicted", "seconds", "unbroken",
            "single_draw_accuracy", "undecided", "tried", "verdict", "measured", "expected", *_OPINIONS, *_DOUBT, *_DETECTION,
            "num_kept", "num_in_bin", "confidence", "control_accuracy", *_GAIN}
_WAY_ON = "move the file away, and what wrote it computes its rows again"
_TEXTS = {"run", "dataset", "network", "defense", "prior_std", "checkpoint", "weights", "source", "attack", "images",
          "source_checkpoint", "source_weights", "note", "prune_by", "prediction", "quantity", "layer", "split", "label",
          "attacks", "norm", "average", "predicted", "tried", "check", "verdict", "measured", "expected", "ood", "ood_images",
          "score", "positives", "clean_prediction", "adversarial_prediction", "clean_image", "perturbation_image",
          "adversarial_image", "pair", "contender", "control"}


class Table:
    """The csv file folder/evaluation/<name>.csv, name one of TABLES; the file is made with its first row.

    Raises InputError where it is there with other columns.
    """

    def __init__(self, folder, name):
        self.path = Path(folder) / "evaluation" / f"{name}.csv"
        self.columns = TABLES[name]
        self._lines = {self._key(line): line for line in _read(self.path, self.columns)}

    @property
    def rows(self):
        """The rows as mappings: numbers as int or float, booleans, None for an empty cell, else text."""
        return [_values(line) for line in self._lines.values()]

    def select(self, **settings):
        """The rows whose cells are those of `settings`, a list."""
        cells = {name: _cell(value) for name, value in settings.items()}
        return [_values(line) for line in self._lines.values() if cells.items() <= line.items()]

    def find(self, settings):
        """The row whose cells are those of `settings` wherever a column is no result, or None."""
        line = self._lines.get(self._key({name: _cell(settings.get(name)) for name in self.columns}))
        return line and _values(line)

    def add(self, rows):
        """Write `rows`, mappings from column to value; missing columns stay empty. The file changes in one step.
        One `Table` of a file at a time may add: who evaluates holds the lock of the folder.

        A row whose columns but for the results are those of an older one takes its place.
        """
        unknown = {name for row in rows for name in row} - set(self.columns)
        if unknown:
            raise ValueError(f"no columns of {self.path.name}: {sorted(unknown)}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for row in rows:
            line = {name: _cell(row.get(name)) for name in self.columns}
            self._lines[self._key(line)] = line
        write(self.path, self.columns, self._lines.values())

    def _key(self, line):
        return tuple(line[name] for name in self.columns if name not in _RESULTS)


def write(path, columns, rows):
    """Replace the csv file by `rows`, mappings from column to value, in one step."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with files.replacing(path) as file:
        file.write(text.getvalue().encode())


def read(folder, name):
    """The rows of folder/evaluation/<name>.csv, [] where there is none; values as in `Table.rows`."""
    return Table(folder, name).rows


def _read(path, columns):
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            lines = [line for line in csv.reader(file) if line]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} cannot be read: {error}; {_WAY_ON}") from None
    if not lines or tuple(lines[0]) != columns:
        raise InputError(f"{path}: its columns are not those of a table of this version; {_WAY_ON}")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(columns):
            raise InputError(f"{path}: row {number} has {len(line)} cells, not {len(columns)}; {_WAY_ON}")
    return [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def _cell(value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _values(line):
    return {name: _value(name, cell) for name, cell in line.items()}


def _value(name, cell):
    if cell == "":
        return None
    if name == "reaches_ball":
        return cell == "true"
    return cell if name in _TEXTS else int(cell) if cell.lstrip("-").isdigit() else float(cell)
