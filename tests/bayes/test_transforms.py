"""torch.func's transforms and torch.export through classifiers, which know none of the kernels."""
from functools import partial

import pytest
import torch
from torch import nn

import pyro_advbnn as ab

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    """With a 2x2 pooling first, which has a compiled loop."""
    return nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture(params=[(defense, trainable) for defense in ("none", "rse", "bnn") for trainable in (True, False)],
                ids=lambda param: f"{param[0]}-{'trainable' if param[1] else 'frozen'}")
def classifier(request):
    torch.manual_seed(0)
    return ab.build_classifier(request.param[0], network(), init_std=0.1).eval().requires_grad_(request.param[1])


def seeded(function, *arguments):
    torch.manual_seed(1)
    return function(*arguments)


@pytest.mark.filterwarnings("ignore:.torch.jit")          # which torch uses itself
@pytest.mark.parametrize("transform", [torch.func.jacrev, partial(torch.func.jacfwd, randomness="same")])
def test_jacobians_by_torch_func_are_those_of_autograd(classifier, transform):
    def single(x):
        return classifier(x[None])[0]

    expected = seeded(torch.autograd.functional.jacobian, single, X[0])
    torch.testing.assert_close(seeded(transform(single), X[0]), expected, rtol=1e-4, atol=1e-6)


def test_vmap_over_images_gives_what_single_calls_give(classifier):
    def single(x):
        return classifier(x[None])[0]

    answers = seeded(torch.func.vmap(single, randomness="same"), X)
    torch.testing.assert_close(answers, torch.stack([seeded(single, x) for x in X]), rtol=1e-4, atol=1e-6)


def test_under_vmap_each_image_may_have_a_draw_of_its_own():
    classifier = ab.BayesianClassifier(network(), init_std=0.1).eval()
    answers = torch.func.vmap(lambda x: classifier(x[None])[0], randomness="different")(X[:1].expand(3, -1, -1, -1))
    assert len(answers.unique(dim=0)) == 3


class Loss(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self):
        return ab.negative_elbo(self.classifier, X, torch.arange(3), kl_weight=0.1)


def test_the_gradient_of_the_objective_by_torch_func_is_that_of_autograd():
    loss = Loss(ab.BayesianClassifier(network(), init_std=0.1).eval())
    parameters = dict(loss.named_parameters())
    by_func = seeded(torch.func.grad(lambda given: torch.func.functional_call(loss, given, ())), parameters)
    by_autograd = torch.autograd.grad(seeded(loss), [*parameters.values()])
    for one, other in zip(by_func.values(), by_autograd, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_samples", [None, 2])
def test_a_classifier_and_its_average_are_exported_as_they_are(classifier, num_samples):
    module = classifier if num_samples is None else classifier.averaged(num_samples)
    exported = torch.export.export(module, (X,)).module()
    torch.testing.assert_close(seeded(exported, X), seeded(module, X), rtol=1e-4, atol=1e-5)
