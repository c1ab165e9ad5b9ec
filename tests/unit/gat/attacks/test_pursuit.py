"""Step by step against a model that stands still is the attack as a whole; against one that learns it is not."""

from dataclasses import replace

import pytest
import torch

from gat.attacks import Compute, LatentAttack
from gat.attacks.pursuit import Pursuit
from gat.training.methods import Tools
from tasks.segmentation import SegmentationTask
from tests.toys import conv_segmenter, tiny_scenes, tiny_spade

SIZES = {"gamma/*": 0.3, "beta/*": 0.3}
LATENT = LatentAttack(step_size=SIZES, eps={"*": 0.5}, max_steps=4, stop_when_fooled=False)
ATTACKS = {
    "loss": {},
    "random": {"goal": "random"},
    "least_likely": {"goal": "least_likely", "contrast": True},
    "l2": {"norm": "l2", "step_size": {"*": 4.0}, "eps": {"*": 6.0}},
    "cospgd": {"pixels": "cospgd"},
    "segpgd": {"pixels": "segpgd"},
}


class Scene:
    """Five layouts, latents of theirs, and a segmenter that gets something right of each."""

    def __init__(self) -> None:
        data = tiny_scenes()
        self.tools = Tools(SegmentationTask(data.classes, fooled_at=0.0), tiny_spade())
        self.labels = torch.stack([data[i]["labels"] for i in range(5)])
        self.ids = torch.arange(5) + 7
        layouts = torch.stack([data[i]["layouts"] for i in range(5)])
        self.latents = self.tools.generator.sample(layouts, self.ids, 0)
        self.model = conv_segmenter(self.tools.task.num_classes).eval()

    def pursue(self, attack: LatentAttack, **options) -> Pursuit:
        return Pursuit(
            attack, self.tools.task, self.model, self.tools.generator, self.latents, self.labels, ids=self.ids, **options
        )  # fmt: skip

    def run(self, attack: LatentAttack, **options):
        return attack.run(
            self.tools.task, self.model, self.tools.generator, self.latents, self.labels, record=True, ids=self.ids, **options
        )  # fmt: skip


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("options", ATTACKS.values(), ids=ATTACKS)
def test_against_a_model_that_stands_still_it_is_the_attack(scene, options):
    attack = LatentAttack.model_validate(LATENT.model_dump() | options)
    outcome, pursuit = scene.run(attack), scene.pursue(attack)
    torch.testing.assert_close(pursuit.start_images, outcome.start_images)
    assert torch.equal(pursuit.attacked, outcome.attacked) and pursuit.attacked.sum() >= 3
    for wanted in outcome.trajectory[1:]:
        images = pursuit.step()
        torch.testing.assert_close(images[pursuit.attacked], wanted[pursuit.attacked])
    with torch.no_grad():
        answers = scene.tools.task.predict(scene.model(images))
    torch.testing.assert_close(pursuit.score(), scene.tools.task.score(answers, scene.labels))


def test_narrow_passes_make_the_same_images(scene):
    wide, narrow = scene.pursue(LATENT), scene.pursue(LATENT, compute=Compute(width=2))
    for _ in range(2):
        torch.testing.assert_close(narrow.step(), wide.step())
    torch.testing.assert_close(narrow.score(), wide.score())


def test_every_step_is_against_the_model_as_it_is_by_then(scene):
    outcome, pursuit = scene.run(LATENT), scene.pursue(LATENT)
    first = pursuit.step()
    torch.testing.assert_close(first[pursuit.attacked], outcome.trajectory[1][pursuit.attacked])
    with torch.no_grad():
        for parameter in scene.model.parameters():
            parameter.neg_()
    second = pursuit.step()
    assert not torch.allclose(second, outcome.trajectory[2])

    restarted = scene.pursue(LATENT)
    assert not torch.allclose(restarted.step(), first)


def test_the_model_is_left_as_found(scene):
    scene.model.train()
    scene.model.requires_grad_(True)
    before = {name: value.clone() for name, value in scene.model.state_dict().items()}
    pursuit = scene.pursue(LATENT)
    pursuit.step()
    pursuit.score()
    assert all(part.training for part in scene.model.modules())
    assert all(p.requires_grad and p.grad is None for p in scene.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in scene.model.state_dict().items())


def test_what_the_model_learns_from_is_not_rendered_again_for_the_next_step(scene):
    class Counting:
        def __init__(self, renderer):
            self.renderer, self.calls = renderer, 0

        def __call__(self, moved, rows):
            self.calls += 1
            return self.renderer(moved, rows)

    class CountingSpace:
        def __getattr__(self, name):
            return getattr(space, name)

        def freeze(self, latents, moved):
            self.renderer = Counting(space.freeze(latents, moved))
            return self.renderer

    space, plain = scene.tools.generator, scene.pursue(LATENT)
    counting = CountingSpace()
    scene.tools = replace(scene.tools, generator=counting)
    pursuit = scene.pursue(LATENT)
    before = counting.renderer.calls
    for _ in range(3):
        assert torch.equal(pursuit.step(), plain.step())
    assert counting.renderer.calls - before == 1 + 3  # where the first step begins, and what each made


def test_what_was_wrong_at_the_start_is_said_to_be(scene):
    scene.tools = replace(scene.tools, task=SegmentationTask(tiny_scenes().classes, fooled_at=0.99))
    assert not scene.pursue(LATENT).attacked.any()


def test_half_precision_is_for_the_way_not_for_the_verdict(scene):
    pursuit = scene.pursue(LATENT, compute=Compute(autocast=torch.bfloat16))
    assert pursuit.step().dtype == pursuit.score().dtype == torch.float32
