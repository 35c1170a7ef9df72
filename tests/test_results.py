"""Tests that the numbers of the README and of docs/, in tables and beside them, are those of the records in runs/."""
import re
import statistics
from itertools import combinations

import pytest
from pages import PAGES, RUNS, apart, best_epoch, both_accuracies, mean_percent, one, percent, records, section, table

from pyro_advbnn.bayes.defenses import DEFENSES
from pyro_advbnn.evaluation import worst_case
from pyro_advbnn.reporting import paper
from pyro_advbnn.system import json_files

DEFENSE_OF = {name: defense for defense, name in paper.DEFENSE_NAMES.items()}
RADII = {"clean": "0", "8/255": "0.031372549"}
CIFAR10, STL10, IMAGENET = "cifar10-medium", "stl10-medium", "imagenet-dogcat11"
TRAININGS = {CIFAR10: ("2000", ["clean", "8/255", "0.035", "0.07"]), STL10: ("3000", ["clean", "0.035", "0.07"])}


def accuracy_of(label, epsilon, draws, folder, dataset="cifar10"):
    """What a table has to say of a defence: our record, or what the source says that the label names."""
    source, _, name = label.strip("*").partition(";")[0].rpartition(", ")
    if source:
        return percent(paper.accuracy(dataset, DEFENSE_OF[name], float(epsilon), many_draws=draws not in ("1", "any")))
    name, _, run = name.removesuffix(")").partition(" (")           # of several runs of a defence a label names the run
    defense = DEFENSE_OF[name]
    part = f"{run}/" if run and (RUNS / folder / run / "evaluation").exists() else ""           # on whole data sets apart
    run = "" if part or run == "fan_in" else run
    best = [row for row in records(f"{folder}/{part}evaluation/accuracy.csv")
            if row["checkpoint"].endswith("/best.pt") and (run or defense) in (row["run"], row["run"].partition("-")[0])]
    found = one(best, defense=defense, epsilon=epsilon, attack_samples=draws if DEFENSES[defense].random else "1")
    assert part != "fan_in/" or found["prior_std"] == "fan_in"
    return percent(found["accuracy"])


def test_the_readmes_table_of_results_equals_the_records():
    places = {"CIFAR-10": (CIFAR10, "cifar10"), "STL-10": (STL10, "stl10")}
    for row in table("README.md", "whole data sets, in %"):
        (_, label), *cells = row.items()
        name, label = label.strip("*").split(": ")
        for column, cell in cells:
            epsilon, draws = re.fullmatch(r"([\d.]+), (\d+) draws?", column.replace("clean", "0, 1 draw")).groups()
            if (name, label, draws) == ("STL-10", "adversarial training", "20"):     # on the images of Adv-BNN's 20 draws
                few = [row for row in records(f"{places[name][0]}/evaluation/runs.csv") if "/best.pt" in row["checkpoint"]]
                assert cell == percent(one(few, defense="adv", epsilon=epsilon, num_examples="500")["accuracy"])
            else:
                assert not cell or cell.strip("*") == accuracy_of(label, epsilon, draws, *places[name]), (label, column)


def test_what_the_readme_says_of_the_papers_lead_equals_its_table():
    of = {row["whole data sets, in %"]: row for row in table("README.md", "whole data sets, in %")}
    theirs, ours, known = (of[name] for name in (
        "*CIFAR-10: paper, Adv-BNN; many draws by arXiv 2212.02003*", "CIFAR-10: adversarial training",
        "*CIFAR-10: paper, adversarial training*"))
    one_draw, many, baseline = (float(cell.strip("*")) for cell in (
        theirs["0.035, 1 draw"], theirs["0.035, 20 draws"], known["0.035, 1 draw"]))
    less = float(known["clean"].strip("*")) - float(ours["clean"])
    text, lead, left = PAGES["README.md"], one_draw - baseline, many - baseline
    assert f"The paper's lead of {lead:.0f} points** on CIFAR-10 at 0.035 shrinks to {left:.0f} under many draws" in text
    assert (f"The paper's baseline has {baseline}, ours {ours['0.035, 1 draw']} (but {less:.1f} points less on clean images)."
            in text)


def test_what_the_readme_says_of_whole_vgg16_and_of_the_mean_network_equals_the_records():
    known, ours = (one(table("results.md", "VGG16", "draws per gradient"), VGG16=name, **{"draws per gradient": draws})
                   for name, draws in (("adversarial training", "any"), ("Adv-BNN", "1")))
    clean, attacked = (f"{float(known[radius]) - float(ours[radius]):.0f}" for radius in ("0", "8/255"))
    assert (f"was [{clean} points lower](docs/results.md#cifar-10-whole-vgg16) on clean images and {attacked} under attack"
            in PAGES["README.md"])
    whole = [row for row in records(f"{CIFAR10}/evaluation/pruning.csv")
             if (row["run"], row["prune_by"], row["fraction"]) == ("advbnn-tuned", "signal_to_noise", "0")]
    for epsilon in ("0", "0.03125"):                     # "and so does its mean network"
        alone, together = (float(one(whole, epsilon=epsilon, prediction=by)["accuracy"]) for by in ("mean", "posterior"))
        assert abs(alone - together) < 0.01


@pytest.mark.parametrize("title, folder, dataset", [
    ("defence", "cifar10-small", "cifar10"), ("VGG16", "gpu/h100/cifar10", "cifar10"),
    ("narrow VGG16", CIFAR10, "cifar10"), ("Model A", STL10, "stl10"),
    ("eleven classes", IMAGENET, "imagenet143")])
def test_the_large_tables_of_results_equal_the_records(title, folder, dataset):
    for row in table("results.md", title, "draws per gradient"):
        (_, label), (_, draws), *cells = row.items()
        for epsilon, cell in cells:
            epsilon, draws = RADII.get(epsilon, epsilon), draws.strip("*")
            if cell or title == "defence":               # the others leave out what nobody measured
                assert cell.strip("*") == accuracy_of(label, epsilon, draws, folder, dataset), (label, epsilon)


