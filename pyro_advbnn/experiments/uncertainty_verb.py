"""The verb `uncertainty` of evaluate: is doubt warranted, and does it tell attacked and foreign images from clean ones?"""
import functools
from pathlib import Path
from typing import Annotated, Literal

from pyro_advbnn.cli.flag_types import Count, Range
from pyro_advbnn.evaluation import ood_images
from pyro_advbnn.evaluation.uncertainty import SCORES, ConfidentError, detection, rejection, reliability, scores, summary
from pyro_advbnn.experiments.images import image_digest
from pyro_advbnn.experiments.verbs import AttackFlags, Radius, draw_figures, show, verb
from pyro_advbnn.training import recipes

TABLES = ("uncertainty", "detection", "rejection", "calibration")
FIGURES = ("calibration", "detection", "rejection")
REJECTED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@verb("uncertainty")
def uncertainty(
    runs,
    *,
    epsilon: Radius | None = None,
    attack: AttackFlags,
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
    epsilon = recipes.training_epsilon(runs.dataset) if epsilon is None else epsilon
    hiding = {"loss": ConfidentError(confidence_weight), "average": "probability"}
    ood_images.check(ood or (), runs.dataset, ood_dir)
    foreign = [{name: ood_images.foreign_images(name, run.images, runs.seed, ood_dir) for name in ood or ()} for run in runs]
    attack.warn(runs.dataset, [epsilon])
    doubts = []
    for run, images in zip(runs, foreign, strict=True):
        doubt = _Doubt(runs, run, num_samples, rejected)
        doubt.measure()
        if epsilon:
            draws = run.draws(attack_samples)
            doubt.measure(attack.pgd(runs.dataset, epsilon, draws))
            doubt.measure(attack.pgd(runs.dataset, epsilon, draws, **hiding), attack="pgd-confident",
                          confidence_weight=confidence_weight)
        for name, others in images.items():
            doubt.detect(name, others)
        doubts.append(doubt)
    _show(runs, doubts)
    paths = ", ".join(str(runs.table(name).path) for name in TABLES)
    print(f"added {runs.num_added.total()} rows to {paths}")
    draw_figures(runs.folder, FIGURES)


class _Doubt:
    """What the draws of one run say: rows are computed where they are not in their tables yet, and written at once.

    told, detected: all rows so far of the tables uncertainty and detection, those that were there among them.
    """

    def __init__(self, runs, run, num_samples, rejected):
        self.runs, self.run, self.rejected = runs, run, sorted(set(rejected))
        self.num_samples = run.draws(num_samples)
        self.by = SCORES if run.is_random and self.num_samples > 1 else SCORES[:1]   # one draw has no mutual information
        self.told, self.detected = [], []

    def measure(self, pgd=None, **more):
        """The rows of clean images, or of an attack; more: columns that replace or add to those of the attack."""
        runs, wanted = self.runs, self.run.settings(pgd, num_samples=self.num_samples, **more)
        detections = self._detections(wanted, ("all", "wrong")) if pgd else []
        rejections = [wanted | {"score": score, "rejected": share} for score in self.by for share in self.rejected]
        if not (runs.known("uncertainty", [wanted]) and runs.table("calibration").select(**wanted)
                and runs.known("detection", detections) and runs.known("rejection", rejections)):
            found = self._scores(wanted["attack"], self.run.images, pgd) if pgd else self.clean
            self._detect(detections, found)
            runs.add_new("rejection", [wanted | {"score": score} | row for score in self.by
                                       for row in rejection(found[score], found["correct"], self.rejected)])
            runs.add_new("calibration", [wanted | row for row in reliability(found["confidence"], found["correct"])])
            runs.add_new("uncertainty", [wanted | summary(found) | self.unknown()])
        self.told.append(runs.table("uncertainty").find(wanted))
        self.detected += map(runs.table("detection").find, detections)

    def unknown(self):
        """The columns that one draw of a random network cannot tell: their 0 would be no finding."""
        alone = self.run.is_random and self.num_samples == 1
        return dict.fromkeys(("mutual_information", "variation_ratio")) if alone else {}

    def detect(self, name, images):
        """The rows that tell foreign images from clean ones."""
        wanted = self.run.settings(None, num_samples=self.num_samples, ood=name, ood_images=image_digest(images))
        detections = self._detections(wanted, ("all",))
        if not self.runs.known("detection", detections):
            self._detect(detections, self._scores(name, images))
        self.detected += map(self.runs.table("detection").find, detections)

    @functools.cached_property
    def clean(self):
        return self._scores("clean", self.run.images)

    def _scores(self, label, images, pgd=None):
        with self.runs.measuring(f"{self.run.name} {label}", len(images)) as progress:
            return scores(self.run.classifier, self.runs.batches(self.run, images), pgd, num_samples=self.num_samples,
                          progress=progress)

    def _detections(self, wanted, positives):
        shared = {name: value for name, value in wanted.items() if name in self.runs.table("detection").columns}
        return [shared | {"positives": which, "score": score} for which in positives for score in self.by]

    def _detect(self, detections, found):
        rows = []
        for wanted in detections:
            score = found[wanted["score"]]
            score = score if wanted["positives"] == "all" else score[found["correct"] == 0]
            rows.append(wanted | detection(self.clean[wanted["score"]], score))
        self.runs.add_new("detection", rows)


def _show(runs, doubts):
    """Print the tables of a report that are made of the rows of all runs, and what they cannot tell."""
    for doubt in doubts:
        if doubt.unknown():
            print(f"note: {doubt.run.name}: mutual information needs several draws per prediction: --num_samples 2 or more")
    show("uncertainty", [row for doubt in doubts for row in doubt.told], runs.folder)
    show("detection", [row for doubt in doubts for row in doubt.detected], runs.folder)
