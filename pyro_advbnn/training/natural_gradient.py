"""The natural gradient for the stds of a mean-field posterior, SGD with momentum for all else."""
import torch
from torch.optim.sgd import sgd

from pyro_advbnn.bayes.bayesian_classifier import BayesianClassifier
from pyro_advbnn.bayes.kernels.vectors import chunks
from pyro_advbnn.system.errors import InputError, check_at_least, check_number


class NaturalGradient(torch.optim.Optimizer):
    """An optimizer of Eq. (10) for a `BayesianClassifier`, by the gradients that the backward of `negative_elbo` leaves.

    With L = Eq. (10) and lambda = num_train / alpha one step is

        log_std -= clamp(rho lambda / 2 * dL/dlog_std, -max_step, max_step)
        momentum_buffer = momentum * momentum_buffer + dL/dmean;  mean -= lr (dL/dmean + momentum * momentum_buffer)

    that is, the natural gradient in log_std (whose Fisher information is 2) and SGD with Nesterov momentum on the mean and on
    deterministic parameters. One vector of momentum is all that it keeps, where Adam keeps four. With a normal prior the
    fixed point is s^2 = 1 / (lambda h + 1 / prior_std^2), h the mean curvature of the nll: few data or a flat likelihood
    leave a weight the prior's std, at most rho / 2 nearer with each step. In log_std it is IVON (Shen et al. 2024,
    arXiv 2402.17641) but for terms of third order in rho. Other priors have their gradient taken as it comes.

    Weights that the KL does not count (kl_over="last") have no such fixed point. Eq. (10) is least where their std is 0, and
    no optimizer should say otherwise: theirs falls for ever, as with Adam, but ever more slowly, like 1 / sqrt(steps).

    num_train: N >= 1 training images. alpha > 0: of the whole training; the gradient brings the kl_weight of its step, so a
    warm-up needs nothing here. lr >= 0: of mean and deterministic parameters; schedules move it, in each group. rho in [0, 1]:
    the rate of log_std, which averages the curvature over some 1 / rho steps. momentum: in [0, 1]. max_step > 0: the most
    that log_std moves in a step. weight_decay >= 0: of deterministic parameters alone, since the prior is the mean's.

    Raises InputError for a classifier without a posterior, and for numbers out of range.
    """

    def __init__(self, classifier, *, num_train, alpha, lr=0.1, rho=0.005, momentum=0.9, max_step=0.1, weight_decay=0.0):
        if not isinstance(classifier, BayesianClassifier):
            raise InputError(f"the natural gradient needs a posterior, a BayesianClassifier, got a {type(classifier).__name__}")
        check_at_least("num_train", num_train, 1)
        check_number("alpha", alpha, above=True)
        check_number("num_train / alpha", num_train / alpha, high=1e30)      # beyond are no numbers in float32
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            check_number(name, value)
        for name, value in {"rho": rho, "momentum": momentum}.items():
            check_number(name, value, 0, 1)
        check_number("max_step", max_step, above=True)
        mean, log_std = classifier.mean, classifier.log_std
        others = [p for p in classifier.parameters() if p is not mean and p is not log_std]
        groups = [{"params": [mean], "weight_decay": 0.0}, {"params": others},
                  {"params": [log_std], "rho": rho, "max_step": max_step, "effective_size": num_train / alpha}]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One step by the gradients that are there, or those of closure(), whose result is returned; it waits for no GPU."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if "rho" in group:
                rate = group["rho"] * group["effective_size"] / 2
                for p in parameters if rate else ():
                    _natural_step_(p, p.grad, rate, group["max_step"])
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


def _natural_step_(log_std, gradient, rate, most):
    """log_std -= clamp(rate * gradient, -most, most); on the CPU without a whole vector of work memory.   rate: > 0."""
    parts = chunks(0, len(log_std), log_std.device)
    bound, work = min(most / rate, torch.finfo(log_std.dtype).max), torch.empty_like(gradient[parts[0]])
    for part in parts:
        capped = torch.clamp(gradient[part], -bound, bound, out=work[:part.stop - part.start])
        log_std[part].sub_(capped, alpha=rate)
