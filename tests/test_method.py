"""Tests that the numbers of the pages on the method and on the defaults are those of the records in runs/."""
import math
import re

import pytest
from pages import PAGES, RUNS, apart, best_epoch, mean_percent, one, percent, records, section, table
from torch import nn

from pyro_advbnn import networks
from pyro_advbnn.bayes.bayesian_classifier import statistics_stride
from pyro_advbnn.system import json_files
from pyro_advbnn.training import recipes


def digits_runs():
    """{name: record} of the recipe ours on digits: two defences, three lengths, three seeds."""
    return {record["run"]: record for record in records("digits-defaults/records.jsonl")}


def correct(record, attack):
    return [broken == "0" for broken in record["broken"][attack]]


def all_correct(runs, attack):
    return [correct(run, attack) for run in runs]


def test_the_table_of_lengths_is_the_mean_of_three_seeds():
    runs = digits_runs()
    for row in table("method.md", "epochs", "PGD apart"):
        ours, adv = ([runs[f"{defense}-{row['epochs']}-{seed}"] for seed in range(3)] for defense in ("advbnn", "adv"))
        for column, three in (("Adv-BNN", ours), ("adversarial training", adv)):
            assert row[column] == " / ".join([mean_percent([run["last"]["clean"] for run in three]), *(
                mean_percent(sum(all_correct(three, attack), [])) for attack in ("pgd", "apgd-ce"))])
        for column, attack in (("PGD apart", "pgd"), ("APGD apart", "apgd-ce")):
            assert row[column] == apart(*(all_correct(three, attack) for three in (ours, adv)))
        from_image = [mean_percent([run["last"]["pgd_10_draws"] for run in three]) for three in (ours, adv)]
        last = [run["course"][-1] for run in ours]
        assert row["SNR"] == f"{sum(values[3] for values in last) / 3:.1f}"
        assert row["KL"] == f"{sum(values[2] for values in last) / 3:.3f}"
    text = " ".join(PAGES["method.md"].split())
    falls = [100 * (1 - run["course"][-1][2] / run["course"][-61][2]) for run in ours]           # of 240 epochs, the last row
    assert "falls by {:.1f}, {:.1f} and {:.1f} % in the three seeds.".format(*falls) in text
    assert "starts at the image it has {} after 240 and adversarial training {} (means".format(*from_image) in text


def test_the_table_of_runs_equals_the_records():
    runs = digits_runs()
    for row in table("defaults.md", "run", "last"):
        record = runs.pop(row["run"])
        for column in ("last", "best"):
            assert row[column] == f"{percent(record[column]['clean'])} / {percent(record[column]['pgd_10_draws'])}"
        assert row["APGD"] == mean_percent(correct(record, "apgd-ce"))
    assert list(runs) == ["adam-60-0"]                   # of the figure


def test_the_table_of_60_epochs_on_cifar10_equals_the_records():
    places = {"adversarial training, seed 0": ("cifar10-60/at-8-255", "cifar60-adv"),
              "adversarial training, seed 1": ("cifar10-5000", "cifar60-adv-seed-1"),
              "Adv-BNN, seed 0": ("cifar10-5000", "cifar60-advbnn"),
              "Adv-BNN, seed 1": ("cifar10-5000", "cifar60-advbnn-seed-1"),
              "Adv-BNN by the former recipe, seed 0": ("cifar10-60/at-8-255", "cifar60-advbnn")}
    for row in table("method.md", "run", "checkpoint"):
        folder, run = places[row["run"]]
        measured, worst = (records(f"{folder}/evaluation/{name}.csv") for name in ("accuracy", "robust"))
        checkpoint = f"{run}/{'best' if row['checkpoint'] == 'best' else 'checkpoint'}.pt"
        clean = {found["accuracy"] for found in measured if (found["checkpoint"], float(found["epsilon"])) == (checkpoint, 0)}
        assert {row["clean"]} == set(map(percent, clean))
        for column, draws in (("PGD, 1 draw", "1"), ("PGD, 10 draws", "10")):
            assert not row[column] or row[column] == percent(one(
                measured, checkpoint=checkpoint, epsilon="0.031372549", attack_samples=draws)["accuracy"])
        if row["APGD, 10 draws"]:
            assert row["APGD, 10 draws"] == percent(one(worst, checkpoint=checkpoint, attacks="apgd-ce")["accuracy"])


