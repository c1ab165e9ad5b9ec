"""Colour maps, held against scikit-image, dense grids and colours whose way is known."""

import pytest
import torch
import torch.nn.functional as F
from skimage import color
from torch import Tensor

from gat.protocols import Space
from gat.spaces.color import UNITS, ColorSpace, luv_to_rgb, rgb_to_luv
from gat.spaces.combined import CombinedSpace
from gat.spaces.flow import FlowSpace, roughness

EVERYONE = torch.arange(2)


def cube(n: int) -> Tensor:
    """All colours of a grid that includes the most saturated ones, as one image."""
    axes = torch.meshgrid(*[torch.linspace(0, 1, n)] * 3, indexing="ij")
    return torch.stack(axes).reshape(1, 3, n, n * n)


def images(low: float = 0.3, high: float = 0.7, side: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, side, side, generator=generator) * (high - low) + low


def recolor(space: ColorSpace, offsets: Tensor) -> Tensor:
    rows = torch.arange(len(offsets))
    return space.freeze(space.rest(), ["color"])({"color": offsets}, rows)


def test_colours_are_those_of_scikit_image():
    # Its matrix has other digits, and its white therefore a slightly other hue.
    expected = torch.from_numpy(color.rgb2luv(cube(9).movedim(1, -1).numpy())).movedim(-1, 1)
    torch.testing.assert_close(rgb_to_luv(cube(9)), expected, rtol=0, atol=0.1)
    inside = rgb_to_luv(images(0.2, 0.8))
    expected = torch.from_numpy(color.luv2rgb(inside.movedim(1, -1).numpy())).movedim(-1, 1)
    torch.testing.assert_close(luv_to_rgb(inside), expected, rtol=0, atol=1e-3)


def test_there_and_back_is_where_one_was_and_greys_have_no_hue():
    torch.testing.assert_close(luv_to_rgb(rgb_to_luv(cube(17))), cube(17), rtol=0, atol=1e-5)
    grey = torch.linspace(0, 1, 11).expand(1, 3, 1, 11)
    assert rgb_to_luv(grey)[:, 1:].abs().max() < 1e-4
    assert rgb_to_luv(grey)[0, 0, 0, [0, -1]].tolist() == pytest.approx([0, 100], abs=1e-4)


