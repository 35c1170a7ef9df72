"""What the checks of an evaluation look at: a classifier, images, and the attack whose figure is to be trusted."""
from collections.abc import Callable, Iterable

import torch
from torch import nn

from pyro_advbnn.attacks.modes import is_random
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.attacks.surrogates import surrogate
from pyro_advbnn.evaluation.accuracy import accuracy_fields, attack_images, predict
from pyro_advbnn.evaluation.inputs import RepeatableBatches, check_classifier
from pyro_advbnn.system.errors import check_at_least, check_number
from pyro_advbnn.system.random_streams import separate_randomness


class Examination:
    """A classifier and attacks on images, each measured once however many checks ask for it.

    batches: an iterable of (x (B, C, H, W) in [0, 1], y (B,)) that can be gone through again, in the same order. epsilon:
    l_inf radius > 0. The attack under test is PGD with num_steps steps of 2.5 epsilon / num_steps and attack_samples draws
    per gradient; predictions average num_samples draws. transfer: a module whose attacked images are tried on this one;
    default the network at the posterior's mean, for a random classifier without one a fixed draw. paper_step: that of the
    paper's attack, 20 steps with one draw per gradient; default epsilon / 8. Every attack on a batch has a random stream of
    its own, made from `seed`.

    Raises InputError for settings out of range, and for images, labels and modules that are not fit (see `inputs`).
    """

    def __init__(self, classifier: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], *, epsilon: float,
                 num_steps: int = 20, attack_samples: int = 20, num_samples: int = 20, num_queries: int = 500,
                 transfer: nn.Module | None = None, paper_step: float | None = None, seed: int = 0) -> None:
        for name, value in (("num_steps", num_steps), ("attack_samples", attack_samples), ("num_samples", num_samples),
                            ("num_queries", num_queries)):
            check_at_least(name, value, 1)
        check_number("epsilon", epsilon, high=1, above=True)
        self.batches = RepeatableBatches(classifier, batches)
        self.classifier, self.epsilon, self.num_samples = classifier, epsilon, num_samples
        self.num_queries, self.transfer, self.seed = num_queries, transfer, seed
        some_images = self.batches.some_images(16)
        self.num_classes, self.is_random = check_classifier(classifier, some_images), is_random(classifier, some_images)
        self.attack = PGD(epsilon, None, num_steps, attack_samples if self.is_random else 1)
        self.papers_attack = PGD(epsilon, paper_step, 20)
        self._known: dict = {}

    def correct(self, attack: Callable | None, through: nn.Module | None = None,
                judge: nn.Module | None = None) -> torch.Tensor:
        """Whether the averaged prediction is right on each attacked image, a tensor (N,) of booleans.

        through: the classifier that is attacked; judge: the one that predicts; default for both: the one examined.
        What was measured once is not measured again.
        """
        judge = self.classifier if judge is None else judge
        through = judge if through is None else through
        if (attack, through, judge) not in self._known:
            found = []
            for number, (x, y) in enumerate(self.batches):
                with separate_randomness(self.seed + number):
                    x_adv = attack_images(attack, through, x, y)
                    found.append(predict(judge, x_adv, num_samples=self.num_samples).argmax(-1) == y)
            self._known[attack, through, judge] = torch.cat(found)
        return self._known[attack, through, judge]

    def accuracy(self, attack: Callable | None) -> dict:
        """The columns of a row that come out under an attack."""
        correct = self.correct(attack)
        return accuracy_fields(correct.sum().item(), len(correct))

    def draw(self) -> nn.Module:
        """The classifier with one draw fixed."""
        with separate_randomness(self.seed):
            return surrogate(self.classifier, "pool:1")

    def stand_in(self) -> nn.Module | None:
        """The classifier to transfer from, or None."""
        if self.transfer is not None:
            return self.transfer
        if hasattr(self.classifier, "posterior"):
            return surrogate(self.classifier, "mean")
        return self.draw() if self.is_random and hasattr(self.classifier, "draw") else None
