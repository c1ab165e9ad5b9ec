"""Corruptions against Pillow, SciPy, direct convolution and closed forms, and what every space promises."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gat.latents import Latents, seeded_uniform, take
from gat.protocols import Renderer, Space
from gat.spaces.corruptions import ElasticSpace, FogSpace, GaborSpace, JPEGSpace, SnowSpace
from gat.spaces.corruptions.fog import GREY, plasma
from gat.spaces.corruptions.gabor import waves
from gat.spaces.corruptions.jpeg import BlockTransform, quantisation
from gat.spaces.corruptions.snow import streaks
from gat.spaces.corruptions.sparse import SparseConvolution, scattered

N = 4
IDS = torch.tensor([5, 0, 77, 123456])
EVERYONE = torch.arange(N)
Corruption = ElasticSpace | FogSpace | GaborSpace | JPEGSpace | SnowSpace
Build = Callable[[Tensor, Tensor], Corruption]
SPACES: dict[str, Build] = {
    "jpeg": lambda images, ids: JPEGSpace(images),
    "jpeg-50": lambda images, ids: JPEGSpace(images, quality=50),
    "elastic": lambda images, ids: ElasticSpace(images, nodes=5),
    "fog": lambda images, ids: FogSpace(images),
    "snow": lambda images, ids: SnowSpace(images, ids, flake_px=5, spacing_px=5, full_at=5),
    "gabor": lambda images, ids: GaborSpace(images, ids, window_px=9),
}
SIZES = {
    "elastic": 0.1,
    "jpeg": 0.05,
    "jpeg-50": 1.0,
    "fog": 0.3,
    "snow": 0.8,
    "gabor": 0.05,
}  # of what shows well


def pictures(height: int = 20, width: int = 28, channels: int = 3) -> Tensor:
    """Smooth, with pure black and pure white in them."""
    coarse = torch.rand(N, channels, 4, 4, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.3
    return F.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 1)


def shifted(space: Corruption, size: float) -> Latents:
    """Positive latents of about this size, other ones for every example."""
    return {
        name: (seeded_uniform(1, IDS, site.shape, name) + 0.5) * size for name, site in space.sites.items()
    }


def frozen(space: Corruption) -> Renderer:
    return space.freeze(space.rest(), list(space.sites))


@pytest.fixture(params=SPACES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (1, 1), (20, 28), (45, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_rest_is_the_image_bit_by_bit(name, size, channels):
    images = pictures(*size, channels)
    space = SPACES[name](images, IDS)
    assert isinstance(space, Space)
    assert torch.equal(frozen(space)(space.rest(), EVERYONE), images)
    assert torch.equal(space.freeze(space.rest(), [])({}, EVERYONE), images)


def test_sites_have_the_shapes_of_the_latents(name):
    space = SPACES[name](pictures(), IDS)
    assert {key: site.shape for key, site in space.sites.items()} == {
        key: tuple(value.shape[1:]) for key, value in space.rest().items()
    }


def test_images_move_but_stay_in_0_to_1(name):
    images = pictures()
    space = SPACES[name](images, IDS)
    for factor in (1, 100):
        moved = frozen(space)(shifted(space, factor * SIZES[name]), EVERYONE)
        assert moved.dtype == torch.float32
        assert moved.shape == images.shape
        assert 0 <= moved.min() <= moved.max() <= 1
        assert ((moved - images).abs().flatten(1).amax(1) > 0.02).all()


@pytest.mark.parametrize("rows", [[2, 0, 3, 1], [1, 1, 1], [3], [0, 2, 0, 2, 1]])
def test_rows_may_be_few_permuted_or_repeated(name, rows):
    space = SPACES[name](pictures(), IDS)
    latents, rows = shifted(space, SIZES[name]), torch.tensor(rows)
    render = frozen(space)
    every = render(latents, EVERYONE)
    torch.testing.assert_close(render(take(latents, rows), rows), every[rows], rtol=0, atol=1e-5)
    still = space.freeze(latents, [])
    torch.testing.assert_close(still({}, rows), every[rows], rtol=0, atol=1e-5)


def test_an_example_depends_on_its_id_alone(name):
    images = pictures()
    space = SPACES[name](images, IDS)
    latents = shifted(space, SIZES[name])
    every, rng = frozen(space)(latents, EVERYONE), torch.get_rng_state()
    for i in range(N):
        alone = SPACES[name](images[i : i + 1], IDS[i : i + 1])
        one = frozen(alone)({key: value[i : i + 1] for key, value in latents.items()}, torch.tensor([0]))
        torch.testing.assert_close(one[0], every[i], rtol=0, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("build", [SnowSpace, GaborSpace])
def test_what_is_drawn_differs_between_ids_and_between_seeds(build):
    images = torch.full((2, 3, 32, 32), 0.5)
    render = frozen(build(images, torch.tensor([1, 2])))
    other = frozen(build(images, torch.tensor([1, 2]), seed=1))
    latents = {name: value + 0.5 for name, value in build(images, torch.tensor([1, 2])).rest().items()}
    first, second = render(latents, torch.arange(2))
    assert (first - second).abs().max() > 0.1
    assert (other(latents, torch.arange(2))[0] - first).abs().max() > 0.1


def test_every_site_has_a_gradient_for_every_example_and_only_for_it(name):
    space = SPACES[name](pictures(), IDS)
    leaves = {key: value.requires_grad_() for key, value in shifted(space, SIZES[name]).items()}
    images = frozen(space)(leaves, EVERYONE)
    for i in range(N):
        gradients = torch.autograd.grad(images[i].square().sum(), list(leaves.values()), retain_graph=True)
        for gradient in gradients:
            reached = gradient.flatten(1).abs().amax(1) > 0
            assert reached.tolist() == [j == i for j in range(N)]


@pytest.mark.parametrize("name", ["jpeg", "elastic", "fog", "snow", "gabor"])
def test_the_gradient_is_the_slope(name):
    images = pictures(12, 12).double().float() * 0.4 + 0.3
    space = SPACES[name](images, IDS)
    render = frozen(space)
    latents = shifted(space, SIZES[name] * 0.3)
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(2)) - 0.5

    def value(moved: Latents) -> Tensor:
        return (render(moved, EVERYONE) * weights).double().sum()

    leaves = {key: x.clone().requires_grad_() for key, x in latents.items()}
    gradients = torch.autograd.grad(value(leaves), list(leaves.values()))
    way = {key: g / (g.norm() + 1e-12) for key, g in zip(latents, gradients, strict=True)}
    step = 2e-3 * SIZES[name]
    ahead = value({key: x + step * way[key] for key, x in latents.items()})
    behind = value({key: x - step * way[key] for key, x in latents.items()})
    expected = sum(float(g.norm()) for g in gradients)
    assert float(ahead - behind) / (2 * step) == pytest.approx(expected, rel=0.05)


# JPEG


def photograph(side: int = 96) -> np.ndarray:
    import skimage.data

    return np.ascontiguousarray(skimage.data.astronaut()[40 : 40 + side, 150 : 150 + side])


def as_images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def test_coefficients_are_those_of_scipy():
    from scipy.fft import dctn

    images = pictures(16, 24, channels=1)
    found = BlockTransform((1, 16, 24)).analyse(images)
    for i in range(0, 16, 8):
        for j in range(0, 24, 8):
            expected = dctn(images[2, 0, i : i + 8, j : j + 8].double().numpy(), norm="ortho")
            np.testing.assert_allclose(found[2, 0, i : i + 8, j : j + 8].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (13, 30)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_transform_goes_there_and_back(size, channels):
    images = pictures(*size, channels)
    transform = BlockTransform((channels, *size))
    torch.testing.assert_close(transform.synthesise(transform.analyse(images)), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quality", [1, 20, 49, 50, 75, 95, 100])
def test_tables_are_those_of_libjpeg(quality):
    file = io.BytesIO()
    Image.fromarray(photograph(16)).save(file, "JPEG", quality=quality)
    theirs = Image.open(file).quantization
    ours = (quantisation(quality, 3) * 255).round().int()
    assert ours[0].flatten().tolist() == theirs[0]
    assert ours[1].flatten().tolist() == theirs[1]


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_compression_is_that_of_pillow(quality):
    pixels = photograph()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    theirs = as_images(np.array(Image.open(file)))
    space = JPEGSpace(as_images(pixels), quality)
    touched = {"jpeg": space.rest()["jpeg"] + 1e-6}
    ours = frozen(space)(touched, torch.tensor([0]))
    error = (
        ours - theirs
    ).abs() * 255  # libjpeg rounds colours before the transform, and the result to whole levels
    loss = (theirs - as_images(pixels)).abs().mean() * 255
    assert error.mean() < 1.2
    assert error.mean() < 0.6 * loss
    assert (error > 8).float().mean() < 0.03


def test_at_quality_100_compression_changes_little():
    images = as_images(photograph())
    space = JPEGSpace(images, 100)
    change = (frozen(space)({"jpeg": space.rest()["jpeg"] + 1e-6}, torch.tensor([0])) - images).abs()
    assert 0 < change.mean() < 1 / 255
    assert change.max() < 4 / 255


def test_one_coefficient_is_one_wave_in_one_block_of_one_channel():
    space = JPEGSpace(torch.full((1, 3, 16, 16), 0.5))
    moved = space.rest()
    moved["jpeg"][0, 0, 8, 3] = 0.4  # block (1, 0), frequency (0, 3), luminance
    change = frozen(space)(moved, torch.tensor([0]))[0] - 0.5
    wave = 0.4 * torch.cos(torch.pi / 8 * (torch.arange(8) + 0.5) * 3) / 2 / 8**0.5
    torch.testing.assert_close(change[:, 8:, :8], wave.expand(3, 8, 8), rtol=0, atol=1e-6)
    assert change[:, :8].abs().max() == change[:, :, 8:].abs().max() == 0


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_that_is_none_is_refused(quality):
    with pytest.raises(ValueError, match=rf"1\.\.100, got {quality}"):
        JPEGSpace(pictures(), quality)


# Elastic


def test_a_constant_flow_shifts_the_image():
    images = pictures(16, 16)
    space = ElasticSpace(images, nodes=4)
    flow = space.rest()["elastic"]
    flow[:, 0] = 2 * 2 / 16  # two pixels
    moved = frozen(space)({"elastic": flow}, EVERYONE)
    torch.testing.assert_close(moved[..., :-2], images[..., 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[..., -2:], images[..., -1:].expand(-1, -1, -1, 2), rtol=0, atol=1e-5)


def test_any_flow_agrees_with_interpolate_and_grid_sample():
    images = pictures(20, 28)
    space = ElasticSpace(images, nodes=5)
    flow = (seeded_uniform(0, IDS, (2, 5, 5)) - 0.5) * 0.6
    fine = F.interpolate(flow, (20, 28), mode="bicubic")
    grid = F.affine_grid(torch.eye(2, 3).expand(N, 2, 3), images.shape, align_corners=False)
    theirs = F.grid_sample(
        images, grid + fine.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(frozen(space)({"elastic": flow}, EVERYONE), theirs, rtol=0, atol=1e-5)


# Fog


def diamond_square(displacements: list[np.ndarray], decay: float) -> np.ndarray:
    """The textbook, point by point."""
    side = 2 ** len(displacements)
    height = np.zeros((side, side))
    for level, shift in enumerate(displacements):
        n, step = 2**level, side // 2**level
        half, weight = step // 2, decay**-level

        def at(y: int, x: int) -> float:
            return height[y % side, x % side]

        for i in range(n):
            for j in range(n):
                y, x = i * step, j * step
                corners = at(y, x) + at(y, x + step) + at(y + step, x) + at(y + step, x + step)
                height[y + half, x + half] = corners / 4 + weight * shift[0, i, j]
        for i in range(n):
            for j in range(n):
                for kind, (y, x) in ((1, (i * step, j * step + half)), (2, (i * step + half, j * step))):
                    around = at(y - half, x) + at(y + half, x) + at(y, x - half) + at(y, x + half)
                    height[y, x] = around / 4 + weight * shift[kind, i, j]
    return height


def test_plasma_is_that_of_the_textbook():
    displacements = [seeded_uniform(0, IDS, (3, 2**k, 2**k), str(k)) - 0.5 for k in range(4)]
    ours = plasma(displacements, 2.0)
    for i in range(N):
        theirs = diamond_square([shift[i].double().numpy() for shift in displacements], 2.0)
        np.testing.assert_allclose(ours[i].numpy(), theirs, atol=1e-6)


def test_thick_fog_is_grey_all_over():
    space = FogSpace(pictures())
    thick = {name: value + 20 for name, value in space.rest().items()}
    image = frozen(space)(thick, EVERYONE)
    expected = torch.tensor(GREY)[:, None, None].expand(N, 3, 20, 28)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


def test_where_there_is_no_fog_yet_there_is_a_gradient():
    space = FogSpace(pictures())
    leaf = space.rest()["fog/2"].requires_grad_()
    image = frozen(space)(space.rest() | {"fog/2": leaf}, EVERYONE)
    gradient = torch.autograd.grad(image.square().sum(), leaf)[0]
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


# Snow and Gabor noise


@pytest.mark.parametrize("size", [(12, 12), (20, 31), (5, 9)])
@pytest.mark.parametrize("side", [3, 9])
def test_sparse_convolution_is_the_direct_one(size, side):
    kernels = seeded_uniform(0, IDS, (2, side, side)) - 0.5
    points = scattered(0, IDS, 2, size, 7, "places")
    weights = seeded_uniform(1, IDS, (2, 7)) - 0.5
    ours = SparseConvolution(kernels, points, size)(weights, EVERYONE)
    grid = torch.zeros(N, 2, size[0] * size[1]).scatter(2, points, weights).unflatten(2, size)
    flipped = kernels.flip(2, 3).reshape(N * 2, 1, side, side)
    theirs = F.conv2d(grid.reshape(1, N * 2, *size), flipped, padding=side // 2, groups=N * 2)
    torch.testing.assert_close(ours, theirs.reshape(N, 2, *size), rtol=0, atol=1e-5)
    merged = SparseConvolution(kernels, points, size, merged=True)(weights, EVERYONE)
    torch.testing.assert_close(merged, ours.sum(1, keepdim=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 59, 60])
def test_no_two_points_of_a_layer_coincide_and_they_lie_all_over(count):
    ids = torch.arange(300)
    points = scattered(3, ids, 2, (6, 10), count, "places")
    assert points.shape == (300, 2, count)
    assert 0 <= points.min() <= points.max() < 60
    assert (points.sort(dim=2).values.diff(dim=2) > 0).all()
    assert len(points.unique()) == 60


def test_a_flake_is_a_short_line_as_steep_as_its_wind():
    flakes = streaks(0, torch.arange(50), 5, 15.0)
    assert flakes.shape == (50, 5, 15, 15)
    assert (flakes.flatten(2).amax(2) == 1).all()  # white at the peak
    y, x = torch.meshgrid(torch.arange(15.0) - 7, torch.arange(15.0) - 7, indexing="ij")
    mass = flakes.flatten(2).sum(2)
    assert mass.max() < 15 * 5
    moments = [(flakes * m).flatten(2).sum(2) / mass for m in (x * x, x * y, y * y)]
    angle = 0.5 * torch.atan2(2 * moments[1], moments[2] - moments[0]) * 180 / torch.pi  # from the vertical
    assert angle.abs().max() < 75
    assert angle.std(dim=1).max() < 12  # the layers of one example blow the same way
    assert angle.mean(dim=1).std() > 20  # different examples do not


def test_snow_whitens_and_its_scene_pales_with_it():
    images = torch.full((1, 3, 32, 32), 0.4)
    space = SnowSpace(images, torch.tensor([0]), flake_px=3, spacing_px=10, pale=0.2, full_at=4.0)
    one = space.rest()["snow"]
    one[0, 0, 0] = 1
    render = frozen(space)
    image = render({"snow": one}, torch.tensor([0]))
    # Norm 1 of 4: a quarter of 0.2 of the way to 1.5 * 0.4 + 0.5 everywhere, and one white flake.
    assert image.min().item() == pytest.approx(0.4 + 0.05 * 0.7, abs=1e-5)
    assert image.max().item() == 1
    assert ((image[0, 0] > 0.45).sum()) <= 9
    torch.testing.assert_close(render({"snow": -one}, torch.tensor([0])), image)


def test_every_example_has_its_own_places_and_its_own_waves():
    ids = torch.arange(12)
    images = torch.full((12, 3, 48, 48), 0.3)
    snow = SnowSpace(images, ids, flake_px=3, spacing_px=6, pale=0)
    one = snow.rest()["snow"]
    one[:, 0, 20] = 1
    flakes = frozen(snow)({"snow": one}, ids)[:, 0].flatten(1).argmax(1)
    assert len(flakes.unique()) > 6
    gabor = GaborSpace(images, ids, directions=1)
    noise = frozen(gabor)({"gabor": gabor.rest()["gabor"] + 0.02}, ids)[:, 0] - 0.3
    peak = torch.fft.rfft2(noise - noise.mean((1, 2), keepdim=True)).abs().flatten(1).argmax(1)
    fy, fx = torch.fft.fftfreq(48)[peak // 25], torch.fft.rfftfreq(48)[peak % 25]
    assert torch.atan2(fy, fx).std() > 0.3


def test_gabor_kernels_are_waves_of_one_energy_whatever_the_size():
    for window, directions in ((23.0, 3), (23.0, 5), (11.0, 3), (46.0, 1)):
        kernels = waves(0, torch.arange(40), window, directions)
        energy = 23**2 / 2 * (1 + (directions - 1) / directions**2)
        torch.testing.assert_close(
            kernels.square().sum((1, 2, 3)), torch.full([40], energy), rtol=1e-4, atol=0
        )
    spectra = torch.fft.fft2(waves(0, torch.arange(40), 23.0, 1), s=(64, 64)).abs()[:, 0]
    peak = spectra.flatten(1).argmax(1)
    fy, fx = (torch.fft.fftfreq(64)[index] for index in (peak // 64, peak % 64))
    cycles = torch.hypot(fy, fx) * 23
    assert cycles.min() > 3 - 0.4
    assert cycles.max() < 5.75 + 0.4
    assert torch.atan2(fy, fx).std() > 0.5