def test_what_lies_between_the_runs_of_60_epochs_is_the_paired_difference():
    runs = {record["run"]: record["broken"] for record in records("cifar10-5000/records.jsonl")}
    of_former = {record["run"]: record["broken"] for record in records("cifar10-60/at-8-255/records.jsonl")}
    ours, adv = [runs["cifar60-advbnn"], runs["cifar60-advbnn-seed-1"]], [of_former["cifar60-adv"], runs["cifar60-adv-seed-1"]]

    def differences(ours, theirs, moment="last"):
        return [apart(*([[broken == "0" for broken in run[when][attack]] for run in runs]
                        for runs, when in ((ours, "last"), (theirs, moment)))) for attack in ("pgd", "apgd-ce")]

    text, former = " ".join(PAGES["method.md"].split()), [of_former["cifar60-advbnn"]]
    assert ("differs from adversarial training's best by {} points (PGD) and {} (APGD), and from its last, which has "
            "overfitted, by {} and {}.").format(*differences(ours, adv, "best"), *differences(ours, adv)) in text
    assert "*The former recipe* stood {} (PGD) and {} points (APGD) above".format(*differences(former, adv[:1])) in text
    assert "Today's last differs from it by {} and {}.".format(*differences(ours[:1], former)) in text


def test_what_is_said_of_60_epochs_on_cifar10_equals_the_records():
    text = " ".join(PAGES["method.md"].split())
    course = records("cifar10-5000/runs/cifar60-advbnn/metrics.jsonl")
    lowest, last = min(course, key=lambda epoch: epoch["snr"]), course[-1]["snr"]
    assert f"falls to {lowest['snr']:.1f} by epoch {lowest['epoch']} (seed 0) and comes back to {last:.1f}." in text
    rows = {(row["run"], row["checkpoint"]): row for row in table("method.md", "run", "checkpoint")}
    clean = float(rows["adversarial training, seed 0", "last"]["clean"]) - float(
        rows["Adv-BNN by the former recipe, seed 0", "last"]["clean"])
    assert f"with {clean:.1f} less on clean images." in text
    rows = [row for row in records("cifar10-5000/evaluation/pruning.csv") if row["prediction"] == "posterior"]
    by_noise, by_std = ([percent(one(rows, prune_by=criterion, fraction=fraction, epsilon="0.031372549")["accuracy"])
                         for fraction in fractions] for criterion, fractions in (
                             ("signal_to_noise", ("0", "0.6")), ("std", ("0", "0.2", "0.4"))))
    assert (f"60 % go at no cost ({by_noise[0]} to {by_noise[1]} %, 500 images), by largest std 20 % ({by_std[1]} %), and 40 % "
            f"at {float(by_std[0]) - float(by_std[2]):.1f} points") in text


def test_what_the_posterior_means_equals_its_records():
    text = section("method.md", "## What the posterior means")
    pruning, uncertainty, detection = (records(f"digits-defaults/posterior/{name}.csv") for name in
                                       ("pruning", "uncertainty", "detection"))
    left = {(row["prune_by"], row["fraction"]): percent(row["accuracy"]) for row in pruning
            if (row["prediction"], row["epsilon"]) == ("posterior", "0.2")}
    assert re.findall(r"\(([\d.]+) to ([\d.]+) %\)", text)[0] == (left["signal_to_noise", "0"], left["signal_to_noise", "0.4"])
    assert f"60 % at {float(left['signal_to_noise', '0']) - float(left['signal_to_noise', '0.6']):.1f} points" in text
    lost = float(left["std", "0"]) - float(left["std", "0.2"])
    assert f"20 % go at {lost:.1f} points ({left['std', '0.2']} %), and 40 % are too many ({left['std', '0.4']} %)" in text
    ours, adv = (one(uncertainty, run=f"{defense}-240-0", attack="pgd") for defense in ("advbnn", "adv"))
    assert (f"the nll is {float(ours['nll']):.2f} and the calibration error {float(ours['calibration_error']):.3f}; "
            f"adversarial training has {float(adv['nll']):.2f} and {float(adv['calibration_error']):.3f}.") in text
    aurocs = [float(one(detection, run=f"{defense}-240-0", attack="pgd-confident", score=score, positives="all")["auroc"])
              for defense, score in (("advbnn", "mutual_information"), ("adv", "entropy"))]
    assert ("an AUROC of {:.3f} by mutual information, where the attacker hides; adversarial training's entropy has {:.3f}."
            ).format(*aurocs) in text


