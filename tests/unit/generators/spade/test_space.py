"""SPADE as a space, beyond what tests/contracts holds of every space."""

import pytest
import torch
from torch import nn

from gat.attacks import LatentAttack
from gat.attacks.run import Compute
from gat.latents import split
from generators.spade.networks import SPADENorm, encode_layouts
from generators.spade.space import SPADESpace, example_layouts, group_of, measure_scales
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, tiny_layouts, tiny_spade_generator

EVERYONE = torch.arange(4)


def rendered(space, latents, moved=()):
    home, _ = split(latents, moved)
    return space.freeze(latents, list(moved))(home, torch.arange(len(latents["seed/fc"])))


@pytest.mark.parametrize("coarse_grid", [None, 4])
@pytest.mark.parametrize("use_vae", [False, True])
def test_what_is_sampled_renders_what_the_generator_draws(layouts, coarse_grid, use_vae):
    generator = tiny_spade_generator(use_vae=use_vae, z_dim=8)
    space = SPADESpace(generator, CLASSES, coarse_grid=coarse_grid)
    latents = space.sample(layouts, EVERYONE, seed=0)
    semantics = encode_layouts(layouts, generator.config)
    full = generator.render(latents["seed/fc"], generator.modulation(semantics))
    torch.testing.assert_close(rendered(space, latents), full * 0.5 + 0.5, rtol=0, atol=1e-6)
    if not use_vae:
        torch.testing.assert_close(full, generator(semantics))


def test_resuming_from_the_first_moved_block_runs_only_what_follows(space, layouts):
    latents = space.sample(layouts, EVERYONE, seed=0)
    renderer = space.freeze(latents, ["beta/up_2/norm_1", "gamma/up_1/norm_s"])
    ran = []
    hooks = [
        space.generator.get_submodule(stage.name).conv_0.register_forward_hook(
            lambda *_, name=stage.name: ran.append(name)
        )
        for stage in space.generator.stages
    ]
    moved, _ = split(latents, ["gamma/up_1/norm_s", "beta/up_2/norm_1"])
    renderer(moved, EVERYONE)
    for hook in hooks:
        hook.remove()
    assert ran == ["up_1", "up_2", "up_3"]


@pytest.mark.parametrize("coarse_grid", [None, 4])
def test_the_label_branch_runs_once_for_an_attack_of_many_steps(layouts, coarse_grid):
    space = SPADESpace(tiny_spade_generator(), CLASSES, coarse_grid=coarse_grid)
    asked = []
    norm = space.generator.up_3.norm_0
    assert isinstance(norm, SPADENorm)
    hook = norm.mlp_shared.register_forward_hook(lambda *_: asked.append(1))
    latents = space.sample(layouts, EVERYONE, seed=0)
    task = ClassificationTask(CLASSES)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    labels = model(rendered(space, latents)).argmax(1)
    asked.clear()
    latents = space.sample(layouts, EVERYONE, seed=0)
    attack = LatentAttack(
        sites=("*/up_3/*", "*/up_1/norm_0"), step_size={"*": 0.1}, max_steps=5, stop_when_fooled=False
    )
    outcome = attack.run(task, model, space, latents, labels, compute=Compute(width=2))
    hook.remove()
    assert len(asked) == 1
    assert (outcome.backwards == 5).all()
    assert (outcome.distances["linf_pixels"] > 1e-3).all()


@pytest.mark.parametrize("site", ["gamma/G_middle_0/norm_1", "beta/up_0/norm_s"])
def test_gradients_are_those_of_finite_differences(layouts, site):
    space = SPADESpace(tiny_spade_generator(), CLASSES)
    latents = {name: value.double() for name, value in space.sample(layouts, EVERYONE, seed=0).items()}
    generator = space.generator.double()
    source = torch.Generator().manual_seed(2)
    direction = torch.randn(latents[site].shape, generator=source, dtype=torch.double)
    cotangent = torch.randn(4, 3, 32, 32, generator=source, dtype=torch.double)

    def loss(value):
        return (generator.render(latents["seed/fc"], latents | {site: value}) * cotangent).sum((1, 2, 3))

    leaf = latents[site].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    step = 1e-6
    change = (loss(leaf + step * direction) - loss(leaf - step * direction)).detach() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), change, rtol=1e-5, atol=1e-6)


def test_an_example_is_rendered_alike_in_any_company(space, layouts):
    latents = space.sample(layouts, EVERYONE, seed=0)
    together = rendered(space, latents, ["gamma/up_2/norm_0"])
    for i in range(4):
        alone = space.sample(layouts[i : i + 1], EVERYONE[i : i + 1], seed=0)
        torch.testing.assert_close(
            rendered(space, alone, ["gamma/up_2/norm_0"])[0], together[i], atol=1e-5, rtol=0
        )
    many = tiny_layouts(11)  # more than go through the label branch at a time
    sample = space.sample(many, torch.arange(11), seed=0)
    last = space.sample(many[10:], torch.tensor([10]), seed=0)
    torch.testing.assert_close(rendered(space, sample)[10:], rendered(space, last), atol=1e-5, rtol=0)


def test_with_the_vae_branch_an_example_depends_on_its_id_and_the_seed(layouts):
    space = SPADESpace(tiny_spade_generator(use_vae=True, z_dim=8), CLASSES)
    one, other = space.sample(layouts, EVERYONE, seed=0), space.sample(layouts, EVERYONE + 1, seed=0)
    torch.testing.assert_close(one["seed/fc"][1:], other["seed/fc"][:-1])
    assert (one["seed/fc"][0] - other["seed/fc"][0]).abs().max() > 1e-3
    assert not torch.equal(one["seed/fc"], space.sample(layouts, EVERYONE, seed=1)["seed/fc"])


