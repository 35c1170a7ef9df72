"""The balls around images in which attacks search, each cut by [0, 1]: projection, steepest ascent, random points, size.

A ball is made of images x (B, C, H, W) in [0, 1] and a radius; all it does, it does for each image by itself.
"""
import math

import torch
import torch.nn.functional as F

from pyro_advbnn.system.errors import InputError, check_number


class LinfBall:
    """Points whose pixels differ from x's by at most epsilon, in [0, 1]."""

    def __init__(self, x, epsilon):
        self.x, self.epsilon = x.detach(), epsilon
        self.low, self.high = (self.x - epsilon).clamp_(0, 1), (self.x + epsilon).clamp_(0, 1)

    def project_(self, points):
        """The nearest points of the ball, in place of `points`."""
        return points.clamp_(self.low, self.high)

    def random_point(self, generator=None):
        """A uniform point of the uncut ball, brought to [0, 1]."""
        return (self.x + self.epsilon * (2 * _uniform(self.x, generator) - 1)).clamp_(0, 1)

    def random_border_point(self, generator=None):
        """Each pixel epsilon up or down at random, brought to [0, 1]."""
        return torch.where(_uniform(self.x, generator) < 0.5, self.high, self.low)

    @staticmethod
    def ascent(gradient):
        """The step of size 1 that climbs most: the sign."""
        return gradient.sign()

    @staticmethod
    def size(perturbation):
        """The largest absolute value of each (B,)."""
        return perturbation.abs().flatten(1).amax(1)


class L2Ball:
    """Points at most epsilon from x in Euclidean distance, in [0, 1]."""

    def __init__(self, x, epsilon):
        self.x, self.epsilon = x.detach(), epsilon

    def project_(self, points):
        """Points of the ball, in place of `points`: drawn to x until they are near enough, then brought to [0, 1].

        This last moves no pixel away from x. The points are not the nearest ones where both had to be done.
        """
        return points.sub_(self.x).renorm_(2, 0, self.epsilon).add_(self.x).clamp_(0, 1)

    def random_point(self, generator=None):
        """A uniform point of the uncut ball, brought to [0, 1]."""
        dimensions, share = self.x[0].numel(), _uniform(self.x.flatten(1)[:, 0], generator)
        return self._point(per_image(share ** (1 / dimensions), self.x), generator)

    def random_border_point(self, generator=None):
        """A uniform point of the uncut sphere, brought to [0, 1]."""
        return self._point(1, generator)

    def _point(self, radius, generator):
        direction = torch.randn(self.x.shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
        return (self.x + self.epsilon * radius * self.ascent(direction)).clamp_(0, 1)

    @staticmethod
    def ascent(gradient):
        """The step of size 1 that climbs most: the gradient over its length; 0 for the gradient 0."""
        tiny = torch.finfo(gradient.dtype).tiny
        scaled = F.normalize(gradient.flatten(1), math.inf, eps=tiny)    # before squaring: one of 1e-30 has a direction too
        return F.normalize(scaled, eps=tiny).view_as(gradient)

    @staticmethod
    def size(perturbation):
        """The Euclidean length of each (B,)."""
        return torch.linalg.vector_norm(perturbation.flatten(1), dim=1)


BALLS: dict[str, type[LinfBall] | type[L2Ball]] = {"linf": LinfBall, "l2": L2Ball}


def check_ball(epsilon, norm):
    """Raises InputError for a norm that there is not and for a radius that is none."""
    if norm not in tuple(BALLS):
        raise InputError(f"norm must be one of {', '.join(BALLS)}, got {norm!r}")
    check_number("epsilon", epsilon, high=1 if norm == "linf" else math.inf)     # 1: the range of the images


def per_image(values, like):
    """values (B,) in a shape that goes with `like` (B, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _uniform(like, generator):
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