def test_the_table_of_trials_is_the_mean_of_their_seeds():
    runs = records("digits-trials/held-out.jsonl")
    for row in table("defaults.md", "trial"):
        of_run = [run for run in runs if run["run"] == row["trial"]]
        assert row["nll"] == f"{sum(run['nll'] for run in of_run) / len(of_run):.3f}"
        assert row["last"] == " / ".join(mean_percent([run["last"][name] for run in of_run]) for name in ("clean", "pgd"))
        assert row["best"] == mean_percent([run["best"]["pgd"] for run in of_run])
    assert {run["run"] for run in runs} == {row["trial"] for row in table("defaults.md", "trial")}


def test_the_table_of_statistics_for_batch_norm_equals_the_records():
    ends = {record["name"]: record["log"][-1] for record in records("digits-trials/records.jsonl")}
    names = ("batch", "renorm", "meannet", "meansub", "adv")
    for row, end in zip(table("method.md", "BatchNorm in training by"), map(ends.get, names), strict=True):
        held_out = end["held"]
        told = [held_out["clean"], held_out["pgd1"], held_out.get("pgd10", held_out["pgd1"])]          # adv draws nothing
        assert (row["clean / 1 / 10"], row["nll"]) == (" / ".join(map(str, told)), f"{end['nll']:.3f}"), row


def test_the_table_of_curvatures_equals_the_records():
    rows = records("digits-trials/curvature.jsonl")
    for row, record in zip(table("method.md", "curvature by"), rows, strict=True):
        _, nll, kl, snr = record["course"][-1][:4]
        assert [row[name] for name in ("nll", "KL per image", "loss")] == [f"{value:.3f}" for value in (nll, kl, nll + kl)]
        assert row["SNR"] == f"{snr:.1f}"


def test_the_table_of_cuts_equals_the_records():
    found = {(r["settings"]["curvature"], r["clip"], r["settings"]["rho"], len(r["course"])): r["course"][-1]
             for r in records("digits-trials/clip.jsonl")}
    for row in table("method.md", "way", "rho"):
        kind, cut = re.match(r"(\w+), (?:cut at (\d+)|IVON's step)", row["way"]).groups()
        _, nll, kl, snr = found.pop((kind, cut and int(cut), float(row["rho"]), int(row["epochs"])))[:4]
        assert [row[name] for name in ("nll", "KL per image", "loss")] == [f"{value:.3f}" for value in (nll, kl, nll + kl)]
        assert row["SNR"] == f"{snr:.1f}"
    assert not found


def test_the_table_of_alphas_equals_the_records():
    runs = {f"{record['settings']['alpha']:.2g}": record for record in records("digits-alpha/records.jsonl")}
    for row in table("method.md", "alpha", "clean / 1 / 10"):
        record = runs.pop(row["alpha"])
        measured = [record["last"][name] for name in ("clean", "pgd_1_draw", "pgd_10_draws")]
        assert row["clean / 1 / 10"] == " / ".join(map(percent, measured))
        assert (row["SNR"], row["KL"]) == (f"{record['course'][-1][3]:.3g}", f"{record['course'][-1][2]:.3g}")
        assert row["pruned"] == percent(record["pruned_60"])
        assert (row["calibration"], row["AUROC"]) == (f"{record['calibration_error']:.3f}", f"{record['auroc']:.3f}")
    assert not runs


