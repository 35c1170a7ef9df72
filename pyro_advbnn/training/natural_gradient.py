"""The natural gradient for the stds of a mean-field posterior, SGD with momentum for all else."""
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.sgd import sgd

from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.kernels.posterior import step_by_squares_
from pyro_advbnn.bayes.priors import NormalPrior
from pyro_advbnn.system.errors import InputError, check_at_least, check_number


class NaturalGradient(torch.optim.Optimizer):
    """An optimizer of Eq. (10) for a `BayesianClassifier`, by the gradients that the backward of `negative_elbo` leaves.

    With L = Eq. (10) and lambda = num_train / alpha one step is

        log_std -= rho / 2 * G
        momentum_buffer = momentum * momentum_buffer + dL/dmean;  mean -= lr (dL/dmean + momentum * momentum_buffer)

    that is, the natural gradient in log_std (whose Fisher information is 2), G its gradient of lambda L, and SGD with Nesterov
    momentum on the mean and on deterministic parameters. One vector of momentum is all that it keeps, where Adam keeps four.
    With a normal prior the fixed point is s^2 = 1 / (lambda h + 1 / prior_std^2), h the mean curvature of the nll: few data or
    a flat likelihood leave a weight the prior's std, by squares at most rho / 2 nearer with each step. h is told by one of

        draws    G = lambda dL/dlog_std, right on average. The noise of one step is sqrt(lambda / batch size) times the
                 curvature, so that it takes some 1 / alpha epochs to tell it. A step is IVON's (Shen et al. 2024, arXiv
                 2402.17641), log(1 + rho G + (rho G)^2 / 2) in the place of rho G: a std grows by sqrt(2) at most. Where
                 rho sqrt(lambda / batch size) is not well below 1, noise alone narrows the stds.
        squares  G = lambda (c D^2 + w dKL/dlog_std), `clip` at most, with D = dL/dlog_std - w dKL/dlog_std and w the step's
                 kl_weight. The squares (as of Khan et al. 2018, arXiv 1806.04854), whose noise is the same at every alpha,
                 tell how the curvature is shared among the weights; the draws tell how much there is of it: c is the sum of
                 D over all weights over that of D^2, each averaged over some 1 / rho steps before (0 in the first). So at
                 rest Eq. (10) is stationary in a common factor of all stds, which few draws tell well.

    Both read D from the gradient of log_std as `negative_elbo` leaves it: clip that of the mean alone.

    Weights that the KL does not count (kl_over="last") have no such fixed point. Eq. (10) is least where their std is 0, and
    no optimizer should say otherwise: theirs falls for ever, as with Adam, but ever more slowly, like 1 / sqrt(steps).

    num_train: N >= 1 training images. alpha > 0: of the whole training. curvature: "squares" or "draws"; w is "kl_weight" of
    log_std's group, alpha / num_train or what `train_step` was given last. lr >= 0: of mean and deterministic parameters;
    schedules move it, in each group. rho in [0, 1]: the rate of log_std, which averages the curvature over some 1 / rho steps.
    momentum: in [0, 1]. clip > 0: the most that |G| by squares is; G is on average 0 at rest, and -1 at least with a normal
    prior. weight_decay >= 0: of deterministic parameters alone, since the prior is the mean's.

    Raises InputError for a classifier without a posterior, or with one in half precision, and for numbers out of range.
    """

    def __init__(self, classifier: BayesianClassifier, *, num_train: int, alpha: float, curvature: str = "squares",
                 lr: float = 0.1, rho: float = 0.005, momentum: float = 0.9, clip: float = 40.0,
                 weight_decay: float = 0.0) -> None:
        if not isinstance(classifier, BayesianClassifier):
            raise InputError(f"the natural gradient needs a posterior, a BayesianClassifier, got a {type(classifier).__name__}")
        if classifier.log_std.dtype.itemsize < 4:            # near -6 its numbers lie further apart than most steps are long
            raise InputError(f"weights must be float32 or float64 in training, got {classifier.log_std.dtype}; torch.autocast "
                             f"computes with them in less")
        check_at_least("num_train", num_train, 1)
        check_number("alpha", alpha, above=True)
        check_number("num_train / alpha", num_train / alpha, high=1e30)      # beyond are no numbers in float32
        if curvature not in ("squares", "draws"):
            raise InputError(f"curvature must be squares or draws, got {curvature!r}")
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            check_number(name, value)
        for name, value in {"rho": rho, "momentum": momentum}.items():
            check_number(name, value, 0, 1)
        check_number("clip", clip, above=True)
        mean, log_std = classifier.mean, classifier.log_std
        others = [p for p in classifier.parameters() if p is not mean and p is not log_std]
        groups: list[dict] = [
            {"params": [mean], "weight_decay": 0.0}, {"params": others},
            {"params": [log_std], "rho": rho, "clip": clip, "effective_size": num_train / alpha,
             "curvature": curvature, "kl_weight": alpha / num_train}]
        self._classifier = classifier
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def __getstate__(self):                              # a copy's, of which torch's own knows the parameters alone
        return super().__getstate__() | {"_classifier": self._classifier}

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """One step by the gradients that are there, or those of closure(), whose result is returned; it waits for no GPU."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if "rho" in group:
                for log_std in parameters:
                    self._natural_step_(log_std, **group)
            else:
                momenta = [self._momentum(p) for p in parameters]
                sgd(parameters, [p.grad for p in parameters], momenta, lr=group["lr"], momentum=group["momentum"],
                    weight_decay=group["weight_decay"], dampening=0.0, nesterov=True, maximize=False, fused=True)
        return loss

    def _momentum(self, parameter):
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    def _natural_step_(self, log_std, *, rho, clip, effective_size, curvature, kl_weight, **_):
        if curvature == "squares":
            self._step_by_squares_(log_std, rho, kl_weight=kl_weight, rate=rho * effective_size / 2,
                                   bound=min(clip / effective_size, torch.finfo(log_std.dtype).max))
        else:
            change = (rho * effective_size * log_std.grad).clamp(-1e18, 1e18)        # the square is finite
            log_std.sub_(torch.log1p(change + change.square() / 2), alpha=0.5)

    def _step_by_squares_(self, log_std, rho, **numbers):
        state, prior = self.state[log_std], self._classifier.prior
        if not state:
            state["sums"] = log_std.new_zeros(2)
        sums = state["sums"]
        share = (sums[0] / sums[1]).nan_to_num(0, 0, 0).clamp(min=0)     # a 0 of torch.where would be copied to a GPU
        pieces = prior.counted_pieces() if isinstance(prior, NormalPrior) else None
        step_sums = step_by_squares_(log_std, log_std.grad, pieces, self._classifier.kl_by_log_std, share=share, **numbers)
        sums.mul_(1 - rho).add_(step_sums, alpha=rho)
