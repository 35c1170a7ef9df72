"""Rows of every table of results, made up, that tests of curves, figures and summaries share."""
from pyro_advbnn.evaluation.intervals import transfer_rate, wilson_interval
from pyro_advbnn.reporting.csv_tables import TABLES, Table


def run_fields(name, defense, **fields):
    bayesian = {"alpha": 0.1, "prior_std": "0.05"} if defense in ("bnn", "advbnn") else {}
    return {"run": name, "dataset": "cifar10", "network": "vgg16", "defense": defense, "checkpoint": f"{name}/best.pt",
            "weights": f"w-{name}", **bayesian, **fields}


def measured(correct, total=1000):
    low, high = wilson_interval(correct, total)
    return {"num_examples": total, "accuracy": correct / total, "accuracy_low": low, "accuracy_high": high}


def row(run, correct, epsilon=0.035, draws=1, **fields):
    """A row of accuracy; clean ones know no attack."""
    attack = {"attack": "pgd", "num_steps": 20, "step_size": 0.007, "attack_samples": draws} if epsilon else {"attack": "none"}
    return {**run, "source": "target", "num_samples": 1 if run["defense"] in ("none", "adv") else 20, "seed": 0,
            "epsilon": epsilon, **attack, **measured(correct), **fields}


ADV, ADVBNN, BNN = run_fields("adv", "adv"), run_fields("advbnn", "advbnn"), run_fields("bnn", "bnn")


def accuracy_rows(run, draws=(1, 10)):
    return [row(run, 800, 0.0), *(row(run, correct - 10 * m, epsilon, m) for m in draws
                                  for epsilon, correct in ((0.015, 600), (0.035, 400), (0.07, 150)))]


def all_tables():
    """Rows of every kind for Adv-BNN, BNN and adversarial training."""
    runs, density = (ADV, BNN, ADVBNN), []
    for run in (BNN, ADVBNN):
        for quantity in ("log_std", "log10_signal_to_noise"):
            density += [{**run, "quantity": quantity, "layer": "all", "left": left, "right": left + 0.5, "share": share}
                        for left, share in ((-4.0, 0.25), (-3.5, 0.5), (-3.0, 0.25))]
        density.append({**run, "quantity": "prior_log_std", "layer": "all", "left": -3.0, "right": -3.0, "share": 1.0})
    layers = [{**run, "layer": layer, "num_weights": 30, "prior_log_std": -3.0, "log_std_mean": -3.5, "log_std_q05": -4.0,
               "log_std_median": -3.6, "log_std_q95": -3.1, "log10_signal_to_noise_median": 0.2}
              for run in (BNN, ADVBNN) for layer in ("all", "features.0.weight", "features.0.bias")]
    return {
        "accuracy": [one for run in runs for one in accuracy_rows(run, (1,) if run is ADV else (1, 10))],
        "transfer": [transfer_row(source, run) for source in runs for run in runs],
        "ensemble": [row(run, 300 + n, epsilon, 10, num_samples=n) for run in (BNN, ADVBNN) for epsilon in (0.0, 0.035)
                     for n in (1, 10, 100)],
        "many_draws": [row(run, 400 - n, attack_samples=n) for run in runs for n in (1, 10, 50)],
        "steps": [row(run, 500 - n // 10, num_steps=n) for run in runs for n in (3, 20, 1000)],
        "pruning": [row(run, 500 - int(100 * f), fraction=f, prune_by=by, prediction=prediction) for run in (BNN, ADVBNN)
                    for by in ("std", "signal_to_noise") for prediction in ("posterior", "mean") for f in (0.0, 0.5)],
        "density": density, "layers": layers,
        "alpha": [row(run_fields(f"a{alpha}", "advbnn", alpha=alpha), 700 + int(10 * alpha), epsilon, 10)
                  for alpha in (0.0, 0.02, 1.0) for epsilon in (0.0, 0.035)],
        "prior_std": [row(run_fields(f"p{std}", "advbnn", prior_std=std), 700, 0.035, 10)
                      for std in ("0.05", "0.15", "fan_in")],
        "gradients": [{**run, "split": split, "num_samples": 1, "seed": 0, "num_examples": 100, "l1_norm": norm,
                       "l1_norm_low": norm - 1, "l1_norm_high": norm + 1}
                      for run in runs for split, norm in (("train", 20.0), ("test", 33.0))],
        **doubt_tables(runs),
    }


def transfer_row(source, run):
    """White-box attacks leave BNN nearly as it is, and the others at 30 %."""
    white_box, transferred = (788, 790) if run is BNN else (300, 490)
    correct = white_box if source is run else transferred
    rate, note = transfer_rate(0.8, correct / 1000, white_box / 1000, 1000)
    return {**row(run, correct, draws=1 if source is ADV else 10), "source": source["run"],
            "source_checkpoint": source["checkpoint"], "accuracy_clean": 0.8, "accuracy_white_box": white_box / 1000,
            "rho": rate, "note": note or None}


def doubt_tables(runs):
    """Rows of the verb uncertainty: clean images and two attackers; noise as foreign images."""
    told, calibration, rejection, detection = [], [], [], []
    for run in runs:
        scores = ("entropy",) if run is ADV else ("entropy", "mutual_information")
        for number, (name, weight) in enumerate((("none", None), ("pgd", None), ("pgd-confident", 10.0))):
            own = row(run, 800 - 200 * number, 0.035 if number else 0.0, 10, confidence_weight=weight, attack=name)
            told.append({**own, "nll": 0.9 + number, "brier": 0.4, "calibration_error": 0.125, "entropy": 1.5,
                         "expected_entropy": 1.25, "mutual_information": 0.25, "variation_ratio": 0.0625})
            for place, correct in ((0, 100), (1, 300)):
                calibration.append({**own, **measured(correct - 50 * number, 500), "num_examples": 1000, "left": place / 2,
                                    "right": place / 2 + 0.5, "num_in_bin": 500, "confidence": place / 2 + 0.375})
            for score in scores:
                rejection += [{**own, **measured(int(kept * (0.9 - 0.2 * number)), kept), "num_examples": 1000, "score": score,
                               "rejected": 1 - kept / 1000, "num_kept": kept} for kept in (1000, 500, 100)]
                shared = {column: own.get(column) for column in TABLES["detection"]} | {"score": score, "num_positives": 400,
                          "aupr": 0.75, "mean_clean": 1.5, "mean_other": 1.75}
                auroc = {"auroc": 0.875 - 0.125 * number, "auroc_low": 0.5, "auroc_high": 0.9375}
                if number:
                    detection += [{**shared, **auroc, "positives": which} for which in ("all", "wrong")]
                else:
                    detection.append({**shared, **auroc, "positives": "all", "ood": "noise", "ood_images": "n"})
    return {"uncertainty": told, "calibration": calibration, "rejection": rejection, "detection": detection}


def folder_of(path, tables):
    for name, rows in tables.items():
        Table(path, name).add(rows)
    return path