def test_what_is_said_of_alphas_equals_the_records():
    runs = {record["run"]: record for record in records("digits-alpha/records.jsonl")}
    before = {record["run"]: record for record in records("digits-alpha/fan-in.jsonl")}
    text = " ".join(PAGES["method.md"].split())
    many = {name: run["last"]["pgd_10_draws"] for name, run in runs.items()}
    one_draw = {name: run["last"]["pgd_1_draw"] for name, run in runs.items()}
    hidden = [f"{100 * (one_draw[name] - many[name]):.1f}" for name in ("alpha-0.1", "alpha-0.001")]
    assert "at 0.1 an attacker with ten draws wins {} points more, at 0.001 {}.".format(*hidden) in text
    left = [percent(before[f"alpha-{alpha}"]["last"]["pgd_10_draws"]) for alpha in (0.1, 0.001)]
    assert "ten draws leave {} at 0.1 and {} at 0.001 (`fan-in.jsonl`".format(*left) in text
    stds = [float(f"{runs[f'alpha-{alpha}']['prior_std']:.2g}") for alpha in (0.1, "auto", 0.0001)]
    assert "its std is {} at alpha 0.1, {} at 0.0026 and {} at 0.0001.".format(*stds) in text
    small = [name for name, run in runs.items() if run["settings"]["alpha"] <= 0.01]
    left = [100 * runs[name]["pruned_60"] for name in small]
    costs, former = ([100 * (kind[name]["last"]["pgd_10_draws"] - kind[name]["pruned_60"]) for name in small]
                     for kind in (runs, before))
    assert small[-1] == "alpha-0.0001"
    assert (f"the accuracy is {min(left):.0f} to {max(left):.0f} % from 0.01 down, which costs {min(costs):.1f} to "
            f"{max(costs):.1f} points.") in text
    assert f"it cost {min(former[:-1]):.1f} to {max(former[:-1]):.1f} there, and {former[-1]:.1f} at 0.0001." in text
    best = max(many[name] for name in small) - many["alpha-auto"]
    assert f"down robustness under ten draws gains {100 * best:.1f} points at most" in text
    seeds = {record["run"]: record["last"]["pgd_10_draws"] for record in records("digits-alpha/seeds.jsonl")} | many
    means = [mean_percent([seeds[f"alpha-{alpha}{suffix}"] for suffix in ("", "-seed-1", "-seed-2")])
             for alpha in ("auto", "0.001", "0.0001")]
    assert "at 0.0026, 0.001 and 0.0001 are {}, {} and {} (`seeds.jsonl`".format(*means) in text
    last = {name: [epoch[2] for epoch in run["course"][11:]] for name, run in runs.items()}
    within = max(100 * (max(kls) / min(kls) - 1) for name, kls in last.items() if name in small and name != "alpha-0.01")
    falls = [100 * (1 - last[f"alpha-{alpha}"][-1] / last[f"alpha-{alpha}"][0]) for alpha in (0.01, 0.03, 0.1)]
    assert (f"the KL stays within {within:.0f} % from 0.0026 down. "
            "At 0.01 it falls by {:.0f} %, at 0.03 by {:.0f} %, at 0.1 by {:.0f} %:".format(*falls)) in text
    kl, snr = runs["alpha-0.0001"]["course"][-1][2:4]
    assert 0.85 < 1 - price(0.0001, 1287, 66_026, snr) / kl < 0.95      # "nine tenths"


def cifar10_trials():
    return {record["run"]: record for record in records("cifar10-trials/records.jsonl")}


