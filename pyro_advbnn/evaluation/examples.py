"""Adversarial examples to look at: pictures, and what the classifier says of them over its draws."""
import torch
from PIL import Image

from pyro_advbnn.datasets.augmentation import unit_range
from pyro_advbnn.evaluation.accuracy import attack_fields, attack_images, logits_of_draws
from pyro_advbnn.system import files

PERTURBATION_FACTOR = 10
PICTURES = ("clean", "perturbation", "adversarial")


def settings(attack):
    """The columns of the table "examples" that describe the attack."""
    return {name: value for name, value in attack_fields(attack).items() if name != "reaches_ball"}


def make(classifier, images, attack, num_samples, folder, stem):
    """One row for each of `images`: true class, predictions clean and attacked, and where its three pictures are.

    The pictures, clean, perturbation times 10 around mid grey, and adversarial, are written to folder/<stem>-<index>-*.png.
    A row's probability is the true class's, averaged over num_samples draws, with its std over them; its agreement is the
    share of draws that say what their average says.
    """
    x, y = unit_range(images.images), images.labels
    x_adv = attack_images(attack, classifier, x, y)
    clean, adversarial = (_columns(classifier, batch, y, num_samples, images.class_names) for batch in (x, x_adv))
    pictures = dict(zip(PICTURES, (x, 0.5 + PERTURBATION_FACTOR * (x_adv - x), x_adv), strict=True))
    rows = []
    for i, label in enumerate(y.tolist()):
        row = {"index": i, "label": images.class_names[label]}
        row |= {f"clean_{name}": values[i] for name, values in clean.items()}
        row |= {f"adversarial_{name}": values[i] for name, values in adversarial.items()}
        for name, batch in pictures.items():
            row[f"{name}_image"] = f"{stem}-{i}-{name}.png"
            _save(folder / row[f"{name}_image"], batch[i])
        rows.append(row)
    return rows


def _columns(classifier, x, y, num_samples, class_names):
    draws = logits_of_draws(classifier, x, num_samples).softmax(-1)
    answers = draws.mean(0).argmax(-1)
    of_truth = draws[:, torch.arange(len(y), device=y.device), y]
    return {"prediction": [class_names[answer] for answer in answers.tolist()],
            "probability": of_truth.mean(0).tolist(), "probability_std": of_truth.std(0, correction=0).tolist(),
            "agreement": (draws.argmax(-1) == answers).float().mean(0).tolist()}


def _save(path, image):
    """Write an image (C, H, W) in [0, 1], brought into it, as PNG."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
