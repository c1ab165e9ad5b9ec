"""The benchmark compares like with like: its straightforward loop finds what ours finds."""

import json
from types import ModuleType

import pytest
import torch
from torch import nn

from gat.attacks import LatentAttack
from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.generator import Generator
from generators.stylegan2.space import StyleGAN2Space
from tasks.classification import ClassificationTask

CLASSES = ("a", "b", "c")


@pytest.fixture
def spaces() -> dict[torch.dtype, StyleGAN2Space]:
    config = StyleGAN2Config(
        z_dim=8, c_dim=3, w_dim=8, img_resolution=16, channel_base=128, channel_max=8, mapping_layers=1
    )
    generator = Generator(config)
    for layer in generator.synthesis.layers:
        if layer.kind != "torgb":
            nn.init.constant_(generator.synthesis.module(layer).noise_strength, 0.2)
    return {
        dtype: StyleGAN2Space(generator, CLASSES, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.fixture
def classifier() -> nn.Module:
    """Random, and made to answer evenly, so that some examples start right and some of those withstand."""
    layers = (nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 7 * 7, 3))
    return nn.Sequential(*layers).eval()


ATTACK = LatentAttack(step_size={"style/*": 0.02, "noise/*": 0.05}, max_steps=4)


def test_fused_rendering_agrees_with_shared_kernels(
    script: ModuleType, spaces: dict[torch.dtype, StyleGAN2Space]
) -> None:
    space = spaces[torch.float32]
    latents = space.sample(torch.arange(4) % 3, torch.arange(4), seed=3)
    wanted = space.freeze(latents, list(latents))(latents, torch.arange(4))
    torch.testing.assert_close(
        script.render_fused(space.generator.synthesis, latents), wanted, atol=1e-5, rtol=0
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        got = script.WithoutReuse(space, layout).render(latents)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change", [{}, {"goal": "least_likely", "max_steps": 8}, {"group": "fine", "step_size": {"*": 0.04}}]
)
def test_both_loops_agree_on_success_and_iterations(
    script: ModuleType,
    spaces: dict[torch.dtype, StyleGAN2Space],
    classifier: nn.Module,
    change: dict[str, object],
) -> None:
    n, task = 48, ClassificationTask(CLASSES)
    space = spaces[torch.float32]
    ids = torch.arange(n)
    start = space.sample(ids % 3, ids, seed=0)
    labels = classifier(script.render_fused(space.generator.synthesis, start)).argmax(1)
    labels[::6] = (labels[::6] + 1) % 3  # wrong from the start: not attacked
    setting = script.Setting(task, spaces, ATTACK.model_copy(update=change), start, labels, 16, torch.float32)
    chain, _ = script.variants(setting, classifier)
    found = [variant.run(ids) for variant in chain]
    assert found[0].attacked.sum() == n - n // 6
    assert 0 < found[0].success.sum() < found[0].attacked.sum(), "the test should see both outcomes"
    for variant, other in zip(chain, found, strict=True):
        assert torch.equal(other.attacked, found[0].attacked), variant.name
        assert torch.equal(other.success, found[0].success), variant.name
        assert torch.equal(other.iterations, found[0].iterations), variant.name


def test_report_has_what_it_promises(
    script: ModuleType, spaces: dict[torch.dtype, StyleGAN2Space], classifier: nn.Module
) -> None:
    classifiers = {"undefended": classifier, "trained": classifier}
    result = script.bench(
        ClassificationTask(CLASSES), classifiers, spaces, ATTACK, n=12, width=4, repeats=2, seed=0
    )
    result |= script.machine()
    assert {
        "ratio_undefended", "ratio_trained", "ideas", "success_undefended", "success_trained", "peak_fraction", "n", "seeds",
        "threads", "hardware", "commit", "command",
    } <= json.loads(json.dumps(result)).keys()  # fmt: skip
    assert 0 < result["peak_fraction"] < 1.5
    for name in classifiers:
        rows = [row for row in result["ideas"] if row["model"] == name and row["in_ours"]]
        gain = 1.0
        for row in rows[1:]:
            gain *= row["ratio_to_previous"]
        assert gain == pytest.approx(result[f"ratio_{name}"], rel=0.05), "the ideas multiply to the whole"
    table = script.show(result)
    assert "straightforward" in table and "prefix reuse" in table


def test_flop_count_of_a_known_product(script: ModuleType) -> None:
    a, b = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7)
    with script.FlopCount() as counter:
        torch.autograd.grad((a @ b).sum(), [a])
    assert counter.total == 2 * (2 * 3 * 5 * 7)  # forward, and backward to one factor


@pytest.mark.parametrize(
    "change",
    [{"goal": "targeted"}, {"goal": "random"}, {"contrast": True}, {"norm": "l2"}, {"eps": {"*": 1.0}}],
)
def test_attacks_that_the_straightforward_loop_does_not_do_are_refused(
    script: ModuleType,
    spaces: dict[torch.dtype, StyleGAN2Space],
    classifier: nn.Module,
    change: dict[str, object],
) -> None:
    attack = ATTACK.model_copy(update=change)
    with pytest.raises(ValueError, match="unbounded sign steps"):
        script.bench(ClassificationTask(CLASSES), {"undefended": classifier}, spaces, attack, 4, 4, 1, 0)