def test_the_table_of_images_equals_the_records_of_the_trials():
    names = {"16 images": "alpha-0.00035", "32 images": "images-32", "64 images: the default": "images-64",
             "128 images": "images-128", "the draw, 128 images": "draw", "(adversarial training, 128 images)": "adv"}
    runs, rows = cifar10_trials(), table("method.md", "statistics of")
    assert [row["statistics of"] for row in rows] == list(names)
    for row in rows:
        record = runs[names[row["statistics of"]]]
        images = int(re.search(r"\d+", row["statistics of"])[0])
        assert images == record["images_of_statistics"]
        assert record["run"] == "adv" or record["settings"]["alpha"] == pytest.approx(0.00035, rel=0.01)
        assert "the default" not in row["statistics of"] or images == record["settings"]["batch_size"] / statistics_stride(128)
        for epoch, (_, nll, _, _, *held_out) in zip((1, 2), [*record["course"][:2], [0] * 6]):
            known = [f"{nll:.3f}", " / ".join(map(percent, held_out))] if nll else ["", ""]
            assert [row[f"nll, epoch {epoch}"], row[f"held out, epoch {epoch}"]] == known


def price(alpha, num_train, num_weights, snr=recipes.BUDGETED_SNR):
    """What the KL costs an image, in nats, where the prior is scaled to the weights (method.md)."""
    return alpha / num_train * num_weights / 2 * math.log1p(snr)


def test_the_table_of_budgets_equals_the_records_of_the_trials():
    epoch = int(re.search(r"smaller budget is better\*\*: epoch (\d+) of", PAGES["method.md"])[1])
    runs, rows = cifar10_trials(), table("method.md", "alpha", "budget")
    names = {"0.007": "alpha-0.007", "0.0014": "alpha-0.0014", "0.00035": "alpha-0.00035", "0.00035, 64 images": "images-64",
             "(adversarial training)": "adv"}
    assert [row["alpha"] for row in rows] == list(names)
    for row in rows:
        record = runs[names[row["alpha"]]]
        alpha, (_, nll, kl, snr, *held_out) = record["settings"]["alpha"], record["course"][epoch - 1]
        assert (row["nll"], row["clean / PGD"]) == (f"{nll:.3f}", " / ".join(map(percent, held_out)))
        assert [row[name] for name in ("SNR", "KL")] == ([f"{snr:.2f}", f"{kl:.3f}"] if alpha else ["", ""])
        assert float(row["budget"] or 0) == pytest.approx(price(alpha, 49_000, 924_186), rel=0.02)
    ours, adv = (runs[name]["course"][-1][1] for name in ("images-64", "adv"))
    assert f"Adv-BNN's nll is {ours - adv:.3f} above" in PAGES["method.md"]


def test_what_is_said_of_the_priors_decay_equals_the_records():
    runs, rows = cifar10_trials(), table("method.md", "prior", "nll, epoch 5")
    text = " ".join(PAGES["method.md"].split())
    names = {"fan_in": "images-64", "0.0038, as auto has it": "prior-0.0038",
             "0.012, alpha 0.0035": "prior-0.012", "(adversarial training)": "adv"}
    assert [row["prior"] for row in rows] == list(names)
    for row in rows:
        course = runs[names[row["prior"]]]["course"]
        told = {f"nll, epoch {epoch}": f"{course[epoch - 1][1]:.3f}" for epoch in (5, 10, 15)}
        snr, *held_out = course[14][3:]
        assert row == {"prior": row["prior"], **told, "SNR": f"{snr:.1f}" if snr else "",
                       "held out, epoch 15": " / ".join(map(percent, held_out))}
    lower = [ours[1] < adv[1] for ours, adv in zip(*(runs[name]["course"] for name in ("images-64", "adv")), strict=True)]
    assert lower == [True] * 10 + [False] * 5            # "up to epoch 10 of 15"
    former, digits = records("digits-trials/prior.jsonl"), digits_runs()
    ours, known = ([digits[f"{defense}-240-{seed}"] for seed in range(3)] for defense in ("advbnn", "adv"))
    better, level, worse = ([apart(*(all_correct(runs, attack) for runs in pair))
                             for attack in ("pgd", "apgd-ce")] for pair in ((ours, former), (ours, known), (former, known)))
    assert f"by {better[0]} (PGD) and {better[1]} points (APGD), image by image" in text
    assert f"by {level[0]} and {level[1]}, those by `fan_in` by {worse[0]} and {worse[1]}: no interval is without 0." in text
    alpha = runs["prior-0.0038"]["settings"]["alpha"]
    assert math.sqrt(alpha / (5e-4 * 49_000)) == pytest.approx(0.0038, abs=5e-5)
    kl, snr = runs["prior-0.0038"]["course"][14][2:4]
    noise = price(alpha, 49_000, 924_186, snr)
    assert f"Of the {kl:.3f} nats per image at the end of the second row below the noise costs {noise:.3f}." in text
    sizes, kept = records("cifar10-trials/sizes.jsonl"), best_epoch(
        records("cifar10-medium/fan_in/runs/advbnn-tuned/metrics.jsonl"))
    grown = [row["advbnn, prior of fan_in"] / row["adv"] for row in sizes]
    snr = [kept[f"snr/{row['weight'].removesuffix('.weight')}"] for row in sizes]
    decay = [alpha / 49_000 / (2 / row["fan_in"]) for row in sizes]
    assert f"end {min(grown):.1f} to {max(grown):.1f} times as large" in text
    assert f"last three convolutions the signal-to-noise ratio is {min(snr[-3:]):.1f} to {max(snr[-3:]):.1f}." in text
    assert f"at most {1e6 * max(decay):.1f}e-6, {round(5e-4 / max(decay), -1):.0f} times less" in text