def best_rows(folder, run, *names):
    """The rows of the best epoch of a run in the first tables of a folder, in their order."""
    paths = [f"{folder}/evaluation/{name}.csv" for name in names]
    return [row for path in paths if (RUNS / path).exists() for row in records(path)
            if row["run"] == run and row["checkpoint"].endswith("/best.pt")]


def listed(rows, radii, **fields):
    """The accuracies of the first rows with these fields, - where a radius was not measured; nothing where none was."""
    found = [[row for row in rows if {**fields, "epsilon": RADII.get(radius, radius)}.items() <= row.items()]
             for radius in radii]
    return " / ".join(percent(of[0]["accuracy"]) if of else "-" for of in found) if any(found) else ""


def worst_row(folder, run):
    """The worst case of a run over several attacks."""
    row, = (row for row in best_rows(folder, run, "robust") if " " in row["attacks"])
    return row


def worst_images(folder, run):
    """What each of several attacks made of each image of a run, a row for each."""
    weights = worst_row(folder, run)["weights"]
    name, = (path.name for path in (RUNS / folder / "evaluation").glob("robust_examples.csv*"))
    return [{"attack": image["attack"], "judged_margin": float(image["judged_margin"]), "index": int(image["index"]),
             "broken": int(image["broken"]), "seconds": image["seconds"]} for image in records(f"{folder}/evaluation/{name}")
            if (image["run"], image["weights"]) == (run, weights)]


def of_folder(name, folder):
    """The folder and the run that a cell of a table names, below a folder of runs/."""
    part, _, run = name.rpartition("/")
    return f"{folder}/{part}".strip("/"), run


@pytest.mark.parametrize("folder, title", [(CIFAR10, "training"), (CIFAR10, "training of 15 epochs"), (STL10, "training")])
def test_the_tables_of_all_trainings_equal_the_records(folder, title):
    (images, radii), baseline = TRAININGS[folder], None
    column = f"one draw: {' / '.join(radii)}"
    for row in table("results.md", title, column):
        place, bayesian = of_folder(row["run"], folder), "Adv-BNN" in row[title]
        measured, robust = best_rows(*place, "accuracy", "runs"), best_rows(*place, "robust")
        assert bayesian == (robust or measured)[0]["run"].startswith("advbnn")
        assert not bayesian or (("fan_in" in row[title] or "former" in row[title])
                                == ((robust or measured)[0]["prior_std"] == "fan_in"))
        assert row[column] == listed(measured, radii, attack_samples="1", num_examples=images), row
        assert row["20 draws"] == listed(measured, radii, attack_samples="20" if bayesian else "1", num_examples="500"), row
        for name, several in (("APGD", False), ("worst case", True)):
            assert row[name] == "".join(percent(of["accuracy"]) for of in robust if (" " in of["attacks"]) == several), row
        found = worst_images(*place) if row["worst case"] else None
        if found and bayesian:
            gain = worst_case.gain(found, baseline)
            gained = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * gain[name] for name in ("gain", "gain_low", "gain_high")))
        assert row["apart"] == (gained if found and bayesian else ""), row
        baseline = baseline if bayesian else found


def counted_rows(folder, run, clean):
    """`worst_images`, or those of the clean images alone."""
    return [row for row in worst_images(folder, run) if row["attack"] == "none" or not clean]


def standing(folder, run, clean=False):
    """Whether each image stands, in order."""
    left = worst_case.worst_rows(counted_rows(folder, run, clean))
    return [not left[index]["broken"] for index in sorted(left)]


def unbroken(folder, run, clean=False):
    """Whether each image stands against every attack, in order."""
    rows = counted_rows(folder, run, clean)
    broken = {row["index"] for row in rows if row["broken"]}
    return [index not in broken for index in sorted({row["index"] for row in rows})]


def ties_of(folder, run):
    """Whether each image is broken whose worst attack makes two logits equal."""
    worst = worst_case.worst_rows(worst_images(folder, run)).values()
    return [row["broken"] for row in worst if row["judged_margin"] == 0]


def mean_gain(runs, others, clean=False, stands=standing):
    """What runs have more than others, run by run, in the mean, image by image, with half its interval."""
    return apart(*([stands(*place, clean) for place in places] for places in (runs, others)))


ADV = [(CIFAR10, "adv-tuned"), (f"{CIFAR10}/seed-1", "adv-tuned-seed-1")]
ADVBNN = [(CIFAR10, "advbnn-tuned"), (f"{CIFAR10}/seed-1/auto", "advbnn-tuned-seed-1")]
FAN_IN = [(f"{CIFAR10}/fan_in", "advbnn-tuned"), (f"{CIFAR10}/seed-1", "advbnn-tuned-seed-1")]
STL10_ADV, STL10_ADVBNN = ([(STL10, run), (f"{STL10}/seed-1", f"{run}-seed-1")] for run in ("adv", "advbnn"))
STRONGEST = {                                            # with targeted Auto-PGD: adversarial training, Adv-BNN
    "CIFAR-10": [[(f"{CIFAR10}/targeted", f"{run}-tuned")] for run in ("adv", "advbnn")],
    "STL-10": [[(f"{STL10}/targeted", run), (f"{STL10}/seed-1/targeted", f"{run}-seed-1")] for run in ("adv", "advbnn")],
    "ImageNet": [[(f"{IMAGENET}/epochs-60", run), *((f"{IMAGENET}/epochs-60/seed-{n}", f"{run}-seed-{n}") for n in (1, 2, 3))]
                 for run in ("adv", "advbnn")]}
IMAGENET_ADV, IMAGENET_ADVBNN = STRONGEST["ImageNet"]


def accuracy(place, epsilon, draws="1", images="500"):
    """An accuracy of a run, in %, not rounded."""
    found = [row for row in best_rows(*place, "accuracy", "runs")
             if (row["epsilon"], row["attack_samples"], row["num_examples"]) == (epsilon, draws, images)]
    return 100 * float(found[0]["accuracy"])


def worst_case_of(*places):
    """The accuracy of each run in the worst case, as a page says it."""
    return [percent(worst_row(*place)["accuracy"]) for place in places]


