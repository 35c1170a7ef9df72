"""What the checks of an evaluation look at: a classifier, images, and the attack whose figure is to be trusted."""
import torch

from pyro_advbnn.attacks.modes import eval_mode, is_random
from pyro_advbnn.attacks.pgd import PGD
from pyro_advbnn.attacks.surrogates import surrogate
from pyro_advbnn.evaluation.accuracy import accuracy_fields, attack_images
from pyro_advbnn.evaluation.inputs import check_classifier, check_images, check_labels, check_repeatable, check_same_labels
from pyro_advbnn.evaluation.worst_case import opinions
from pyro_advbnn.system.errors import InputError, check_at_least, check_number
from pyro_advbnn.system.random_streams import separate_randomness


class Examination:
    """What the checks look at: a classifier, images, and the attack whose figure is to be trusted.

    batches: an iterable of (x (B, C, H, W) in [0, 1], y (B,)) that can be gone through again, in the same order. epsilon:
    l_inf radius > 0. The attack under test is PGD with num_steps steps of 2.5 epsilon / num_steps and attack_samples draws
    per gradient; predictions average num_samples draws. transfer: a module whose attacked images are tried on this one;
    default the network at the posterior's mean, for a random classifier without one a fixed draw. paper_step: that of the
    paper's attack, 20 steps with one draw per gradient; default epsilon / 8. Every attack on a batch has a random stream of
    its own, made from `seed`.

    Raises InputError for settings out of range, and for images, labels and modules that are not fit (see `inputs`).
    """

    def __init__(self, classifier, batches, *, epsilon, num_steps=20, attack_samples=20, num_samples=20, num_queries=500,
                 transfer=None, paper_step=None, seed=0):
        for name, value in (("num_steps", num_steps), ("attack_samples", attack_samples), ("num_samples", num_samples),
                            ("num_queries", num_queries)):
            check_at_least(name, value, 1)
        check_number("epsilon", epsilon)
        if not 0 < epsilon <= 1:
            raise InputError(f"epsilon must lie in (0, 1], got {epsilon}")
        check_repeatable(batches)
        self._labels = []
        for x, y in batches:
            check_images(x)
            check_labels(y, check_classifier(classifier, x[:1]), x)
            self._labels.append(y)
        self.classifier, self.batches, self.epsilon, self.num_samples = classifier, batches, epsilon, num_samples
        self.num_queries, self.transfer, self.seed = num_queries, transfer, seed
        self.is_random = is_random(classifier, self._some_images())
        self.attack = PGD(epsilon, None, num_steps, attack_samples if self.is_random else 1)
        self.papers_attack = PGD(epsilon, paper_step, 20)
        self._known = {}

    def correct(self, attack, through=None, judge=None):
        """Whether the averaged prediction is right on each attacked image, a tensor (N,) of booleans.

        through: the classifier that is attacked; judge: the one that predicts; default for both: the one examined.
        What was measured once is not measured again.
        """
        if (attack, through, judge) not in self._known:
            self._known[attack, through, judge] = self._measured(attack, through, judge)
        return self._known[attack, through, judge]

    def _measured(self, attack, through, judge):
        judge = self.classifier if judge is None else judge
        through = judge if through is None else through
        found = []
        for number, (x, y) in enumerate(self.batches):
            check_same_labels(y, self._labels[number])
            with separate_randomness(self.seed + number):
                x_adv = attack_images(attack, through, x, y)
                found.append(~opinions(judge, x_adv, y, self.num_samples)["broken"])
        return torch.cat(found)

    def accuracy(self, attack):
        """The columns of a row that come out under an attack."""
        correct = self.correct(attack)
        return accuracy_fields(correct.sum().item(), len(correct))

    def num_classes(self):
        with torch.no_grad(), eval_mode(self.classifier), separate_randomness(self.seed):
            return self.classifier(self._some_images()).shape[1]

    def _some_images(self):
        x, _ = next(iter(self.batches))
        return x[:16]

    def draw(self):
        """The classifier with one draw fixed."""
        with separate_randomness(self.seed):
            return surrogate(self.classifier, "pool:1")

    def stand_in(self):
        """The classifier to transfer from, or None."""
        if self.transfer is not None:
            return self.transfer
        if hasattr(self.classifier, "posterior"):
            return surrogate(self.classifier, "mean")
        return self.draw() if self.is_random and hasattr(self.classifier, "draw") else None
