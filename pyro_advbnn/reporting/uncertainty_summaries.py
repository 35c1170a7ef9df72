"""The tables of uncertainty: likelihood, calibration and doubt, and how well doubt tells attacked and foreign images."""
from pyro_advbnn.cli.text_tables import decimal, with_interval
from pyro_advbnn.reporting.curves import named
from pyro_advbnn.reporting.summary import Summary, shared
from pyro_advbnn.reporting.uncertainty_figures import detected


def uncertainty(rows, _):
    """Accuracy, likelihood, calibration and doubt, clean and attacked, one line per row."""
    numbers = {"NLL": "nll", "Brier": "brier", "ECE": "calibration_error", "entropy": "entropy",
               "expected entropy": "expected_entropy", "mutual information": "mutual_information",
               "variation ratio": "variation_ratio"}
    lines = [[name, _images(row), with_interval(row),
              *(decimal(row[column], 4 if column == "mutual_information" else 3) for column in numbers.values())]
             for name, row in named(rows, "epsilon", "attack", "score")]
    note = (f"{shared(rows)}. Of the averaged prediction: accuracy in % with its 95 % Wilson interval, negative "
            "log-likelihood, Brier score (0 to 2), expected calibration error (15 bins, largest probability), entropy. "
            "Entropies in nats; mutual information: entropy less the mean entropy of single draws; variation ratio: share of "
            "the draws that do not vote with most. pgd-confident also maximises the probability of a wrong class. Nothing "
            "published.")
    return [Summary("uncertainty", "Calibration and doubt", ["run", "images", "accuracy", *numbers], lines, note)]


def detection(rows, _):
    """How well doubt tells images from clean ones, one line per row."""
    lines = [[name, detected(row), row["score"].replace("_", " "), with_interval(row, "auroc", "{:.3f}".format),
              decimal(row["aupr"], 3), decimal(row["mean_clean"], 4), decimal(row["mean_other"], 4),
              f"{row['num_positives']:,}"]
             for name, row in named(rows, "epsilon", "attack", "score")]
    note = (f"{shared(rows)}. AUROC: the chance that such an image has the higher doubt of it and a clean one, with its "
            "95 % interval (Newcombe 2006), as if of different images; AUPR: average precision, by chance the share "
            "of these among all images; where wrong: only the attacked images that the averaged prediction gets wrong. "
            "pgd-confident is an attacker who also leaves no doubt; a better one may lower detection further. Nothing "
            "published.")
    return [Summary("detection", "Detection of attacked and foreign images by doubt",
                    ["run", "images", "doubt", "AUROC", "AUPR", "mean, clean", "mean, these", "number"], lines, note)]


def _images(row):
    return f"{row['attack']}, ε = {row['epsilon']:g}" if row["epsilon"] else "clean"