def test_the_table_of_what_was_found_equals_the_records():
    for row in table("results.md", "worst case at"):
        adv, ours = STRONGEST[re.match(r"\[([\w-]+)", row["data set"])[1]]
        measured = [worst_row(*place) for place in (*adv, *ours)]
        for of, targeted in zip(measured, ["apgd-t{}"] * len(adv) + ["apgd-t{}@mean"] * len(ours), strict=True):
            tried = set(of["tried"].split())
            assert {"noise", "pgd", "apgd-ce", "apgd-dlr"} | {targeted.format(rank) for rank in range(1, 10)} <= tried
            assert tried & {"square", "square@mean"}
        assert {(f"{float(of['epsilon']):.3f}", of["num_examples"], of["num_steps"]) for of in measured} == {
            (f"{float(RADII.get(radius, radius)):.3f}", images, "40")
            for radius, images in re.findall(r"(\S+), (\d+) images", row["worst case at"])}
        assert {of["attack_samples"] for of in measured[len(adv):]} == {"20"}
        assert [row[name] for name in ("Adv-BNN, by seed", "adversarial training", "apart, mean", "by unbroken")] == [
            ", ".join(worst_case_of(*ours)), ", ".join(worst_case_of(*adv)), mean_gain(ours, adv),
            mean_gain(ours, adv, stands=unbroken)], row
        assert row["unbroken"] == ", ".join(percent(of["unbroken"]) for of in measured[len(adv):])
        assert all(of["unbroken"] == of["accuracy"] for of in measured[:len(adv)])


def test_what_is_said_of_ties_equals_the_records():
    adv, ours = (sum(places, []) for places in zip(*STRONGEST.values(), strict=True))
    decided, ties = [ties_of(*place) for place in adv], [ties_of(*place) for place in ours]
    most = max(len(of) / len(standing(*place)) for of, place in zip(decided, adv, strict=True))
    assert not any(ties) and f"this decides up to {100 * most:.0f} % of the images" in PAGES["robustness.md"]
    assert ("only this breaks {} images of adversarial training on CIFAR-10, {} and {} on STL-10, and {}, {}, {} and {} on "
            "ImageNet, of Adv-BNN none.").format(*map(sum, decided)) in PAGES["results.md"]


def test_what_is_said_of_targeted_attacks_equals_the_records():
    taken, without = [], {}
    for runs in zip(*(STRONGEST[name] for name in ("CIFAR-10", "STL-10")), strict=True):
        taken.append([])
        for place in sum(runs, []):
            rows = worst_images(*place)
            kept = [worst_case.worst_rows([row for row in rows if all_of or "apgd-t" not in row["attack"]]).values()
                    for all_of in (False, True)]
            few, many = (statistics.mean(not row["broken"] for row in of) for of in kept)
            taken[-1].append(f"{100 * (few - many):.1f}")
            without[place] = f"{100 * few:.1f}"
    (least, most), (least_ours, most_ours) = ((min(of), max(of)) for of in taken)
    text, ours = PAGES["results.md"], (f"{CIFAR10}/targeted", "advbnn-tuned")
    assert (f"It takes {least} to {most} more points from adversarial training on CIFAR-10 and STL-10, and {least_ours} to "
            f"{most_ours} from Adv-BNN.") in text
    unrounded = percent(worst_row(*ADV[0])["accuracy"])
    assert (f"adversarial training has {without[STRONGEST['CIFAR-10'][0][0]]} before it: the network of the zoo, rounded to "
            f"float16; the {unrounded} below is of the network before rounding.") in text
    at_mean, direct = worst_case_of(ours, (f"{CIFAR10}/targeted/direct", "advbnn-tuned"))
    assert f"it leaves {at_mean} made on the mean network, and {direct} with 20 draws per gradient" in text
    theirs, (adv,) = json_files.read_json(RUNS / f"{CIFAR10}/targeted/autoattack.json"), STRONGEST["CIFAR-10"][0]
    assert theirs["accuracy"] == theirs["stands"].count("1") / len(theirs["stands"]) == theirs["stands"].count("1") / 500
    text, seconds = PAGES["robustness.md"], sum(float(row["seconds"]) for row in worst_images(*adv))
    assert f"leaves {worst_case_of(adv)[0]} % after a minute and a half" in text and 75 < seconds < 105
    minutes = theirs["seconds"] / 60
    assert f"leaves {percent(theirs['accuracy'])} % after {minutes:.0f} minutes" in text


def how_far_seeds_lie_apart(pairs, radii, images=None):
    """The most, in points, by which one draw differs between two trainings that differ in the seed, or were done twice."""
    return "{:.1f}".format(max(
        abs(accuracy(first, epsilon, images=images or TRAININGS[first[0]][0])
            - accuracy(second, epsilon, images=images or TRAININGS[first[0]][0]))
        for first, second in pairs for epsilon in radii))


