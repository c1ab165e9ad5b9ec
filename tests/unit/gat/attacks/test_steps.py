"""Norms, projections and steps, against slow exact references."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize

from gat.attacks.ascent import Slots
from gat.attacks.steps import NORMS, Steps, project

EPS = {"linf": 0.1, "l2": 0.8, "l1": 2.0}
BOX = (0.0, 1.0)


def batch(
    n: int = 6, shape: tuple[int, ...] = (3, 5, 4), reach: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and centres; some centres lie on the border of [0, 1], and one point is its centre."""
    generator = torch.Generator().manual_seed(0)
    center = (torch.rand(n, *shape, generator=generator) * 1.5 - 0.25).clamp(0, 1)
    x = center + reach * torch.randn(n, *shape, generator=generator)
    x[0] = center[0]
    return x, center


def nearest_by_root_finding(x: np.ndarray, center: np.ndarray, eps: float) -> np.ndarray:
    """Of the l1 ball within [0, 1], in float64, from the condition that the shrunk offset has length eps."""
    offset = x - center
    room = np.where(offset > 0, 1 - center, center)

    def shrunk(amount: float) -> np.ndarray:
        return np.minimum(np.maximum(np.abs(offset) - amount, 0), room)

    amount = 0.0
    if shrunk(0).sum() > eps:
        amount = brentq(lambda amount: shrunk(amount).sum() - eps, 0, np.abs(offset).max(), xtol=1e-14)
    return center + np.sign(offset) * shrunk(amount)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_those_of_numpy(norm):
    x, _ = batch()
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    wanted = np.linalg.norm(x.flatten(1).double().numpy(), ord=order, axis=1)
    np.testing.assert_allclose(NORMS[norm](x), wanted, rtol=1e-5)


@pytest.mark.parametrize("reach", [0.003, 0.1, 3.0, 100.0])
@pytest.mark.parametrize("eps", [0.0, 0.05, 2.0, 1000.0])
def test_the_l1_projection_is_the_exact_one(eps, reach):
    x, center = batch(reach=reach)
    found = project(x, center, eps, "l1", BOX)
    for i in range(len(x)):
        wanted = nearest_by_root_finding(x[i].double().numpy(), center[i].double().numpy(), eps)
        np.testing.assert_allclose(found[i].numpy(), wanted, rtol=0, atol=2e-6 * max(1, reach))
    assert ((found - center).double().flatten(1).abs().sum(1) <= eps + 1e-5).all()


def solve(x: np.ndarray, center: np.ndarray, eps: float) -> np.ndarray:
    """The nearest point as a quadratic program: up and down parts of the offset, between 0 and the room, their sum within eps."""
    n, offset = len(x), x - center

    def rest(parts: np.ndarray) -> np.ndarray:
        return parts[:n] - parts[n:] - offset

    solved = minimize(
        lambda parts: (rest(parts) ** 2).sum(),
        np.full(2 * n, 0.01),
        jac=lambda parts: 2 * np.concatenate([rest(parts), -rest(parts)]),
        bounds=[(0, up) for up in 1 - center] + [(0, down) for down in center],
        constraints={"type": "ineq", "fun": lambda parts: eps - parts.sum()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return center + solved.x[:n] - solved.x[n:]


def test_the_l1_projection_is_what_a_general_solver_finds():
    x, center = batch(n=3, shape=(1, 2, 3), reach=1.0)
    found = project(x, center, 0.7, "l1", BOX)
    for i in (1, 2):
        wanted = solve(x[i].double().numpy().ravel(), center[i].double().numpy().ravel(), 0.7)
        np.testing.assert_allclose(found[i].numpy().ravel(), wanted, atol=1e-5)


def test_the_l1_projection_is_that_of_the_authors():
    from pyautoattack.autopgd_base import L1_projection

    x, center = batch(shape=(3, 16, 16), reach=0.3)
    theirs = x + L1_projection(center, x - center, 12.0)
    torch.testing.assert_close(project(x, center, 12.0, "l1", BOX), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bounds", [None, BOX])
def test_a_projection_keeps_what_is_inside_and_brings_in_what_is_not(norm, bounds):
    x, center = batch()
    inside = project(x, center, EPS[norm], norm, bounds)
    assert (NORMS[norm]((inside - center).double()) <= EPS[norm] + 1e-5).all()
    assert torch.equal(inside[0], x[0])
    if bounds is None:
        assert (NORMS[norm](inside - center)[1:] >= EPS[norm] * 0.999).all()
        assert inside.min() < 0  # or the range would show nothing
    else:
        assert 0 <= inside.min() <= inside.max() <= 1
    torch.testing.assert_close(project(inside, center, EPS[norm], norm, bounds), inside, rtol=0, atol=1e-6)
    assert torch.equal(project(x, center, 0.0, norm, bounds), center)


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_does_not_see_the_batch(norm):
    x, center = batch()
    alone = torch.cat([project(x[i : i + 1], center[i : i + 1], EPS[norm], norm, BOX) for i in range(len(x))])
    torch.testing.assert_close(alone, project(x, center, EPS[norm], norm, BOX), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "length"), [("linf", "linf"), ("l2", "l2"), ("l1", "l2")])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e20])
def test_a_step_has_its_size_however_small_the_gradient(norm, length, scale):
    x, _ = batch()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * scale
    gradient[2] = 0
    slots = Slots.open(torch.arange(6), torch.arange(6), {"pixels": x}, {"pixels": x})
    step = Steps({"pixels": 0.3}, norm)({"pixels": x}, {"pixels": gradient}, slots)["pixels"] - x
    sizes = NORMS[length](step)
    assert sizes[2] == 0
    torch.testing.assert_close(sizes[[0, 1, 3, 4, 5]], torch.full([5], 0.3), rtol=1e-4, atol=1e-6)
    assert ((step * gradient.sign()).flatten(1).sum(1)[[0, 1, 3, 4, 5]] > 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_site_without_a_budget_is_free_and_keeps_its_range(norm):
    x, center = batch()
    assert torch.equal(Steps({}, norm).confine("pixels", x, center), x)
    assert torch.equal(Steps({}, norm, bounds={"pixels": BOX}).confine("pixels", x, center), x.clamp(0, 1))