def test_what_the_decay_weighs_equals_the_records():
    text = " ".join(PAGES["method.md"].split())
    courses = [records(f"{folder}/metrics.jsonl") for folder in (
        "cifar10-medium/runs/advbnn-tuned", "stl10-medium/runs/advbnn")]
    assert "in the first epoch an image pays {:.2f} nats in all with the narrow VGG16, {:.2f} with Model A.".format(
        *(course[0]["kl_per_image"] for course in courses)) in text
    network = networks.build_network("vgg16", 10, 3, 16)
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    first, last = (sum(epoch[f"kl_per_image/{name}"] for name in norms)
                   / sum(value for name, value in epoch.items() if name.startswith("kl_per_image/"))
                   for epoch in (courses[0][0], courses[0][-1]))
    assert last < 0.2 < 0.7 < first                      # in the first epoch BatchNorm's scales, at the end the convolutions


def test_what_is_said_of_budgets_on_stl10_equals_the_records():
    places = {"0.01": "fan_in/runs/advbnn-0.01", "0.11": "fan_in/runs/advbnn", "0.2": "before/runs/advbnn", None: "runs/adv"}
    lost, of_five, text = [], [], " ".join(section("method.md", "## What alpha costs and brings").split())
    for share, place in places.items():
        config, course = json_files.read_config(RUNS / f"stl10-medium/{place}"), records(f"stl10-medium/{place}/metrics.jsonl")
        lost.append(f"{100 * (best_epoch(course)['held_out_robust_accuracy'] - course[-1]['held_out_robust_accuracy']):.1f}")
        of_five.append(mean_percent([epoch["held_out_robust_accuracy"] for epoch in course[-5:]]))
        if share:
            assert float(share) == pytest.approx(price(config["settings"]["alpha"], 4500, config["num_weights"]), rel=0.02)
            assert config["classifier"]["prior_std"] == "fan_in"
    assert "{} points under attack lie between the best epoch and the last, at 0.11 they are {},".format(*lost) in text
    assert "at 0.2, with noisier statistics, {}, and {} without a posterior.".format(*lost[2:]) in text
    assert "under attack are {}, {}, {} and {} %".format(*of_five) in text


def test_what_a_small_budget_costs_on_digits_equals_the_records():
    few, adv = records("digits-trials/small-budget.jsonl"), [digits_runs()[f"adv-240-{seed}"] for seed in range(3)]
    for attack, name in (("pgd", "PGD"), ("apgd-ce", "APGD")):
        told = f"{apart(*(all_correct(runs, attack) for runs in (few, adv)))} ({name})"
        assert told in PAGES["method.md"].partition("With a budget of 0.01 nats")[2].partition("\n- ")[0], told