def test_what_is_said_of_both_seeds_equals_the_records():
    text, readme = section("results.md", "## CIFAR-10, a narrow VGG16"), PAGES["README.md"]
    assert f"the mean of both seeds is {mean_gain(ADVBNN, ADV)} points apart in the worst case." in text
    pairs = [ADV, ADVBNN, STL10_ADV, STL10_ADVBNN, (ADVBNN[0], (f"{CIFAR10}/bfloat16", "advbnn-tuned"))]
    moved = how_far_seeds_lie_apart(pairs, ("0", "0.035", "0.07"))
    assert len(pairs) == 5 and f"of five pairs of trainings alike a figure moved by up to {moved} points." in readme
    assert (f"of five pairs of trainings alike a figure of CIFAR-10 and STL-10 moved by up to {moved} points,"
            in PAGES["results.md"])
    assert f"Today's prior stands {mean_gain(ADVBNN, FAN_IN)} points above it in the worst case (both seeds)." in text
    attacked, clean = (mean_gain(FAN_IN, ADV, clean) for clean in (False, True))
    less = statistics.mean(accuracy(adv, "0", images="2000") - accuracy(ours, "0", images="2000")
                           for adv, ours in zip(ADV, FAN_IN, strict=True))
    assert (f"The mean difference of both seeds is {attacked} points in the worst case and {clean} clean, image by image on "
            f"the 500 by the ensemble's own draws, and -{less:.1f} clean on the 2,000.") in text
    assert (f"in the worst case by {attacked.removeprefix('-')} points (500 images), clean by {less:.1f} (2,000; means of two "
            "seeds)") in readme
    again = listed(best_rows(f"{CIFAR10}/bfloat16", "advbnn-tuned", "accuracy", "runs"), ["clean", "0.035", "0.07"],
                   attack_samples="1", num_examples="2000")
    assert f"a training of Adv-BNN in bfloat16 has {again} (clean / 0.035 / 0.07, one draw)." in readme
    known, ours, *stl10 = worst_case_of(*(run[seed] for name in ("CIFAR-10", "STL-10") for seed in (0, 1)
                                          for run in STRONGEST[name] if seed < len(run)))
    assert f"CIFAR-10 has {ours} and {known} % at 8/255, STL-10" in readme
    assert "STL-10 {1} and {0} % at 0.035, with another seed {3} and {2}.".format(*stl10) in readme
    assert "second seed of CIFAR-10 ({} and {}), whose".format(*worst_case_of(ADVBNN[1], ADV[1])) in PAGES["results.md"]
    text = section("results.md", "## STL-10, whole")
    assert f"the mean of both seeds is {mean_gain(STL10_ADVBNN, STL10_ADV)} points apart in the worst case." in text
    for places, square in ((STL10_ADV, "square"), (STL10_ADVBNN, "square@mean")):
        for place in places:
            assert {"noise", "pgd", "apgd-ce", "apgd-dlr", square} <= set(worst_row(*place)["tried"].split())
            assert {row["broken"] for row in worst_images(*place) if row["attack"] == square} == {0}


def test_what_is_said_of_the_narrow_vgg16_equals_the_records():
    text, evaluation = section("results.md", "## CIFAR-10, a narrow VGG16"), f"{CIFAR10}/evaluation"
    both = ADVBNN[0], FAN_IN[0]
    one_draw, twenty = (listed(best_rows(*FAN_IN[0], name), TRAININGS[CIFAR10][1], attack_samples=draws, num_examples="500")
                        for draws, name in (("1", "runs"), ("20", "accuracy")))
    assert f"with seed 0 the 500 have {one_draw} under one draw and {twenty} under twenty." in text
    hidden = max(accuracy(ADVBNN[0], row["epsilon"], "1", "2000") - accuracy(ADVBNN[0], row["epsilon"], "20", "2000")
                 for row in best_rows(*ADVBNN[0], "accuracy") if row["attack_samples"] == "20")
    assert f"with seed 0 twenty take no more than {hidden:.1f} points more at any radius." in " ".join(text.split())
    known = listed(best_rows(*ADV[0], "runs"), ["clean", "0.015", "8/255", "0.035", "0.055", "0.07"], num_examples="500")
    assert f"On the 500 images adversarial training has {known}." in text
    alone = [[float(left) for left in worst_case_of(*runs)] for runs in (FAN_IN, ADV)]
    together = worst_case_of(*((f"{CIFAR10}/seed-1", f"{run}-tuned+{run}-tuned-seed-1") for run in ("advbnn", "adv")))
    assert "have {:.1f} (Adv-BNN) and {:.1f} points more in the worst case".format(
        *(float(left) - statistics.mean(of) for left, of in zip(together, alone))) in text
    stds = one(records(f"{evaluation}/layers.csv"), layer="all")
    prior, low = float(stds["prior_log_std"]), float(stds["log_std_q05"])
    assert f"log std is {prior:.2f}, and 95 % of the weights' are no more than {prior - low:.2f} below it;" in text
    clean = sorted(percent(row["accuracy"]) for row in records(f"{evaluation}/ensemble.csv") if row["epsilon"] == "0")
    assert f"1 to 50 have {clean[0]} to {clean[-1]} % on clean images (500)." in text
    differ = [percent(worst_row(*place)["undecided"]) for place in both]
    assert "differ on {} % of the images, by `fan_in` on {}.".format(*differ) in text
    steps = {(row["run"], row["num_steps"]): percent(row["accuracy"]) for row in records(f"{evaluation}/steps.csv")}
    told = [f"from {steps[run, '26']} to {steps[run, '1000']}" for run in ("adv-tuned", "advbnn-tuned")]
    assert "adversarial training goes {}, Adv-BNN {} (8/256".format(*told) in text


def test_what_is_said_of_transfer_on_whole_cifar10_equals_the_records():
    text, both = section("results.md", "## CIFAR-10, a narrow VGG16"), ("adv-tuned", "advbnn-tuned")
    tables = (records(f"{folder}/evaluation/transfer.csv") for folder in (CIFAR10, f"{CIFAR10}/fan_in"))
    ours, fan_in = ({(row["source"], row["run"]): f"{float(row['rho']):.2f}" for row in rows} for rows in tables)
    assert "takes {} to {} of what the other's own takes (radius 0.06, 1,000 images; the paper says 0.5".format(
        *sorted(ours[source, target] for source in both for target in both if source != target)) in text
    told = [sorted({fan_in[source, target] for source in sources for target in both if source != target})
            for sources in (both, ["rse"], ["bnn", "none"])]
    assert ("takes {0[0]} to {0[1]} of what the other's own takes, one made on RSE {1[0]} to {1[1]}, one made on BNN or no "
            "defence {2[0]} to {2[1]} (radius 0.06, 1,000 images).").format(*told) in text


def test_what_is_said_of_60_epochs_on_stl10_equals_the_records():
    long, short = (worst_case_of(*((folder, run) for run in ("adv", "advbnn"))) for folder in (f"{STL10}/epochs-60", STL10))
    told = "the worst case of both is {}, after 30 epochs {} and {}, where more attacks were tried.".format(*{*long}, *short)
    assert told in section("results.md", "## STL-10, whole")


