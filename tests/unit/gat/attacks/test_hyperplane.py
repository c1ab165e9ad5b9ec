"""The nearest point of a hyperplane within [0, 1], against linear programming and bisection in float64."""

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from gat.attacks.hyperplane import dual_norm, reach
from gat.attacks.steps import NORMS, Norm

N = 24


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Points, half of whose entries lie on the border of the range, planes, and rises near and far, up and down."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(12, N, generator=generator) * 2 - 0.5).clamp(0, 1)
    weights = torch.randn(12, N, generator=generator)
    weights[:, :3] = 0
    most = (weights.clamp(min=0) * (1 - x) - weights.clamp(max=0) * x).sum(1)
    least = (weights.clamp(min=0) * x - weights.clamp(max=0) * (1 - x)).sum(1)
    share = torch.linspace(-0.95, 0.95, 12)
    return x, weights, torch.where(share > 0, share * most, share * least)


def smallest(x: Tensor, weights: Tensor, rise: float, norm: Norm) -> float:
    """The optimum of one example, by other means."""
    x, weights = x.double(), weights.double()
    if norm == "l2":  # d = clamp(t * weights, -x, 1 - x) for the right t, which bisection finds
        low, high = -1e6, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            change = torch.minimum(torch.maximum(middle * weights, -x), 1 - x)
            low, high = (middle, high) if float((change * weights).sum()) < rise else (low, middle)
        return float(change.norm())
    n, w = len(x), weights.numpy()
    eye = torch.eye(n, dtype=torch.float64).numpy()
    # Variables: the change, and what bounds its absolute entries: one number for linf, one each for l1.
    bounds = [(float(-v), float(1 - v)) for v in x] + [(0, None)] * (1 if norm == "linf" else n)
    limits = -torch.ones(n, 1).numpy() if norm == "linf" else -eye
    rows = [[*eye[i], *limits[i]] for i in range(n)] + [[*-eye[i], *limits[i]] for i in range(n)]
    extra = limits.shape[1]
    found = linprog(
        [0.0] * n + [1.0] * extra, A_ub=rows, b_ub=[0.0] * 2 * n, A_eq=[[*w, *[0.0] * extra]], b_eq=[rise], bounds=bounds
    )  # fmt: skip
    assert found.success
    return float(found.fun)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_change_is_the_smallest_that_makes_the_rise_within_the_range(case, norm):
    x, weights, rise = case
    change = reach(x, weights, rise, norm)
    torch.testing.assert_close((change * weights).sum(1), rise, rtol=1e-5, atol=1e-5)
    assert (x + change).min() >= 0
    assert (x + change).max() <= 1
    wanted = torch.tensor([smallest(*one, norm) for one in zip(x, weights, rise.tolist(), strict=True)])
    torch.testing.assert_close(NORMS[norm](change), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_out_of_reach_it_goes_as_far_as_the_range_permits(case, norm):
    x, weights, rise = case
    change = reach(x, weights, rise.sign() * 1e4, norm)
    corner = torch.where(weights * rise[:, None] > 0, 1.0, 0.0)
    moving = weights != 0
    torch.testing.assert_close((x + change)[moving], corner[moving], rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_a_rise_or_a_slope_nothing_moves(case, norm):
    x, weights, rise = case
    assert not reach(x, weights, torch.zeros_like(rise), norm).any()
    assert not reach(x, torch.zeros_like(weights), rise, norm).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_dual_norm_is_what_a_unit_step_makes_of_a_linear_function(norm):
    weights = torch.randn(5, N)
    middle = torch.full((5, N), 0.5)
    rise = torch.full((5,), 0.01)
    length = NORMS[norm](reach(middle, weights, rise, norm))
    torch.testing.assert_close(length * dual_norm(weights, norm), rise, rtol=1e-4, atol=1e-7)
