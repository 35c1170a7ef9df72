"""Tests of the balls in which attacks search: what is in them, what leads out of them, and where random points lie."""
import math

import numpy as np
import pytest
import torch

import pyro_advbnn as ab
from pyro_advbnn.attacks.balls import BALLS, L2Ball, LinfBall, check_ball

EPSILONS = {"linf": 0.1, "l2": 0.7}


@pytest.fixture
def x():
    x = torch.rand(40, 3, 5, 5)
    x[:, :, 0], x[:, :, 1] = 0, 1                        # pixels at both borders of [0, 1]
    return x


@pytest.fixture(params=BALLS)
def norm(request):
    return request.param


def test_sizes_are_those_of_numpy(x, norm):
    vectors = (x - 0.7).flatten(1).numpy()
    expected = [np.linalg.norm(vector, ord={"linf": np.inf, "l2": 2}[norm]) for vector in vectors]
    np.testing.assert_allclose(BALLS[norm].size(x - 0.7), expected, rtol=1e-5)


def test_projected_points_lie_in_the_ball_and_in_the_unit_range(x, norm):
    ball = BALLS[norm](x, EPSILONS[norm])
    points = ball.project_(x + torch.randn_like(x))
    assert points.min() >= 0 and points.max() <= 1
    assert (ball.size(points - x) <= EPSILONS[norm] * (1 + 1e-6)).all()
    assert (ball.size(points - x) > EPSILONS[norm] / 2).all()
    torch.testing.assert_close(ball.project_(points.clone()), points)


def test_points_of_the_ball_are_left_where_they_are(x, norm):
    ball = BALLS[norm](x, EPSILONS[norm])
    points = x + (0.5 - x) * 0.01
    torch.testing.assert_close(ball.project_(points.clone()), points)


def test_a_point_far_off_is_drawn_to_the_image_along_the_line_between_them():
    x, direction = torch.full((2, 1, 4, 4), 0.5), torch.randn(2, 1, 4, 4)
    points = L2Ball(x, 0.3).project_(x + 7 * direction)
    expected = x + 0.3 * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(points, expected)


def test_the_radius_zero_leaves_the_images(x, norm):
    ball = BALLS[norm](x, 0)
    for points in (ball.project_(x + torch.randn_like(x)), ball.random_point(), ball.random_border_point()):
        torch.testing.assert_close(points, x)


@pytest.mark.parametrize("scale", [1, 1e-30, 1e30])
def test_a_steepest_step_has_the_size_one_and_climbs_more_than_others(norm, scale):
    gradient = scale * torch.randn(20, 3, 5, 5)
    step = BALLS[norm].ascent(gradient)
    torch.testing.assert_close(BALLS[norm].size(step), torch.ones(20))
    climb = (step.double() * gradient.double()).flatten(1).sum(1)
    dual = {"linf": 1, "l2": 2}[norm]                    # by Hoelder's inequality no step of size 1 climbs more
    torch.testing.assert_close(climb, gradient.double().flatten(1).norm(p=dual, dim=1), rtol=1e-5, atol=0)


def test_the_gradient_zero_gives_the_step_zero(norm):
    assert (BALLS[norm].ascent(torch.zeros(2, 3, 4, 4)) == 0).all()


def test_random_points_lie_in_the_ball_and_come_from_their_generator_alone(x, norm):
    ball = BALLS[norm](x, EPSILONS[norm])
    for draw in (ball.random_point, ball.random_border_point):
        one, other = (draw(torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(one, other) and not torch.equal(one, draw(torch.Generator().manual_seed(6)))
        assert one.min() >= 0 and one.max() <= 1
        assert (ball.size(one - x) <= EPSILONS[norm] * (1 + 1e-6)).all()


def test_random_points_fill_the_ball_uniformly():
    """Of a uniform point in d dimensions the size over epsilon, to the power d, is uniform in [0, 1]."""
    x = torch.full((4000, 1, 1, 2), 0.5)
    for norm, ball in BALLS.items():
        perturbation = ball(x, 0.2).random_point() - x
        assert perturbation.mean(0).abs().max() < 0.01, norm              # five standard deviations at least
        shares = ((ball.size(perturbation) / 0.2) ** 2).sort().values
        distance = (shares - torch.linspace(0, 1, 4000)).abs().max()
        assert distance < 1.63 / math.sqrt(4000), norm   # Kolmogorov and Smirnov at 1%


def test_random_border_points_lie_on_the_border(norm):
    x = torch.full((50, 3, 4, 4), 0.5)
    ball = BALLS[norm](x, 0.1)
    perturbation = ball.random_border_point() - x
    torch.testing.assert_close(ball.size(perturbation), torch.full((50,), 0.1))
    if norm == "linf":
        torch.testing.assert_close(perturbation.abs(), torch.full_like(x, 0.1))
        assert 0.4 < (perturbation > 0).float().mean() < 0.6


@pytest.mark.parametrize(("epsilon", "norm", "message"), [
    (0.1, "l1", "norm must be one of linf, l2, got 'l1'"), (8, "linf", "epsilon must lie in"), (-1, "l2", "epsilon must be"),
    (math.nan, "linf", "epsilon"), (math.nan, "l2", "epsilon"), (math.inf, "l2", "epsilon"),
])
def test_balls_that_there_are_not_are_refused(epsilon, norm, message):
    with pytest.raises(ab.InputError, match=message):
        check_ball(epsilon, norm)


def test_an_l2_radius_may_be_larger_than_the_range_of_the_images():
    assert check_ball(3.0, "l2") is None


def test_the_linf_ball_is_that_of_the_paper(x):
    points = x + torch.randn_like(x)
    expected = np.clip(np.clip(points.numpy(), x.numpy() - np.float32(0.1), x.numpy() + np.float32(0.1)), 0, 1)
    assert np.array_equal(LinfBall(x, 0.1).project_(points.clone()).numpy(), expected)