def test_what_is_said_of_stl10_equals_the_records():
    text, adv, ours, authors = section("results.md", "## STL-10, whole"), STL10_ADV[0], STL10_ADVBNN[0], (STL10, "authors")
    theirs = percent(paper.accuracy("stl10", "advbnn", 0.035, many_draws=True))
    assert f"There averaged draws leave {theirs} to the paper's Adv-BNN and {accuracy(ours, '0.035', '20'):.1f} to ours" in text
    listed_500 = listed(best_rows(*adv, "runs"), ["clean", "0.015", "0.035", "0.055", "0.07"], num_examples="500")
    assert f"rows of more draws adversarial training has {listed_500} (0, 0.015, 0.035, 0.055, 0.07)." in text
    apgd = [percent(one(best_rows(*place, "robust"), attacks="apgd-ce")["accuracy"])
            for place in ((f"{STL10}/fan_in", "advbnn"), adv)]
    assert "APGD leaves {}, and {} to adversarial training.".format(*apgd) in text
    one_draw = accuracy(authors, "0.07", images="3000") - accuracy(adv, "0.07", images="3000")
    clean = accuracy(adv, "0", images="3000") - accuracy(authors, "0", images="3000")
    many, known = accuracy(authors, "0.07", "100"), accuracy(adv, "0.07")
    error = 1.96 * sum(of * (100 - of) / 500 for of in (many, known)) ** 0.5
    assert (f"Twenty draws leave {accuracy(authors, '0.07', '20'):.1f} and a hundred {many:.1f}, where adversarial training "
            f"has {known:.1f} on the same images: {many - known:.0f} points of the {one_draw:.0f}.") in text
    assert (f"one draw shows {one_draw:.0f} points of lead on STL-10 at 0.07, a hundred draws {many - known:.0f} ± {error:.0f} "
            f"(500 images, unpaired), and it is {clean:.0f} points lower on clean images.") in PAGES["README.md"]
    stds = one(records(f"{STL10}/evaluation/layers.csv"), layer="all")
    prior, median, *ends = (float(stds[name]) for name in ("prior_log_std", "log_std_median", "log_std_q05", "log_std_q95"))
    assert (f"log std is {prior:.2f}, their median is {prior - median:.2f} below it, and 90 % lie between {ends[0]:.2f} and "
            f"{ends[1]:.2f}.") in text
    prior_std = f"{json_files.read_config(RUNS / STL10 / 'runs/advbnn')['classifier']['prior_std']:.4f}"
    assert f"(its prior is {prior_std})" in text and f"the prior is {prior_std})" in PAGES["method.md"]
    course = records(f"{STL10}/runs/advbnn/metrics.jsonl")
    assert f"ratio is {best_epoch(course)['snr']:.1f} there and {course[-1]['snr']:.1f} at the last." in text
    assert f"signal-to-noise ratio is {records(f'{STL10}/runs/authors/metrics.jsonl')[-1]['snr']:.2f}: nearly all noise" in text


def test_the_table_of_ends_equals_the_records():
    stl10, long, cifar10 = [], [], []
    for row in table("results.md", "run", "right in training"):
        folder, run = of_folder(row["run"], "")
        course = records(f"{folder}/runs/{run}/metrics.jsonl")
        best, last = best_epoch(course), course[-1]
        noise = [f"{last['snr']:.1f}", f"{last['kl_per_image']:.3f}"] if "snr" in last else ["", ""]
        held_out = f"{both_accuracies(best, 'held_out')} ({best['epoch']})", both_accuracies(last, "held_out")
        assert list(row.values())[1:] == [f"{last['nll']:.3f}", *noise, both_accuracies(last, "train"), *held_out], row
        lost = 100 * (best["held_out_robust_accuracy"] - last["held_out_robust_accuracy"])
        (long if folder.endswith("epochs-60") else stl10 if STL10 in folder else cifar10).append((best, last, lost))
        assert len(course) == (15 if {"epochs-15", "before", "awp"} & {*folder.split("/")} and CIFAR10 in folder else
                               60 if folder.endswith("epochs-60") else 30)
    lost = [each[2] for each in stl10]
    text = section("results.md", "## How the trainings end")
    assert f"of 30 epochs the last is {min(lost):.1f} to {max(lost):.1f} points below the best under attack" in text
    assert all(last["held_out_accuracy"] >= best["held_out_accuracy"] for best, last, _ in stl10)
    assert "adversarial training has lost {:.1f} points and Adv-BNN {:.1f}.".format(*(each[2] for each in long)) in text
    gained = [100 * (last["held_out_accuracy"] - best["held_out_accuracy"]) for best, last, _ in cifar10]
    lost = [each[2] for each in cifar10]
    assert (f"the last epoch is {min(lost):.0f} to {max(lost):.1f} points below the best under attack, and "
            f"{min(gained):.0f} to {max(gained):.1f} above it on clean images.") in text
    rows = [[row for row in records(f"{folder}/evaluation/runs.csv") if row["checkpoint"] == f"{run}/checkpoint.pt"]
            for folder, run in (*ADV, *FAN_IN)]
    of = [listed(of_run, ["clean", "8/255"], num_examples="2000") for of_run in rows]
    assert "training has {} and, with seed 1, {} there, Adv-BNN by `fan_in` {} and {}.".format(*of) in text


def test_how_far_the_narrow_vgg16_by_fan_in_is_from_adversarial_training_at_the_end_equals_the_records():
    nll = {row["run"]: float(row["nll"]) for row in table("results.md", "run", "right in training")}
    apart = nll[f"{CIFAR10}/fan_in/advbnn-tuned"] - nll[f"{CIFAR10}/adv-tuned"]
    assert f"after 30 epochs {apart:.3f};" in " ".join(PAGES["method.md"].split())


def test_the_table_of_pruning_equals_the_records():
    for row in table("results.md", "lowest signal-to-noise: 60 % out"):
        name, _, part = row["Adv-BNN"].partition(", ")
        folder = f"{ {'CIFAR-10': CIFAR10, 'STL-10': STL10}[name]}/{part}".strip("/")
        left = {(found["prune_by"], found["fraction"], found["epsilon"]): percent(found["accuracy"])
                for found in records(f"{folder}/evaluation/pruning.csv") if found["prediction"] == "posterior"}
        pruned = [("std", "0"), *(("signal_to_noise", part) for part in ("0.6", "0.8")),
                  *(("std", part) for part in ("0.2", "0.4", "0.6"))]
        assert list(row.values())[1:] == [f"{left[*of, '0']} / {left[*of, '0.03125']}" for of in pruned]
    gone = {f"{float(row['60 % out'].split(' / ')[1]):.0f}" for row in table("results.md", "lowest signal-to-noise: 60 % out")
            if "fan_in" not in row["Adv-BNN"]}
    assert gone == {"10"} and "it leaves 10 % under attack." in PAGES["README.md"]


