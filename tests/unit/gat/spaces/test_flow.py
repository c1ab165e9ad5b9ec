"""Flow fields: shifts, ramps and constants, whose images and roughness are known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gat.protocols import Space
from gat.spaces.flow import FlowSpace, roughness

EVERYONE = torch.arange(2)


def images(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def bend(space: FlowSpace, flow: Tensor) -> Tensor:
    return space.freeze(space.rest(), ["flow"])({"flow": flow}, EVERYONE)


def constant(space: FlowSpace, right: float, down: float) -> Tensor:
    return space.rest()["flow"] + torch.tensor([right, down])[:, None, None]


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (32, 32), (31, 64), (7, 45), (100, 3)])
def test_zero_flow_is_the_image_bit_by_bit(size, padding):
    given = images(*size)
    assert torch.equal(bend(FlowSpace(given, "grid", padding), torch.zeros(2, 2, *size)), given)


def test_a_flow_of_whole_pixels_shifts_the_image_and_repeats_its_border():
    given = images(5, 9)
    space = FlowSpace(given, "px")
    right, up = bend(space, constant(space, 2, 0)), bend(space, constant(space, 0, -1))
    torch.testing.assert_close(right[..., :-2], given[..., 2:], rtol=0, atol=1e-6)
    torch.testing.assert_close(right[..., -2:], given[..., -1:].expand(-1, -1, -1, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(up[..., 1:, :], given[..., :-1, :], rtol=0, atol=1e-6)
    torch.testing.assert_close(up[..., 0, :], given[..., 0, :], rtol=0, atol=1e-6)


def test_two_grid_units_are_the_side_of_an_image_whatever_its_shape():
    given = images(5, 9)
    grid, px = FlowSpace(given, "grid"), FlowSpace(given, "px")
    torch.testing.assert_close(
        bend(grid, constant(grid, 2 / 9, 2 / 5)), bend(px, constant(px, 1, 1)), rtol=0, atol=1e-6
    )


def test_zeros_lie_half_a_pixel_beyond_the_border_at_most():
    given = images(4, 4)
    space = FlowSpace(given, "px", "zeros")
    left = bend(space, constant(space, -3, 0))
    torch.testing.assert_close(left[..., 0], given[..., 0] / 2, rtol=0, atol=1e-6)
    right = bend(space, constant(space, 3, 0))
    torch.testing.assert_close(right[..., -1], given[..., -1] / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (6, 11)])
def test_any_flow_agrees_with_grid_sample(size):
    given = images(*size)
    flow = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(1)) - 0.5
    grid = F.affine_grid(torch.eye(2, 3).expand(2, 2, 3), given.shape, align_corners=False)
    moved = grid + flow.permute(0, 2, 3, 1)
    border = F.grid_sample(given, moved, padding_mode="border", align_corners=False)
    torch.testing.assert_close(bend(FlowSpace(given), flow), border, rtol=0, atol=1e-5)
    published = F.grid_sample(given, moved.clamp(-1, 1), align_corners=False)
    torch.testing.assert_close(bend(FlowSpace(given, "grid", "zeros"), flow), published, rtol=0, atol=1e-5)


def test_on_a_ramp_the_gradient_is_its_slope():
    ramp = (0.03 * torch.arange(9) + 0.05 * torch.arange(7)[:, None]).expand(2, 1, 7, 9)
    space = FlowSpace(ramp, "px")
    flow = constant(space, 0.3, -0.4).requires_grad_()
    out = bend(space, flow)
    inside = (..., slice(1, -1), slice(1, -1))
    expected = ramp + 0.3 * 0.03 - 0.4 * 0.05
    torch.testing.assert_close(out[inside], expected[inside], rtol=0, atol=1e-6)
    slope = torch.autograd.grad(out.sum(), flow)[0][inside]
    torch.testing.assert_close(slope[:, 0], torch.full_like(slope[:, 0], 0.03), rtol=0, atol=1e-5)
    torch.testing.assert_close(slope[:, 1], torch.full_like(slope[:, 1], 0.05), rtol=0, atol=1e-5)


def test_what_looks_beyond_the_border_still_sees_the_way_back():
    ramp = (0.1 * torch.arange(6)).expand(2, 1, 6, 6)
    space = FlowSpace(ramp, "px")
    flow = constant(space, -2, 0).requires_grad_()
    slope = torch.autograd.grad(bend(space, flow).sum(), flow)[0]
    torch.testing.assert_close(slope[:, 0, :, 0], torch.full((2, 6), 0.1), rtol=0, atol=1e-5)


def test_a_constant_field_is_smooth_and_one_step_counts_both_ways():
    field = torch.ones(2, 2, 6, 5)
    assert torch.equal(roughness(field), torch.zeros(2))
    field[1, :, 3, 2] += torch.tensor([3.0, 4.0])
    torch.testing.assert_close(roughness(field), torch.tensor([0.0, 4 * 2 * 5.0]), rtol=0, atol=0.002)


def test_roughness_is_the_published_sum_over_directed_neighbours():
    field = torch.randn(2, 2, 4, 7, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(2)
    for y in range(4):
        for x in range(7):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                y2, x2 = min(max(y + dy, 0), 3), min(max(x + dx, 0), 6)
                total += (field[:, :, y, x] - field[:, :, y2, x2]).norm(dim=1)
    torch.testing.assert_close(roughness(field), total, rtol=1e-4, atol=0.01)


def test_it_is_a_space_whose_rows_may_be_few_or_repeated():
    given = images(5, 6)
    space = FlowSpace(given)
    assert isinstance(space, Space)
    flow = torch.rand(2, 2, 5, 6) * 0.2
    render, whole = space.freeze(space.rest(), ["flow"]), bend(space, flow)
    for rows in (torch.tensor([1]), torch.tensor([1, 0, 1])):
        torch.testing.assert_close(render({"flow": flow[rows]}, rows), whole[rows], rtol=0, atol=1e-6)
        still = space.freeze({"flow": flow}, [])({}, rows)
        torch.testing.assert_close(still, whole[rows], rtol=0, atol=1e-6)


def test_random_flows_depend_on_the_example_alone_and_fill_the_range():
    space = FlowSpace(images(20, 20))
    both = space.scattered(0, torch.tensor([7, 3]), "a")["flow"]
    assert torch.equal(both[1:], space.scattered(0, torch.tensor([3]), "a")["flow"])
    assert not torch.equal(both, space.scattered(1, torch.tensor([7, 3]), "a")["flow"])
    assert -1 <= both.min() < -0.98
    assert 0.98 < both.max() <= 1
