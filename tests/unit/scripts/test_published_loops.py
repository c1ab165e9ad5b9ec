"""The published loops that the benchmark races against do attack."""

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from gat.perceptual import perceptual_distance


def test_bending_keeps_to_its_bound_and_fools(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    still = script.stadv(model, images, labels, bound=0.0, steps=2)
    # Zero flow samples every pixel where it is, but for the rounding of coordinates.
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)
    bent = script.stadv(model, images, labels, bound=0.2, steps=30, weight=0.0)
    assert model(images).argmax(1).sum() == 0 and model(bent).argmax(1).sum() >= 4
    stiff = script.stadv(model, images, labels, bound=0.2, steps=30, weight=100.0)
    assert (stiff - images).abs().mean() < 0.5 * (bent - images).abs().mean()


def test_colours_survive_the_way_to_luv_and_back(script: ModuleType) -> None:
    rgb = torch.rand(200, 3)
    luv = script.to_luv(rgb)
    torch.testing.assert_close(script.to_rgb(luv), rgb, atol=2e-3, rtol=0)
    grey = script.to_luv(torch.linspace(0, 1, 5)[:, None].expand(-1, 3))
    torch.testing.assert_close(grey[:, 1:], torch.full([5, 2], 0.5), atol=2e-3, rtol=0)
    torch.testing.assert_close(grey[[0, 4], 0], torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)


def test_looking_up_a_linear_map_gives_that_map(script: ModuleType) -> None:
    axes = [torch.linspace(0, 1, n) for n in script.COLOR_STEPS]
    nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[None]
    places = torch.rand(1, 50, 3)
    mix = torch.tensor([[0.2, 0.5, 0.1], [0.3, 0.1, 0.4], [0.1, 0.2, 0.6]])
    torch.testing.assert_close(script.look_up(nodes @ mix, places), places @ mix, atol=1e-5, rtol=0)


def test_recolouring_is_one_map_for_all_pixels_and_fools(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    images = images.clone()
    images[..., 0, 0], images[..., 15, 15] = 0.5, 0.5  # one colour, far apart
    moved = script.recoloradv(model, images, labels, bound=0.06, steps=12, lr=0.01, weight=0.0)
    torch.testing.assert_close(moved[..., 0, 0], moved[..., 15, 15])
    assert (moved - images).abs().amax() < 0.2
    assert script.wrong_lead(model(moved), labels).mean() > script.wrong_lead(model(images), labels).mean()


def test_what_is_outside_is_brought_inside_and_by_halving_to_the_boundary(
    script: ModuleType, model: nn.Module, images: Tensor
) -> None:
    far = images.flip(3)
    before = perceptual_distance(model, images, far)
    bound = float(before.min()) / 2
    features = script.Features(model, images)
    with torch.no_grad():
        home = features(images)[0]
    halved = perceptual_distance(model, images, script.bisect(features, images, far, home, bound))
    stepped = perceptual_distance(model, images, script.newton(features, images, far, bound))
    features.close()
    assert ((halved > 0.99 * bound) & (halved < 1.01 * bound)).all()
    assert (stepped < 1.01 * bound).all()


@pytest.mark.parametrize("which", ["lagrange", "perceptual_pgd"])
def test_perceptual_loops_end_within_a_thousandth_of_the_bound_and_fool(
    script: ModuleType, which: str, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    bound = 0.3
    if which == "lagrange":
        moved = script.lagrange(model, images, labels, bound=bound, steps=5, rounds=3)
    else:
        moved = script.perceptual_pgd(model, images, labels, bound=bound, steps=3, cg_steps=2)
    reached = perceptual_distance(model, images, moved)
    assert (reached <= bound * 1.002).all() and (reached > 0.01).all()
    assert script.wrong_lead(model(moved), labels).mean() > script.wrong_lead(model(images), labels).mean()