def test_how_the_training_on_eleven_classes_ends_equals_the_records():
    ends = [records(f"{IMAGENET}/{run}/metrics.jsonl")[-1] for run in (
        "runs/adv", "fan_in/runs/advbnn", "runs/advbnn", "runs/none")]
    adv, fan_in, ours, none = (f"{100 * end['train_accuracy']:.0f} %" for end in ends)
    assert adv == fan_in and (f"training images is {adv} (by `fan_in`, too), of Adv-BNN {ours}, without a defence {none}."
                              in section("results.md", "## ImageNet, eleven classes of dogs and cats"))


def test_what_is_said_of_60_epochs_on_imagenet_equals_the_records():
    text, ours, adv = section("results.md", "## ImageNet, eleven classes of dogs and cats"), IMAGENET_ADVBNN, IMAGENET_ADV
    ends = [[records(f"{place}/runs/{run}/metrics.jsonl")[-1] for place, run in runs] for runs in (adv, ours)]
    told = [f"{100 * statistics.mean(end['train_accuracy'] for end in of):.0f} %" for of in ends]
    assert "training images is {}, of Adv-BNN {} (means of four seeds).".format(*told) in text
    *gains, mean = *(mean_gain([one], [other]) for one, other in zip(ours, adv, strict=True)), mean_gain(ours, adv)
    by_unbroken = mean_gain(ours, adv, stands=unbroken)
    told = f"{mean} points apart in the worst case and {by_unbroken} by what is unbroken"
    assert told in text and told in PAGES["README.md"]
    assert "differ by seed {}, {}, {} and {}.".format(*gains) in text
    spread = []
    for stands in (standing, unbroken):
        of_seeds = [100 * (statistics.mean(stands(*own)) - statistics.mean(stands(*other)))
                    for own, other in zip(ours, adv, strict=True)]
        spread.append(f"± {3.182 * statistics.stdev(of_seeds) / 4 ** 0.5:.1f}")         # Student's t of three degrees
    assert "over the seeds {} and {}).".format(*spread) in text
    clean = mean_gain(ours, adv, clean=True)
    assert f"On clean images it is {clean} points above (mean; by the ensemble's own" in text
    in_float32 = [percent(*(row["accuracy"] for row in records(f"{place}/float32/evaluation/robust.csv")))
                  for place, _ in adv[2:]]
    assert "In float32 adversarial training has {} and {} with seeds 2 and 3.".format(*in_float32) in text
    for place in (*adv, *ours):
        rows = worst_images(*place)
        left = worst_case.worst_rows([row for row in rows if not row["attack"].startswith("square")]).values()
        assert any(row["attack"].startswith("square") for row in rows)
        assert mean_percent([not row["broken"] for row in left]) == worst_case_of(place)[0]
    last = [listed([row for row in records(f"{place}/evaluation/accuracy.csv")
                    if row["checkpoint"] == f"{run}/checkpoint.pt"], ["clean", "0.01"]) for place, run in (*adv, *ours)]
    assert "has {}, {}, {} and {}, Adv-BNN {}, {}, {} and {} (clean / 0.01, one draw).".format(*last) in text
    pairs = [pair for of in (ours, adv) for pair in combinations(of, 2)]
    moved = how_far_seeds_lie_apart(pairs, ("0", "0.004", "0.01", "0.016", "0.02"), images="550")
    assert f"the seeds of one defence differ by up to {moved} points." in text
    assert f"of ImageNet's eleven classes by up to {moved}." in " ".join(PAGES["results.md"].split())


def test_what_is_said_of_more_draws_in_the_worst_case_equals_the_records():
    folders = [f"{IMAGENET}/epochs-60/seed-2/draws-{draws}/evaluation" for draws in (20, 100)]
    few, many = (one(records(f"{folder}/robust.csv"), run="advbnn-seed-2") for folder in folders)
    assert (few["num_samples"], many["num_samples"]) == ("20", "100") and few["num_examples"] == many["num_examples"] == "165"
    took = [sum(float(row["seconds"]) for row in records(f"{folder}/robust_examples.csv.gz")) for folder in folders]
    told = [percent(row[name]) for row in (few, many) for name in ("accuracy", "unbroken")]
    assert ("the worst case is {} and {} are unbroken with 20 draws, {} and {} with `--num_samples 100`, in {:.0f} % more "
            "time.").format(*told, 100 * (took[1] / took[0] - 1)) in PAGES["robustness.md"]


def test_the_table_of_the_kl_of_all_weights_equals_the_records():
    rows = records("digits-kl/evaluation/runs.csv")
    for row in table("results.md", "run", "what it is"):
        for column, epsilon, draws in (("clean", "0", "1"), ("1 draw", "0.2", "1"), ("10 draws", "0.2", "10")):
            assert row[column] == percent(one(rows, run=row["run"], epsilon=epsilon, attack_samples=draws)["accuracy"]), (
                row, column)
    cells = {row["run"]: row for row in table("results.md", "run", "what it is")}
    below = [float(cells["kl-ours"]["10 draws"]) - float(cells[f"kl-{name}"]["10 draws"]) for name in ("alpha-1", "adam")]
    seeds = [record["best"]["pgd_10_draws"] for record in records("digits-defaults/records.jsonl")
             if record["run"] in ("advbnn-16-0", "advbnn-16-1", "advbnn-16-2")]
    text, mean, own = PAGES["results.md"], 100 * statistics.mean(seeds), percent(seeds[0])
    assert "is {:.0f} points below this run of `ours`, and Adam {:.0f}. But the mean of its".format(*below) in text
    told = f"is {mean:.1f}: one run does not tell. Seed 0 has {own} there and {cells['kl-ours']['10 draws']} here, as two"
    assert told in text
    assert "gave Adv-BNN {1 draw} and {10 draws})".format_map(cells["kl-ours"]) in PAGES["README.md"]      # demo's training
    stds = {name: json_files.read_config(RUNS / f"digits-kl/runs/kl-{name}")["classifier"]["prior_std"]
            for name in ("ours", "alpha-1", "alpha-1-50")}
    assert cells["kl-alpha-1"]["what it is"].endswith(f"a prior of {stds['alpha-1']:.2f} instead of {stds['ours']:.3f}")
    assert cells["kl-alpha-1-50"]["what it is"].endswith(f"a prior of {stds['alpha-1-50']:.2f}")


