"""The verb `uncertainty` of evaluate: is doubt warranted, and does it tell attacked and foreign images from clean ones?"""
import functools
from pathlib import Path
from typing import Annotated, Literal

from pyro_advbnn.cli import help, text_tables
from pyro_advbnn.cli.flag_types import Range
from pyro_advbnn.evaluation import ood_images
from pyro_advbnn.evaluation.accuracy import attack_fields
from pyro_advbnn.evaluation.uncertainty import SCORES, ConfidentError, detection, rejection, reliability, scores, summary
from pyro_advbnn.experiments.evaluated_images import image_digest
from pyro_advbnn.experiments.selection import Selection, Subjects, exclusive
from pyro_advbnn.experiments.verbs import TWENTY_STEPS, Attack, Count, Radius, draw_figures, warn
from pyro_advbnn.training import recipes

TABLES = ("uncertainty", "detection", "rejection", "calibration")
FIGURES = ("calibration", "detection", "rejection")
REJECTED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@exclusive
def uncertainty(
    *,
    of: Selection,
    epsilon: Radius | None = None,
    attack: Attack = TWENTY_STEPS,
    attack_samples: Count = 10,
    num_samples: Count = 20,
    confidence_weight: Annotated[float, Range(0, 1_000_000)] = 3.0,
    ood: list[Literal[ood_images.NAMES]] | None = ood_images.MADE,
    ood_dir: Path | None = None,
    rejected: list[Annotated[float, Range(0, 1, open_high=True)]] = REJECTED,
):
    """Calibration and doubt, clean and attacked; what doubt detects; accuracy when the most doubtful images are rejected.

    Two attackers: blind PGD on the cross-entropy, and PGD that also makes the averaged prediction sure of the wrong class,
    so that doubt does not betray it (pgd-confident). Believe the lower detection of the two; a better attacker may lower
    it further. Doubt is the entropy of the averaged prediction, and for random networks the mutual information between
    label and weights. Writes evaluation/ uncertainty.csv, detection.csv, rejection.csv and calibration.csv.

    Args:
        epsilon: l_inf radius of the attacks; default that of the data set's training; 0: none.
        attack_samples: weight draws averaged in each attack gradient.
        num_samples: weight draws averaged in each prediction.
        confidence_weight: of the confidence in the wrong class, against the cross-entropy, in the loss of pgd-confident.
        ood: foreign images to detect: noise, permuted (the run's images, their pixels in one other order), or another data
            set, brought to the size of the run's images; none: no such images.
        ood_dir: folder of the data set that ood names.
        rejected: shares of the images that are rejected, the most doubtful first.
    """
    command = help.command_line("pyro_advbnn.evaluate uncertainty", uncertainty, locals())
    subjects = Subjects(of, *TABLES)
    epsilon = recipes.training_epsilon(subjects.dataset) if epsilon is None else epsilon
    confident = {"loss": ConfidentError(confidence_weight), "average": "probability"}
    ood_images.check(ood or (), subjects.dataset, ood_dir)
    foreign = [{name: ood_images.foreign_images(name, subject.images, subjects.seed, ood_dir) for name in ood or ()}
               for subject in subjects]
    warn([attack.pgd(subjects.dataset, epsilon)])
    for subject, images in zip(subjects, foreign, strict=True):
        doubts = Doubts(subjects, subject, num_samples, rejected)
        doubts.measure()
        if epsilon:
            draws = subject.draws(attack_samples)
            doubts.measure(attack.pgd(subjects.dataset, epsilon, draws))
            doubts.measure(attack.pgd(subjects.dataset, epsilon, draws, **confident), attack="pgd-confident",
                           confidence_weight=confidence_weight)
        for name, others in images.items():
            doubts.detect(name, others)
        _show(subject, doubts)
    print(f"added {subjects.num_rows} rows to {', '.join(str(table.path) for table in subjects.tables)}")
    subjects.log(command)
    draw_figures(subjects.folder, FIGURES)


