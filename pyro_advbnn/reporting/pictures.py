"""Adversarial examples side by side, from examples.csv and the pictures that it names."""
import base64

from pyro_advbnn.reporting import csv_tables, run_descriptions, texts
from pyro_advbnn.reporting.elements import element, missing

_MOST_BYTES = 2**24                                      # of a picture; ours have a few thousand


def examples(folder):
    """The contents of the section: a row of three pictures for each example in folder/evaluation."""
    rows = csv_tables.read(folder, "examples")
    if not rows:
        return missing("No examples: evaluation/examples.csv is not there.")
    groups = {}
    for row in rows:
        groups.setdefault((row["run"], _evaluation_attack(row)), []).append(row)
    return [element("p", "Each row of pictures is one image: as it is, what the attack adds (ten times enlarged, grey "
                    "is no change), and the sum, which is what the network sees. In bold the prediction; p is the mean "
                    "probability of the true class over draws of the weights, ± its standard deviation over the draws."),
            *(node for (run, attack), group in groups.items() for node in (
                element("h3", run_descriptions.defense(group[0]), element("small", f" run {run}, {attack}")),
                element("div", *(_example(row, folder / "evaluation") for row in group), class_="examples")))]


def _evaluation_attack(row):
    return (f"{texts.of(row['attack'])}, ε {texts.of(row['epsilon'])}, {texts.of(row['num_steps'])} steps of "
            f"{texts.of(row['step_size'])}, {texts.draws(row['attack_samples'])}; predictions of "
            f"{texts.draws(row['num_samples'], '')}")


def _example(row, folder):
    clean, attacked, label = row["clean_prediction"], row["adversarial_prediction"], row["label"]
    outcome = "wrong before the attack" if clean != label else "withstood" if attacked == label else "fooled"
    title = f"Image {texts.of(row['index'])}, true class {texts.of(label)}: "
    pictures = [_picture(folder, row["clean_image"], "as it is", _prediction(row, "clean")),
                _picture(folder, row["perturbation_image"], "change ×10", []),
                _picture(folder, row["adversarial_image"], "attacked", _prediction(row, "adversarial"))]
    return element("figure", element("figcaption", title, element("b", outcome)), element("div", *pictures, class_="triple"),
                   class_="example")


def _prediction(row, kind):
    probability, spread, agreement = (row[f"{kind}_{name}"] for name in ("probability", "probability_std", "agreement"))
    yield element("span", element("b", texts.of(row[f"{kind}_prediction"])), class_="answer")
    if row["num_samples"] == 1:                                         # one draw, or a network that has nothing to draw
        yield element("span", f"p(true class) = {texts.fixed(probability, '.2f')}")
    else:
        yield element("span", f"p(true class) = {texts.fixed(probability, '.2f')} ± {texts.fixed(spread, '.2f')}")
        yield element("span", f"{texts.fixed(agreement, '.0%')} of draws agree".replace("%", " %"))


def _picture(folder, name, title, lines):
    source = _data_uri(folder, name)
    image = (element("img", src=source, alt=title, width="96", height="96") if source
             else element("span", "no picture", class_="missing"))
    return element("div", image, element("span", title, class_="what"), *lines)


def _data_uri(folder, name):
    """The PNG file folder/name as a data: URI; None where it is not there, lies outside of folder or is no PNG."""
    try:
        path = (folder / (name or "")).resolve()
    except (OSError, RuntimeError, ValueError):          # a ring of links, a name with a zero byte
        return None
    if not path.is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    content = path.read_bytes()
    known = content.startswith(b"\x89PNG\r\n\x1a\n")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if known else None