def test_the_table_of_gains_equals_the_records():
    rows = records("digits-beyond/evaluation/gains.csv")
    for row in table("results.md", "pair", "seed 0"):
        of_pair = [one(rows, pair=row["pair"], seed=seed) for seed in "012"]
        for column, name in (("adversarial training", "control_accuracy"), ("Adv-BNN", "accuracy")):
            assert row[column] == mean_percent([float(each[name]) for each in of_pair]), (row, column)
        for each in of_pair:
            gain, low, high = (f"{100 * float(each[name]):+.1f}" for name in ("gain", "gain_low", "gain_high"))
            assert row[f"seed {each['seed']}"] == f"{gain} [{low}, {high}]", row
    assert {row["pair"] for row in table("results.md", "pair", "seed 0")} == {row["pair"] for row in rows}


def test_the_table_of_the_worst_case_equals_the_records():
    robust, examples, checks = (records(f"cifar10-small/evaluation/{name}.csv") for name in
                                ("robust", "robust_examples", "checks"))
    for row in table("robustness.md", "worst case"):
        run = DEFENSE_OF[row["defence"]]
        clean = [example["broken"] == "0" for example in examples if example["run"] == run and example["attack"] == "none"]
        worst, weak = one(robust, run=run), row["paper's attack, 1 draw"]
        assert row["clean"] == percent(sum(clean) / len(clean)), run
        low, high = percent(worst["accuracy_low"]), percent(worst["accuracy_high"])
        assert row["worst case"] == f"{percent(worst['accuracy'])} [{low}, {high}]", run
        assert row["its images under single draws"] == percent(worst["single_draw_accuracy"]), run
        assert row["unbroken"] == percent(worst["unbroken"]), run
        assert f"the paper's attack {weak} %" in one(checks, run=run, check="paper's attack")["measured"], run


def test_what_is_said_of_the_checks_on_whole_cifar10_equals_the_records():
    found, text = rows_of("CIFAR-10: Adv-BNN", "checks"), section("robustness.md", "## What they showed")
    assert {row["check"] for row in found if row["verdict"] == "could not tell"} == {
        "paper's attack", "one draw", "stronger attack"}
    assert [row["verdict"] for row in found].count("held") == 11 == len(found) - 3
    told = one(found, check="stronger attack")["measured"]
    pgd, stronger = re.fullmatch(r"([\d.]+) %, with apgd-dlr ([\d.]+) %; .*", told).groups()
    assert "eleven of the fourteen checks held. Three could not tell: \"paper's attack\", \"one draw\" and" in text
    assert f"Auto-PGD on DLR leaves {stronger} % where PGD leaves {pgd}:" in text
    draws = {row["attack_samples"]: float(percent(row["accuracy"])) for row in rows_of("CIFAR-10: Adv-BNN", "many_draws")}
    assert {"1", "50"} <= set(draws)
    assert f"1 to 50 per gradient leave {min(draws.values())} to {max(draws.values())} %." in text


def rows_of(place, table, **fields):
    """The rows of a network of a table: its data set and defence, `fan_in` in a folder of its own."""
    dataset, label = place.removesuffix(" (fan_in)").split(": ")
    folder = {"CIFAR-10": CIFAR10, "STL-10": STL10}[dataset] + ("/fan_in" if place.endswith("(fan_in)") else "")
    return [row for row in records(f"{folder}/evaluation/{table}.csv")
            if {"defense": DEFENSE_OF[label], **fields}.items() <= row.items()]


def test_the_table_of_doubt_equals_the_records():
    kinds = {"PGD": {"attack": "pgd", "positives": "all"}, "PGD, where wrong": {"attack": "pgd", "positives": "wrong"},
             "PGD that hides": {"attack": "pgd-confident", "positives": "all"}, "noise": {"ood": "noise"},
             "permuted": {"ood": "permuted"}}
    rows, attacked = table("robustness.md", "network", "doubt by"), set()
    for row in rows:
        told = [one(rows_of(row["network"], "uncertainty"), attack=attack) for attack in ("none", "pgd")]
        assert row["nll"] == " / ".join(f"{float(each['nll']):.2f}" for each in told), row
        assert row["calibration error"] == " / ".join(f"{float(each['calibration_error']):.3f}" for each in told), row
        attacked |= {(each["num_examples"], each["attack_samples"], each["epsilon"]) for each in told[1:]}
        found = rows_of(row["network"], "detection", score=row["doubt by"].replace(" ", "_"))
        foreign = {"ood": "stl10" if row["network"].startswith("CIFAR-10") else "cifar10"}
        for kind, fields in {**kinds, "the other photographs": foreign}.items():
            cell = one(found, **fields)
            assert row[kind] == f"{float(cell['auroc']):.2f}", (row, kind)
            assert float(cell["auroc_high"]) - float(cell["auroc_low"]) < 0.06           # half of it: 0.03
    assert attacked == {("1000", draws, radius) for radius in ("0.031372549", "0.035") for draws in ("1", "10")}
    assert len(rows) == 8


