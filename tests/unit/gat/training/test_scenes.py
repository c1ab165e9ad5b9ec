"""Scenes go the way of pictures in training too; their generator draws from the layouts of the batch."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import default_collate

from gat.attacks import LatentAttack
from gat.training.method import Lesson
from gat.training.methods import GAT, Batch, Mixed, RandomLatents, Tools
from generators.spade.space import SPADESpace
from tasks.detection import DetectionTask
from tasks.models.small_fcos import SmallFCOSConfig
from tasks.segmentation import SegmentationTask
from tests.toys import conv_segmenter, scene_segmenter, tiny_scenes, tiny_spade

LATENT = LatentAttack(step_size={"gamma/*": 0.3, "beta/*": 0.3}, max_steps=3, stop_when_fooled=False)
ALL = {
    "attack": LATENT,
    "rotation": (("all", "both"),),
    "train_on": "iterates",
    "only_fooling": False,
    "oversample": 1.0,
}


def batch_of(labels: str, n: int = 6) -> Batch:
    scenes = tiny_scenes(labels)
    batch = default_collate([scenes[i] for i in range(n)])
    return Batch(batch["images"], batch["labels"], batch["layouts"])


@pytest.fixture(scope="module")
def tools() -> Tools:
    return Tools(SegmentationTask(tiny_scenes().classes, fooled_at=0.0), tiny_spade())


def test_training_on_scenes_takes_every_iterate_of_a_few_starts(tools):
    batch = batch_of("masks")
    lesson = GAT(**ALL).lesson(tools, scene_segmenter(), batch, 2)
    assert lesson.num_clean == 6 and len(lesson.images) == 12

    layouts, ids = batch.layouts[:2], torch.arange(2) + 2 * 2
    latents = tools.generator.sample(layouts, ids, 0)
    outcome = LATENT.run(
        tools.task, scene_segmenter(), tools.generator, latents, batch.labels[:2], record=True
    )
    wanted = outcome.trajectory[1:].transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(lesson.images[6:], wanted)
    assert torch.equal(lesson.labels[6:], batch.labels[:2].repeat_interleave(3, 0))
    assert lesson.facts["score"] == pytest.approx(
        float(tools.task.score(outcome.predictions, batch.labels[:2]).mean())
    )


def test_what_scenes_become_is_to_be_answered_as_they_were(tools):
    lesson = GAT(**ALL, weight=0.0, consistency=1.0).lesson(tools, scene_segmenter(), batch_of("masks"), 0)
    assert lesson.num_clean == 6 + 2 and len(lesson.images) == 6 + 2 + 6
    assert lesson.anchors.tolist() == [*range(8), 6, 6, 6, 7, 7, 7]
    assert lesson.pulls.tolist() == [0.0] * 8 + [1.0] * 6


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_consistency_alone_brings_the_answers_of_models_of_scenes_together(tools, task):
    torch.manual_seed(0)
    if task == "segmentation":
        model, batch = conv_segmenter(tools.task.num_classes).eval(), batch_of("masks")
    else:
        tools = Tools(DetectionTask(tiny_scenes("boxes").classes))
        batch = batch_of("boxes")
        model = SmallFCOSConfig(norm="group").build(len(tools.task.classes), 32)
    changed = (batch.images + 0.1 * torch.randn_like(batch.images)).clamp(0, 1)
    lesson = Lesson(
        torch.cat([batch.images, changed]),
        torch.cat([batch.labels, batch.labels]),
        6,
        weights=torch.zeros(12),
        anchors=torch.arange(6).repeat(2),
        pulls=torch.tensor([0.0, 1.0]).repeat_interleave(6),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    apart = []
    for _ in range(20):
        losses = lesson.loss(tools.task, model(lesson.images))
        assert (losses[:6] == 0).all() and (losses[6:] > 0).all()
        apart.append(float(losses.detach().sum()))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    assert apart[-1] < 0.9 * apart[0], apart


def test_random_latents_of_scenes_are_renderings_of_their_layouts(tools):
    batch = batch_of("masks")
    method = RandomLatents(oversample=1.0)
    method.check(tools)
    lesson = method.lesson(tools, scene_segmenter(), batch, 3)
    latents = tools.generator.sample(batch.layouts, torch.arange(6) + 3 * 6, 0)
    renderings = tools.generator.freeze(latents, ())({}, torch.arange(6))
    with torch.no_grad():
        read = ~tools.task.wrong(scene_segmenter()(renderings), batch.labels)
    assert 2 < read.sum() < 6
    torch.testing.assert_close(lesson.images[6:], renderings[read])
    assert torch.equal(lesson.labels[6:], batch.labels[read])


@pytest.mark.parametrize("method", [GAT(**ALL), RandomLatents(oversample=1.0)], ids=["gat", "random_latents"])
def test_only_pixels_that_the_oracle_reads_are_taught(tools, method):
    batch, oracle = batch_of("masks"), scene_segmenter(seed=1).eval()
    tools = replace(tools, oracle=oracle)
    plain = method.lesson(tools, scene_segmenter(), batch, 2)
    filtered = method.model_copy(update={"oracle_filter": True})
    filtered.check(tools)
    lesson = filtered.lesson(tools, scene_segmenter(), batch, 2)
    assert torch.equal(lesson.images, plain.images)
    assert torch.equal(lesson.labels[:6], batch.labels)  # clean ones are taught whole
    with torch.no_grad():
        answers = oracle(plain.images[6:]).argmax(1)
    wanted = plain.labels[6:].where(answers == plain.labels[6:], 255)
    assert 0 < (wanted == 255).sum() < wanted.numel()
    assert torch.equal(lesson.labels[6:], wanted)
    if isinstance(method, GAT):
        unread = (wanted != plain.labels[6:]).float().mean()
        assert lesson.facts["oracle_unread_share"] == pytest.approx(float(unread))


def test_of_starts_too_only_pixels_that_the_oracle_reads_are_taught(tools):
    batch, oracle = batch_of("masks"), scene_segmenter(seed=1).eval()
    tools = replace(tools, oracle=oracle)
    options = {**ALL, "start_weight": 1.0}
    plain = GAT(**options).lesson(tools, scene_segmenter(), batch, 2)
    lesson = GAT(**options, oracle_filter=True).lesson(tools, scene_segmenter(), batch, 2)
    starts = slice(6, 8)
    assert plain.num_clean == lesson.num_clean == 8
    assert torch.equal(lesson.images[starts], plain.images[starts])
    with torch.no_grad():
        answers = oracle(plain.images[starts]).argmax(1)
    wanted = plain.labels[starts].where(answers == plain.labels[starts], 255)
    assert 0 < (wanted == 255).sum() < wanted.numel()
    assert torch.equal(lesson.labels[starts], wanted)


def test_an_oracle_of_pixels_cannot_say_which_boxes_are_shown(tools):
    tools = replace(tools, task=DetectionTask(tiny_scenes("boxes").classes), oracle=scene_segmenter())
    for method in (GAT(**ALL, oracle_filter=True), RandomLatents(oracle_filter=True)):
        with pytest.raises(ValueError, match="labels of detection are none; switch it off"):
            method.check(tools)


def test_in_step_all_starts_must_fit_into_the_memory_budget(tools):
    method, batch, space = GAT(**ALL, in_step=True), batch_of("masks"), tools.generator
    moved = method.turns()[0].moved(space)

    def lessons(images: int) -> list[Lesson]:
        budget = space.memory_needed(moved, images) / 2**30
        frugal = SPADESpace(space.generator, space.classes, memory_budget_gib=budget)
        frugal_tools = replace(tools, generator=frugal)
        return list(method.lessons(frugal_tools, scene_segmenter(), [batch] * 3, range(3)))

    assert [len(lesson.images) for lesson in lessons(6)] == [12, 12, 12]
    with pytest.raises(
        ValueError, match=r"all 6 starts .* allows 4; raise generator.memory_budget_gib, lower"
    ):
        lessons(4)


METHODS = [GAT(**ALL), RandomLatents(oversample=1.0)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_layouts_of_other_scenes_are_drawn_beside_the_clean_images(tools, method):
    batch, others = batch_of("masks"), batch_of("masks", 12)
    others = others.every(2, 1)._replace(images=torch.full_like(batch.images, torch.nan))  # nobody looks
    lesson = method.lesson(tools, scene_segmenter(), batch._replace(drawn=others), 2)
    alone = method.lesson(tools, scene_segmenter(), others, 2)
    assert torch.equal(lesson.images[:6], batch.images) and torch.equal(lesson.labels[:6], batch.labels)
    assert len(lesson.images) > 6 and torch.equal(lesson.images[6:], alone.images[6:])
    assert torch.equal(lesson.labels[6:], alone.labels[6:])
    usual = method.lesson(tools, scene_segmenter(), batch, 2)
    assert not torch.equal(lesson.labels[6 : 6 + 3], usual.labels[6 : 6 + 3])


@pytest.mark.parametrize("method", [*METHODS, Mixed(methods=METHODS)], ids=lambda method: method.name)
def test_a_method_draws_as_many_examples_as_it_says(tools, method):
    batch, others = batch_of("masks"), batch_of("masks", 12)
    wanted = method.num_drawn(6)
    seen: list[torch.Tensor] = []

    class Watched(SPADESpace):
        def sample(self, conditions, ids, seed):
            seen.append(conditions)
            return super().sample(conditions, ids, seed)

    space = tools.generator
    watched = replace(tools, generator=Watched(space.generator, space.classes))
    drawn = Batch(*(part[:wanted] for part in others[:3]))
    method.lesson(watched, scene_segmenter(), batch._replace(drawn=drawn), 0)
    rows = torch.cat(seen).flatten(1).tolist()
    assert len(rows) == len({tuple(row) for row in rows}) <= wanted
    assert isinstance(method, Mixed) or len(rows) == wanted


def test_scenes_without_layouts_are_refused(tools):
    batch = Batch(torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long))
    with pytest.raises(ValueError, match="spade draws from layouts"):
        GAT(attack=LATENT, rotation=(("all", "both"),)).lesson(tools, scene_segmenter(), batch, 0)


def test_random_latents_are_the_same_however_little_memory_there_is(tools):
    batch, method = batch_of("masks"), RandomLatents(oversample=1.0)
    whole = method.lesson(tools, scene_segmenter(), batch, 3)
    space = tools.generator
    frugal = SPADESpace(space.generator, space.classes, memory_budget_gib=space.memory_needed((), 2) / 2**30)
    assert frugal.max_width(()) == 2
    narrow = method.lesson(replace(tools, generator=frugal), scene_segmenter(), batch, 3)
    torch.testing.assert_close(narrow.images, whole.images)
    assert torch.equal(narrow.labels, whole.labels)


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_an_image_without_anything_to_aim_at_is_trained_on_all_the_same(tools, kind):
    """Goal 'random': the other images aim at a wrong answer of their own, which the next step's starts draw anew."""
    batch = batch_of(kind)
    model = scene_segmenter()
    if kind == "boxes":
        easy = {"threshold": 2e-4, "min_score": 1e-4, "overlap": 1e-3}
        tools = replace(tools, task=DetectionTask(tiny_scenes("boxes").classes, **easy))
        model = SmallFCOSConfig(norm="group").build(len(tools.task.classes), 32)
    batch.labels[0] = torch.tensor([0.0, 0, 0, 0, -1, 0]) if kind == "boxes" else 255
    method = GAT(**{**ALL, "attack": LATENT.model_copy(update={"goal": "random"}), "oversample": 3.0})
    lessons = [method.lesson(tools, model, batch, key) for key in (0, 1, 0)]
    assert all(len(lesson.images) == 12 for lesson in lessons)
    assert torch.equal(lessons[0].images, lessons[2].images)
    assert not torch.equal(lessons[0].images[6:], lessons[1].images[6:])