@pytest.mark.parametrize(("low", "high"), [(0.002, 0.01), (0.01, 0.1), (0.1, 0.9)])
def test_the_written_derivative_is_the_numerical_one(low, high):
    luv = rgb_to_luv(images(low, high, side=2).double()).requires_grad_()
    assert torch.autograd.gradcheck(luv_to_rgb, luv, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", [(16, 32, 32), (2, 2, 2), (4, 3, 5)])
def test_a_map_of_zero_changes_no_colour_at_all(grid):
    """Saturated ones included, which lie outside of the grid: the published map moves pure red by 0.35."""
    space = ColorSpace(cube(17), grid)
    assert torch.equal(recolor(space, space.rest()["color"]), cube(17))


def test_a_constant_map_moves_every_colour_by_the_same():
    given = images()
    space = ColorSpace(given)
    offset = torch.tensor([0.03, -0.02, 0.01])
    moved = rgb_to_luv(recolor(space, space.rest()["color"] + offset)) - rgb_to_luv(given)
    expected = (offset * torch.tensor(UNITS))[:, None, None].expand_as(moved)
    torch.testing.assert_close(moved, expected, rtol=0, atol=2e-3)


def test_channels_scale_the_offsets():
    given = images()
    whole, half = ColorSpace(given), ColorSpace(given, channels=(0.5, 1.0, 0.0))
    offset = torch.tensor([0.03, -0.02, 0.01])
    scaled = recolor(whole, whole.rest()["color"] + offset * torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(recolor(half, half.rest()["color"] + offset), scaled, rtol=0, atol=1e-6)


def dense(space: ColorSpace, offsets: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The offsets as whole grids [b, 3, *grid]; zero where no pixel looks."""
    nodes = grid[0] * grid[1] * grid[2]
    whole = torch.zeros(len(offsets), nodes + 1, 3)
    places = space.nodes.clamp(max=nodes)[..., None].expand(-1, -1, 3)
    return whole.scatter(1, places, offsets)[:, :-1].movedim(2, 1).reshape(-1, 3, *grid)


def test_the_look_up_is_trilinear():
    given, grid = images(0, 1), (5, 6, 7)
    space = ColorSpace(given, grid)
    offsets = torch.randn(space.rest()["color"].shape, generator=torch.Generator().manual_seed(1)) * 0.01
    offsets[space.nodes > 1000] = 0  # the shorter list is filled up with nodes that nobody uses
    luv = rgb_to_luv(given)
    unit = torch.stack([luv[:, 0] / 100, luv[:, 1] / 200 + 0.5, luv[:, 2] / 200 + 0.5], dim=-1)
    places = (unit.clamp(0, 1) * 2 - 1).flip(-1)[:, None]
    looked_up = F.grid_sample(dense(space, offsets, grid), places, align_corners=True)[:, :, 0]
    expected = luv_to_rgb(luv + looked_up * torch.tensor(UNITS)[:, None, None]).clamp(0, 1)
    torch.testing.assert_close(recolor(space, offsets), expected, rtol=0, atol=1e-4)


def test_the_gradient_is_that_of_the_dense_sum():
    given = images()
    space = ColorSpace(given, (4, 5, 6))
    offsets = (torch.randn(space.rest()["color"].shape) * 0.02).requires_grad_()
    rows = torch.tensor([1, 0])
    matrix = torch.eye(offsets.shape[1]).expand(2, -1, -1)
    columns = space.colors(matrix[rows], rows)  # what every node adds to every pixel
    assert torch.allclose(columns.sum(2), torch.ones(2, 36), atol=1e-5)
    upstream = torch.randn(2, 36, 3)
    fast = torch.autograd.grad((space.colors(offsets[rows], rows) * upstream).sum(), offsets)[0]
    torch.testing.assert_close(fast[rows], columns.transpose(1, 2) @ upstream, rtol=1e-4, atol=1e-5)


def test_what_was_one_colour_stays_one_colour():
    given = images(side=4).repeat(1, 1, 2, 3)
    space = ColorSpace(given)
    out = recolor(space, torch.randn(space.rest()["color"].shape) * 0.05)
    assert torch.equal(out[:, :, :4, :4].repeat(1, 1, 2, 3), out)
    assert not torch.equal(out, given)


def test_a_dark_colour_does_not_become_bright_by_hue():
    """L* = 1 with the largest hues of the usual bound is no light there is; what comes closest is dark."""
    black = torch.zeros(1, 3, 2, 2)
    space = ColorSpace(black)
    for u in (-0.06, 0.06):
        for v in (-0.06, 0.06):
            out = recolor(space, space.rest()["color"] + torch.tensor([0.01, u, v]))
            assert 0 < rgb_to_luv(out)[:, 0].max() < 5


def test_colours_pushed_out_of_range_keep_a_gradient():
    white = torch.ones(1, 3, 2, 2)
    space = ColorSpace(white)
    offsets = (space.rest()["color"] + torch.tensor([0.05, 0.0, 0.0])).requires_grad_()
    out = recolor(space, offsets)
    assert torch.equal(out, white)
    assert torch.autograd.grad(out.sum(), offsets)[0][..., 0].sum() > 0.1


def test_roughness_counts_neighbours_as_a_dense_grid_does():
    grid = (3, 4, 5)
    space = ColorSpace(cube(12), grid)
    k = space.nodes.shape[1]
    everywhere = ColorSpace(cube(12), (2, 2, 2))
    assert everywhere.nodes.shape[1] == 8
    offsets = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(0))
    expected = roughness(dense(everywhere, offsets, (2, 2, 2)))
    torch.testing.assert_close(everywhere.roughness({"color": offsets}, torch.arange(1))["color"], expected)
    # With a grid of which some nodes are not used: one used node, raised, is rough against its used neighbours alone.
    at = torch.unravel_index(space.nodes[0], grid)
    near = sum((axis[:, None] - axis[None, :]).abs() for axis in at) == 1
    raised = torch.zeros(1, k, 3)
    raised[0, k // 2, 1] = 2.0
    found = space.roughness({"color": raised}, torch.arange(1))["color"]
    torch.testing.assert_close(found, near[k // 2].sum()[None] * 4.0, rtol=1e-3, atol=1e-3)
    assert space.roughness(space.rest(), torch.arange(1))["color"] == 0


def test_roughness_has_the_gradient_of_the_dense_one():
    space = ColorSpace(cube(12), (2, 2, 2))
    offsets = torch.randn(1, 8, 3, requires_grad=True)
    fast = torch.autograd.grad(space.roughness({"color": offsets}, torch.arange(1))["color"].sum(), offsets)
    slow = torch.autograd.grad(roughness(dense(space, offsets, (2, 2, 2))).sum(), offsets)
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-4, atol=1e-5)


def test_random_maps_depend_on_the_example_alone():
    """However many nodes the others in the batch need."""
    given = torch.cat([images(0.5, 0.52)[:1], images(0, 1)[:1]])
    both, alone = ColorSpace(given), ColorSpace(given[:1])
    k = alone.nodes.shape[1]
    assert k < both.nodes.shape[1]
    together = both.scattered(0, torch.tensor([9, 4]), "a")["color"]
    assert torch.equal(together[:1, :k], alone.scattered(0, torch.tensor([9]), "a")["color"])
    assert -1 <= together.min() < -0.95
    assert 0.95 < together.max() <= 1


def test_it_is_a_space_whose_rows_may_be_few_or_repeated():
    space = ColorSpace(images(0, 1))
    assert isinstance(space, Space)
    offsets = torch.randn(space.rest()["color"].shape) * 0.03
    render, whole = space.freeze(space.rest(), ["color"]), recolor(space, offsets)
    for rows in (torch.tensor([1]), torch.tensor([1, 0, 1])):
        torch.testing.assert_close(render({"color": offsets[rows]}, rows), whole[rows], rtol=0, atol=1e-6)
        still = space.freeze({"color": offsets}, [])({}, rows)
        torch.testing.assert_close(still, whole[rows], rtol=0, atol=1e-6)


def test_images_without_three_channels_and_grids_without_cells_are_refused():
    with pytest.raises(ValueError, match=r"RGB images \[b, 3, h, w\], got \[2, 1, 4, 4\]"):
        ColorSpace(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"at least two nodes along every axis, got \(16, 1, 32\)"):
        ColorSpace(images(), (16, 1, 32))


@pytest.mark.parametrize(
    "moved", [[], ["color"], ["flow"], ["delta"], ["color", "delta"], ["color", "flow", "delta"]]
)
def test_combined_is_one_after_the_other_wherever_it_resumes(moved):
    given = images(0.1, 0.9)
    space, shape = CombinedSpace(given), (2, 3, 6, 6)
    assert isinstance(space, Space)
    assert list(space.sites) == ["color", "flow", "delta"]
    generator = torch.Generator().manual_seed(2)
    latents = {
        name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in space.rest().items()
    }
    recolored = recolor(ColorSpace(given), latents["color"])
    bent = FlowSpace(recolored)
    bent_images = bent.freeze(bent.rest(), ["flow"])({"flow": latents["flow"]}, EVERYONE)
    expected = (bent_images + latents["delta"].reshape(shape)).clamp(0, 1)
    rows = torch.tensor([1, 0, 1])
    leaves = {name: latents[name][rows].requires_grad_() for name in moved}
    out = space.freeze(latents, moved)(leaves, rows)
    torch.testing.assert_close(out, expected[rows], rtol=0, atol=1e-5)
    if moved:
        gradients = torch.autograd.grad(out.square().sum(), list(leaves.values()))
        assert all((g.flatten(1).abs().amax(1) > 0).all() for g in gradients)


def test_combined_at_rest_is_the_image_bit_by_bit():
    space = CombinedSpace(cube(5))
    assert torch.equal(
        space.freeze(space.rest(), ["color", "flow", "delta"])(space.rest(), torch.arange(1)), cube(5)
    )