def test_what_is_said_of_doubt_equals_its_table_and_the_records():
    text, rows = section("robustness.md", "## Doubt on whole data sets"), table("robustness.md", "network", "doubt by")
    places = dict.fromkeys(row["network"] for row in rows)
    clean, under_pgd = ({place: confidence_and_accuracy(place, attack) for place in places} for attack in ("none", "pgd"))
    (adv, adv_right), (ours, ours_right) = (clean[f"CIFAR-10: {name}"] for name in ("adversarial training", "Adv-BNN"))
    assert (f"adversarial training's mean confidence is {adv:.0f} % and Adv-BNN's {ours:.0f} %, at accuracies of "
            f"{adv_right:.0f} %." in text and f"{adv_right:.0f}" == f"{ours_right:.0f}")
    above = {place: confidence - right for place, (confidence, right) in under_pgd.items()}
    assert all(abs(each) < 3 for place, each in above.items() if place.startswith("CIFAR-10"))
    assert all(confidence < right for confidence, right in clean.values())
    assert "12 to 14 points too high" in text and {f"{above[place]:.0f}" for place in places if place.startswith("STL-10")} == {
        "12", "14"}
    doubts = {f"{float(one(rows_of(place, 'uncertainty'), attack='none')['mutual_information']):.3f}"
              for place in places if "Adv-BNN" in place}
    hidden = [confidence - right for confidence, right in (confidence_and_accuracy(place, "pgd-confident") for place in places)]
    spans = [(min(of), max(of)) for of in (hidden[:3], hidden[3:])]      # of CIFAR-10, of STL-10
    assert [f"{each:.0f}" for span in spans for each in span] == ["7", "9", "17", "19"]
    assert "by 7 to 9 points on CIFAR-10, by 17 to 19 on STL-10." in text
    controls = {row["network"].partition(":")[0]: row for row in rows if row["network"].endswith("adversarial training")}
    for row in rows:
        control = controls[row["network"].partition(":")[0]]
        if row["doubt by"] == "entropy":
            assert float(row["PGD that hides"]) < 0.5
            assert all(abs(float(row[kind]) - float(control[kind])) < 0.045 for kind in list(row)[4:])       # the AUROCs
        else:
            assert row["PGD that hides"] in ("0.51", "0.52")
    assert doubts == {"0.002", "0.003"} and "mutual information is 0.002 or 0.003 nats" in text


def confidence_and_accuracy(place, attack):
    """The mean confidence of a network's predictions and their accuracy, in percent."""
    bins = rows_of(place, "calibration", attack=attack)
    total = sum(int(row["num_in_bin"]) for row in bins)
    return [100 * sum(int(row["num_in_bin"]) * float(row[name]) for row in bins) / total for name in ("confidence", "accuracy")]


def test_the_table_of_input_gradients_equals_the_records():
    rows = table("results.md", "network", "test / training")
    for row in rows:
        train, test = (one(rows_of(row["network"], "gradients"), split=split, num_samples="1") for split in ("train", "test"))
        assert train["num_examples"] == test["num_examples"] == ("2000" if "CIFAR" in row["network"] else "1000")
        for cell, of in ((row["training images"], train), (row["test images"], test)):
            assert cell == "{:.1f} [{:.1f}, {:.1f}]".format(*(float(of[f"l1_norm{end}"]) for end in ("", "_low", "_high")))
        assert row["test / training"] == f"{float(test['l1_norm']) / float(train['l1_norm']):.2f}"
    assert len(rows) == 4
    steeper = float(rows[2]["test / training"]) - 1
    assert f"on STL-10, where it overfits, by {100 * steeper:.0f} %." in section("results.md", "## Input gradients")


def test_the_table_of_what_a_step_adds_equals_the_record():
    rows = records("benchmark-cpu/benchmark.csv")
    for row in table("benchmark.md", "attack", "optimizer"):
        ours, floor = (one(rows, batch_size=row["batch"], precision=row["precision"], contestant=name)
                       for name in ("adv-bnn", "deterministic"))
        for part in ("attack", "update", "optimizer"):
            added = (float(ours[f"{part}_s"]) - float(floor[f"{part}_s"])) / float(floor["wall_s"])
            assert row[part] == f"{added:.3f}"


def test_the_readme_tells_what_a_step_costs_as_the_records_do():
    rows = records("benchmark-cpu/benchmark.csv")
    cpu = [100 * float(one(rows, contestant="adv-bnn", precision=precision, batch_size=batch)["cpu_ratio"]) - 100
           for precision in ("fp32", "bf16") for batch in ("128", "32")]
    rows = records("gpu/h100/benchmark/benchmark.csv")
    gpu = [100 * float(one(rows, contestant="adv-bnn", batch_size=batch)["wall_ratio"]) - 100 for batch in ("1024", "512")]
    assert ("costs {:.0f} % more than one of adversarial training at batch 128 on a CPU in float32, {:.0f} % at 32; in "
            "bfloat16 with AMX {:.0f} and {:.0f} %. On an H100 it costs {:.0f} % more at batch 1,024, {:.0f} % at 512"
            ).format(*cpu, *gpu) in PAGES["README.md"]


def test_the_table_of_the_benchmark_equals_the_record():
    rows = records("benchmark-cpu/benchmark.csv")
    for row in table("benchmark.md", "contestant", "peak MiB"):
        record = one(rows, batch_size=row["batch"], precision=row["precision"], contestant=row["contestant"])
        assert row["ms"] == f"{1000 * float(record['wall_s']):.0f}" and row["to"] == record["floor"], row
        assert row["CPU ratio"] == f"{float(record['cpu_ratio']):.3f}", row
        assert row["peak MiB"] == f"{float(record['peak_memory_bytes']) / 2**20:.0f}", row


def test_the_table_of_the_h100_equals_the_records():
    now, before = (records(f"gpu/h100/{name}/benchmark.csv") for name in ("benchmark", "benchmark-before/graphs-auto"))
    for row in table("benchmark.md", "of matmul %"):
        ours, floor = (one(now, batch_size=row["batch"], contestant=name) for name in ("adv-bnn", "deterministic"))
        then = one(before, batch_size=row["batch"], contestant="adv-bnn")
        assert list(row.values())[1:] == [
            f"{float(ours['images_per_second']):,.0f}", f"{float(floor['images_per_second']):,.0f}",
            f"{float(ours['wall_ratio']):.3f}", f"{100 * float(ours['matmul_share']):.0f}",
            f"{float(then['images_per_second']):,.0f}", f"{float(then['wall_ratio']):.3f}"], row