def test_groups_go_by_resolution_relative_to_the_image():
    assert [group_of(w, 64) for w in (2, 4, 8, 16, 32, 64)] == ["coarse"] * 3 + ["middle"] * 2 + ["fine"]
    assert [group_of(w, 256) for w in (8, 32, 64, 128, 256)] == ["coarse"] * 2 + ["middle"] * 2 + ["fine"]
    sites = SPADESpace(tiny_spade_generator(crop_size=64, aspect_ratio=2.0), CLASSES).sites
    assert sites["gamma/up_3/norm_0"].group == "fine"
    assert sites["gamma/up_3/norm_0"].shape[1:] == (32, 64)
    assert sites["beta/head_0/norm_1"].group == "coarse"


def test_scales_are_standard_deviations_over_examples_and_places(generator, layouts):
    many = tiny_layouts(11)
    scales = measure_scales(generator, many)
    with torch.no_grad():
        maps = generator.modulation(encode_layouts(many, generator.config))
    assert scales.keys() == maps.keys()
    for name, value in maps.items():
        by_channel = value.transpose(0, 1).flatten(1).var(1, correction=0)
        assert scales[name] == pytest.approx(float(by_channel.mean().sqrt()), rel=1e-4)
    space = SPADESpace(generator, CLASSES, scales)
    assert {name: site.scale for name, site in space.sites.items()} == scales


def test_without_scales_they_are_measured_on_the_same_random_layouts_every_time(generator):
    one, other = SPADESpace(generator, CLASSES), SPADESpace(generator, CLASSES)
    assert one.sites == other.sites
    assert example_layouts(generator.config)[:, 0].unique().tolist() == [0, 1, 2]
    assert min(site.scale for site in one.sites.values()) > 1e-3


def test_an_offset_on_a_coarse_grid_is_enlarged_bilinearly_and_added(generator, layouts):
    full, coarse = SPADESpace(generator, CLASSES), SPADESpace(generator, CLASSES, coarse_grid=4)
    assert coarse.sites["gamma/up_3/norm_0"].shape == (4, 4, 4)
    assert coarse.sites["gamma/head_0/norm_0"].shape == full.sites["gamma/head_0/norm_0"].shape
    assert coarse.sites["beta/up_3/norm_0"].scale == full.sites["beta/up_3/norm_0"].scale
    maps, offsets = full.sample(layouts, EVERYONE, seed=0), coarse.sample(layouts, EVERYONE, seed=0)
    assert all(not offsets[name].any() for name in coarse.sites)
    for site in ("gamma/up_3/norm_0", "beta/head_0/norm_1"):
        offset = torch.randn(offsets[site].shape)
        size = maps[site].shape[-2:]
        enlarged = (
            nn.functional.interpolate(offset, size, mode="bilinear") if size != offset.shape[-2:] else offset
        )
        wanted = full.freeze(maps, [site])({site: maps[site] + enlarged}, EVERYONE)
        torch.testing.assert_close(
            coarse.freeze(offsets, [site])({site: offset}, EVERYONE), wanted, atol=1e-5, rtol=0
        )
        kept = offsets | {site: offset}  # an offset from elsewhere that does not move any more
        for moved in ([], ["beta/up_3/norm_1"], ["gamma/head_0/norm_0"]):
            torch.testing.assert_close(rendered(coarse, kept, moved), wanted, atol=1e-5, rtol=0)
    flat = SPADESpace(tiny_spade_generator(crop_size=64, aspect_ratio=2.0), CLASSES, coarse_grid=8)
    assert flat.sites["gamma/up_3/norm_0"].shape[1:] == (4, 8)


@pytest.mark.parametrize("coarse_grid", [None, 4])
def test_half_precision_draws_nearly_the_same_images(generator, layouts, coarse_grid):
    weight = generator.up_0.conv_0.weight.clone()
    full, half = (
        SPADESpace(generator, CLASSES, coarse_grid=coarse_grid, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    latents = full.sample(layouts, EVERYONE, seed=0)
    for moved in ([], ["gamma/up_1/norm_0"]):
        exact, rough = rendered(full, latents, moved), rendered(half, latents, moved)
        assert rough.dtype == torch.float32
        assert 0 < (exact - rough).abs().mean() < 0.02
    assert torch.equal(generator.up_0.conv_0.weight, weight)


def test_sites_that_are_not_there_and_foreign_latents_are_refused(space, layouts):
    latents = space.sample(layouts, EVERYONE, seed=0)
    for bad in ("gamma/up_9/norm_0", "seed/fc", "style/8/conv0"):
        with pytest.raises(ValueError, match=rf"{bad} cannot be moved; on offer: gamma/head_0/norm_0, "):
            space.freeze(latents, [bad])
    with pytest.raises(ValueError, match=r"there is no gamma/up_1/norm_0"):
        space.freeze({n: v for n, v in latents.items() if n != "gamma/up_1/norm_0"}, [])
    with pytest.raises(ValueError, match=r"there is no layout/map"):
        SPADESpace(space.generator, CLASSES, coarse_grid=4).freeze(latents, [])


def test_arguments_that_do_not_fit_the_generator_are_refused(generator):
    with pytest.raises(ValueError, match="knows 3 classes, but 2 names were given: "):
        SPADESpace(generator, CLASSES[:2])
    with pytest.raises(ValueError, match="coarse_grid must be at least 1 px, got 0"):
        SPADESpace(generator, CLASSES, coarse_grid=0)
    with pytest.raises(ValueError, match="other sites than the generator's: style/4"):
        SPADESpace(
            generator,
            CLASSES,
            measure_scales(generator, example_layouts(generator.config)) | {"style/4": 1.0},
        )
