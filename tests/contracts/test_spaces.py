"""What every space promises, held against the full, unfrozen rendering. A new space is one line in `SPACES`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gat.latents import Latents, num_examples, split, take
from gat.protocols import GenerativeSpace, Space
from gat.spaces.pixels import PixelSpace
from generators import GENERATORS
from generators.spade.space import SPADESpace
from generators.stylegan2.checkpoints import Checkpoint, write_safetensors
from generators.stylegan2.settings import StyleGAN2SpaceConfig
from generators.stylegan2.space import StyleGAN2Space, group_of
from tests.toys import CLASSES, tiny_generator, tiny_layouts, tiny_space, tiny_spade_generator

N = 4
LABELS, IDS = torch.tensor([0, 1, 2, 1]), torch.tensor([5, 0, 77, 123456])
LAYOUTS = tiny_layouts(N)


def stylegan2(architecture: str) -> tuple[Space, Latents, Callable[[Latents], Tensor]]:
    space = tiny_space(architecture)
    synthesis = space.generator.synthesis

    def render(latents: Latents) -> Tensor:
        """All layers, with kernels computed on the spot: nothing is frozen or resumed."""
        styles = {name: value for name, value in latents.items() if name.startswith("style/")}
        noise = {name: value for name, value in latents.items() if name.startswith("noise/")}
        return (synthesis.render(styles, noise) * 0.5 + 0.5).clamp(0, 1)

    return space, space.sample(LABELS, IDS, seed=3), render


def spade(**options: Any) -> tuple[Space, Latents, Callable[[Latents], Tensor]]:
    space = SPADESpace(tiny_spade_generator(use_vae=True, z_dim=8), CLASSES, **options)
    generator = space.generator
    plain = SPADESpace(generator, CLASSES).sample(LAYOUTS, IDS, seed=3)

    def render(latents: Latents) -> Tensor:
        """All blocks, with offsets on a coarse grid added to the maps of the layout: nothing is frozen or resumed."""
        maps = dict(plain)
        for name in space.sites:
            value = latents[name]
            if space.coarse_grid is not None:
                size = plain[name].shape[-2:]
                value = plain[name] + torch.nn.functional.interpolate(value, size, mode="bilinear")
            maps[name] = value
        return generator.render(latents["seed/fc"], maps) * 0.5 + 0.5

    return space, space.sample(LAYOUTS, IDS, seed=3), render


def pixels() -> tuple[Space, Latents, Callable[[Latents], Tensor]]:
    images = torch.rand(N, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    return PixelSpace((3, 5, 6)), {"pixels": images}, lambda latents: latents["pixels"]


SPACES = {
    "pixels": pixels,
    "stylegan2-skip": lambda: stylegan2("skip"),
    "stylegan2-resnet": lambda: stylegan2("resnet"),
    "stylegan2-orig": lambda: stylegan2("orig"),
    "spade": spade,
    "spade-coarse": lambda: spade(coarse_grid=8),
}
GENERATIVE = [name for name in SPACES if name != "pixels"]
EVERYONE = torch.arange(N)


@pytest.fixture(params=SPACES)
def case(request: pytest.FixtureRequest) -> tuple[Space, Latents, Callable[[Latents], Tensor]]:
    return SPACES[request.param]()


@pytest.fixture(params=GENERATIVE)
def space(request: pytest.FixtureRequest) -> GenerativeSpace:
    found = SPACES[request.param]()[0]
    assert isinstance(found, GenerativeSpace)
    return found


def test_every_registered_generator_is_held_to_the_contract():
    assert set(GENERATORS) == {name.split("-")[0] for name in GENERATIVE}


def test_sites_have_the_names_and_shapes_of_the_latents(case):
    space, latents, _ = case
    assert isinstance(space, Space)
    # What cannot be moved (a layout) is no site; what can is there in the order of the image.
    assert [name for name in latents if name in space.sites] == list(space.sites)
    for name, site in space.sites.items():
        assert latents[name].shape == (N, *site.shape)
        assert site.scale > 0
        assert site.bytes_per_example == 4 * latents[name][0].numel()
        assert site.group in ("", "coarse", "middle", "fine")


def test_rendering_resumed_from_any_single_site_equals_the_full_one(case):
    space, latents, render = case
    start = render(latents)
    for site in space.sites:
        shift = torch.randn(latents[site].shape, generator=torch.Generator().manual_seed(1)) * 0.3
        moved = {site: latents[site] + shift if site != "pixels" else (latents[site] + shift).clamp(0, 1)}
        images = space.freeze(latents, [site])(moved, EVERYONE)
        torch.testing.assert_close(images, render(latents | moved), rtol=0, atol=1e-6)
        assert (images - start).abs().flatten(1).amax(1).min() > 0, f"{site} shows in no image"


def test_all_sites_together_and_none_at_all_give_the_same_images(case):
    space, latents, render = case
    every = list(space.sites)
    torch.testing.assert_close(
        space.freeze(latents, every)(latents, EVERYONE), render(latents), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(space.freeze(latents, [])({}, EVERYONE), render(latents), rtol=0, atol=1e-6)


def test_every_site_has_a_gradient_for_every_example(case):
    space, latents, _ = case
    for site in space.sites:
        moved, _ = split(latents, [site])
        leaf = moved[site].clone().requires_grad_()
        images = space.freeze(latents, [site])({site: leaf}, EVERYONE)
        gradient = torch.autograd.grad(images.square().sum(), leaf)[0]
        assert (gradient.flatten(1).abs().amax(1) > 0).all(), f"{site} has no gradient"


@pytest.mark.parametrize("rows", [[2, 0, 3, 1], [1, 1, 1], [3], [0, 2, 0, 2, 1, 3, 3]])
def test_rows_may_be_few_permuted_or_repeated(case, rows):
    space, latents, render = case
    rows = torch.tensor(rows)
    for first in (list(space.sites)[:1], list(space.sites)[-1:]):
        renderer = space.freeze(latents, first)
        moved, _ = split(latents, first)
        renderer(take(moved, EVERYONE), EVERYONE)  # a renderer may remember rows, but not too long
        images = renderer(take(moved, rows), rows)
        torch.testing.assert_close(
            images, render(latents)[rows], rtol=0, atol=5e-6
        )  # of a batch of another width


def test_images_lie_in_0_to_1_whatever_the_latents(case):
    space, latents, _ = case
    wild = {
        name: value * 30 if name in space.sites and name != "pixels" else value
        for name, value in latents.items()
    }
    images = space.freeze(wild, list(space.sites))(wild, EVERYONE)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1


def test_freezing_leaves_the_latents_and_the_random_state_alone(case):
    space, latents, _ = case
    before, rng = {name: value.clone() for name, value in latents.items()}, torch.get_rng_state()
    space.freeze(latents, list(space.sites)[1:] or ["pixels"])(latents, EVERYONE)
    assert all(torch.equal(latents[name], before[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(value.requires_grad for value in latents.values())


def conditions_of(space: GenerativeSpace) -> Tensor:
    return {"labels": LABELS, "layouts": LAYOUTS}[space.conditions]


def test_a_sample_depends_on_seed_id_and_condition_alone(space):
    rng, conditions = torch.get_rng_state(), conditions_of(space)
    together = space.sample(conditions, IDS, seed=3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert num_examples(together) == N
    for i in range(N):
        alone = space.sample(conditions[i : i + 1], IDS[i : i + 1], seed=3)
        for name in together:
            torch.testing.assert_close(alone[name][0], together[name][i], rtol=1e-5, atol=1e-6)
    order = torch.tensor([3, 1, 0, 2])
    for name, value in space.sample(conditions[order], IDS[order], seed=3).items():
        torch.testing.assert_close(value, together[name][order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", ["seed", "id", "condition"])
def test_a_sample_changes_with_each_of_them(space, change):
    conditions = conditions_of(space)
    base = space.sample(conditions, IDS, seed=3)
    if change == "condition":
        conditions = (LABELS + 1) % 3 if space.conditions == "labels" else 2 - conditions.clamp(max=2)
    other = space.sample(conditions, IDS + (change == "id"), seed=3 + (change == "seed"))
    images, changed = (space.freeze(latents, [])({}, EVERYONE) for latents in (base, other))
    assert ((images - changed).abs().flatten(1).amax(1) > 1e-3).all()


@pytest.mark.parametrize("bad", [3, -1, 99])
def test_a_label_the_generator_does_not_know_is_refused(space, bad):
    conditions = conditions_of(space).clone()
    conditions.view(-1)[1] = bad
    with pytest.raises(ValueError, match=rf"0\.\.2.*, got .*{bad}"):
        space.sample(conditions, IDS, seed=0)


def test_noise_starts_standard_normal_and_styles_have_their_scale():
    space, n = tiny_space(), 600
    latents = space.sample(torch.arange(n) % 3, torch.arange(n), seed=9)
    for name, site in space.sites.items():
        if name.startswith("noise/"):
            assert site.scale == 1
            assert latents[name].std() == pytest.approx(1, abs=0.1)
        else:
            within = torch.stack([latents[name][torch.arange(n) % 3 == k].var(0) for k in range(3)])
            assert float(within.mean().sqrt()) == pytest.approx(site.scale, rel=0.1)


def test_groups_go_by_resolution():
    assert [group_of(r, 32) for r in (4, 8, 16, 32)] == ["coarse", "coarse", "middle", "fine"]
    assert [group_of(r, 256) for r in (4, 16, 32, 64, 256)] == ["coarse", "middle", "middle", "fine", "fine"]
    assert [group_of(r, 16) for r in (4, 8, 16)] == ["coarse", "coarse", "fine"]
    for name, site in tiny_space().sites.items():
        assert site.group == group_of(int(name.split("/")[1]), 16)


def test_constant_noise_is_that_of_the_checkpoint():
    space = tiny_space(noise="const")
    latents = space.sample(LABELS, IDS, seed=0)
    stored = space.generator.synthesis.b8.conv0.noise_const
    assert all(torch.equal(latents["noise/8/conv0"][i, 0], stored) for i in range(N))


def test_full_truncation_leaves_nothing_of_the_latent():
    latents = tiny_space(psi=0.0).sample(torch.tensor([1, 1]), torch.tensor([1, 2]), seed=0)
    style = latents["style/8/conv0"]
    torch.testing.assert_close(style[0], style[1])


def test_half_precision_draws_nearly_the_same_images():
    full, half = tiny_space(), tiny_space(dtype=torch.bfloat16)
    latents = full.sample(LABELS, IDS, seed=3)
    for moved in (["style/4/conv1"], ["noise/16/conv1"]):
        start, _ = split(latents, moved)
        exact, rough = (s.freeze(latents, moved)(start, EVERYONE) for s in (full, half))
        assert rough.dtype == torch.float32
        assert 0 < (exact - rough).abs().mean() < 0.02


def test_an_unconditional_generator_is_a_space_of_one_class():
    space = StyleGAN2Space(tiny_generator(c_dim=0), ["face"])
    latents = space.sample(torch.zeros(2, dtype=torch.long), torch.arange(2), seed=0)
    assert space.freeze(latents, [])({}, torch.arange(2)).shape == (2, 3, 16, 16)


def test_class_names_that_do_not_fit_the_generator_are_refused():
    with pytest.raises(ValueError, match=r"knows 3 classes, but 2 names were given: cat, dog"):
        StyleGAN2Space(tiny_generator(), ["cat", "dog"])
    with pytest.raises(ValueError, match="noise must be 'random' or 'const', got 'none'"):
        StyleGAN2Space(tiny_generator(), CLASSES, noise="none")


def test_a_checkpoint_of_other_classes_than_the_data_is_refused(tmp_path):
    generator = tiny_generator()
    path = tmp_path / "shapes.safetensors"
    metadata = {"classes": '["circle", "square", "triangle"]'}
    write_safetensors(path, Checkpoint(generator.config, dict(generator.state_dict()), None, metadata))
    settings = StyleGAN2SpaceConfig(checkpoint=path)
    built = settings.build(CLASSES)
    expected, got = (s.sample(LABELS, IDS, 0)["style/16/conv1"] for s in (tiny_space(), built))
    assert torch.equal(got, expected)
    for wrong in (("circle", "square", "star"), ("square", "circle", "triangle"), ("circle", "square")):
        with pytest.raises(
            ValueError, match=f"draws circle, square, triangle, but the data has {', '.join(wrong)}"
        ):
            settings.build(wrong)


def test_a_missing_checkpoint_is_named_with_what_ships(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors; shipped ones: "):
        StyleGAN2SpaceConfig(checkpoint=tmp_path / "nowhere.safetensors").build(CLASSES)