class Doubts:
    """What the draws of one subject say: rows are computed where they are not in their tables yet, and written at once.

    told, detected: all rows so far of the tables uncertainty and detection, those that were there among them.
    """

    def __init__(self, subjects, subject, num_samples, rejected):
        self.subjects, self.subject, self.rejected = subjects, subject, sorted(set(rejected))
        self.num_samples = subject.draws(num_samples)
        self.by = SCORES if subject.is_random and self.num_samples > 1 else SCORES[:1]   # one draw has no mutual information
        self.told, self.detected = [], []

    def measure(self, pgd=None, **more):
        """The rows of clean images, or of an attack; more: columns that replace or add to those of `attack_fields`."""
        wanted, (told, detected, rejections, bins) = self._settings(attack_fields(pgd) | more), self.subjects.tables
        detections = self._detections(wanted, ("all", "wrong")) if pgd else []
        rejected = [wanted | {"score": score, "rejected": share} for score in self.by for share in self.rejected]
        known = told.find(wanted) and bins.select(**wanted)
        if not (known and all(map(detected.find, detections)) and all(map(rejections.find, rejected))):
            found = self._scores(wanted["attack"], self.subject.images, pgd) if pgd else self.clean
            self._detect(detections, found)
            self._write(rejections, [wanted | {"score": score} | row for score in self.by
                                     for row in rejection(found[score], found["correct"], self.rejected)])
            self._write(bins, [wanted | row for row in reliability(found["confidence"], found["correct"])])
            self._write(told, [wanted | summary(found) | self.unknown()])
        self.told.append(told.find(wanted))
        self.detected += map(detected.find, detections)

    def unknown(self):
        """The columns that one draw of a random network cannot tell: their 0 would be no finding."""
        alone = self.subject.is_random and self.num_samples == 1
        return dict.fromkeys(("mutual_information", "variation_ratio")) if alone else {}

    def detect(self, name, images):
        """The rows that tell foreign images from clean ones."""
        table = self.subjects.tables[1]
        wanted = self._settings(attack_fields(None) | {"ood": name, "ood_images": image_digest(images)})
        detections = self._detections(wanted, ("all",))
        if not all(map(table.find, detections)):
            self._detect(detections, self._scores(name, images))
        self.detected += map(table.find, detections)

    @functools.cached_property
    def clean(self):
        return self._scores("clean", self.subject.images)

    def _scores(self, label, images, pgd=None):
        subject = self.subject
        with self.subjects.measuring(f"{subject.name} {label}", len(images)) as progress:
            return scores(subject.classifier, self.subjects.batches(images), pgd, num_samples=self.num_samples,
                          progress=progress)

    def _settings(self, fields):
        subjects, subject = self.subjects, self.subject
        return subject.fields | {"source": "target"} | fields | {
            "num_samples": self.num_samples, "num_examples": len(subject.images), "images": subject.digest,
            "batch_size": subjects.selection.batch_size, "seed": subjects.seed}

    def _detections(self, wanted, positives):
        columns = self.subjects.tables[1].columns
        shared = {name: value for name, value in wanted.items() if name in columns}
        return [shared | {"positives": which, "score": score} for which in positives for score in self.by]

    def _detect(self, detections, found):
        rows = []
        for wanted in detections:
            score = found[wanted["score"]]
            score = score if wanted["positives"] == "all" else score[found["correct"] == 0]
            rows.append(wanted | detection(self.clean[wanted["score"]], score))
        self._write(self.subjects.tables[1], rows)

    def _write(self, table, rows):
        new = [row for row in rows if not table.find(row)]
        self.subjects.write(table, new)
        self.subjects.num_rows += len(new) if table is not self.subjects.tables[0] else 0    # all tables count here


def _show(subject, doubts):
    print(f"{subject.name}, {doubts.num_samples} {'draws' if doubts.num_samples > 1 else 'draw'} per prediction")
    print(text_tables.table(doubts.told, _TOLD))
    if doubts.unknown():
        print("note: mutual information needs several draws per prediction: --num_samples 2 or more")
    if doubts.detected:
        print(text_tables.table(doubts.detected, _DETECTED))


def _number(name, digits=3):
    return lambda row: "-" if row[name] is None else f"{row[name]:.{digits}f}"


_TOLD = {
    "attack": lambda row: row["attack"],
    "epsilon": lambda row: f"{row['epsilon']:.5g}",
    "accuracy %": lambda row: text_tables.percent(row, interval=True),
    "nll": _number("nll"), "Brier": _number("brier"), "ECE": _number("calibration_error"),
    "entropy": _number("entropy"), "mutual information": _number("mutual_information", 4),
    "attack draws": lambda row: row["attack_samples"] or "-",
    "images": lambda row: row["num_examples"],
}
_DETECTED = {
    "detected": lambda row: row["ood"] or f"{row['attack']}{', where wrong' * (row['positives'] == 'wrong')}",
    "by": lambda row: row["score"].replace("_", " "),
    "AUROC [95%]": lambda row: "-" if row["auroc"] is None else
    f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]",
    "AUPR": _number("aupr"),
    "mean, clean": _number("mean_clean", 4), "mean, these": _number("mean_other", 4),
    "images": lambda row: row["num_positives"],
}
