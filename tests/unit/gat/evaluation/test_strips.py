"""Strips show what the attack went through, not something like it."""

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import PGD, Compute, LatentAttack
from gat.evaluation.strips import StripSettings, make_strips
from gat.logits import LogitsTask
from gat.training.methods import Tools
from tasks.detection import Candidates, DetectionTask
from tasks.segmentation import SegmentationTask
from tests.toys import conv_segmenter, tiny_scenes, tiny_spade

SCENES = tiny_scenes()
NUM_CLASSES = len(SCENES.classes)
SPACE = tiny_spade()
SHORT = LatentAttack(
    sites=("gamma/*",), step_size={"*": 0.05}, unit="absolute", max_steps=3, stop_when_fooled=False
)
PIXELS = PGD(eps=0.1, step_size=0.02, steps=3, random_start=True, stop_when_fooled=False)


class Forgetful(PGD):
    """Keeps no iterates."""

    def run(self, *args, record=False, **options):
        return super().run(*args, **options)


def settings(**more) -> StripSettings:
    return StripSettings(**({"attacks": {"gat": SHORT}, "iterations": (0, 1, 3), "num_examples": 3} | more))


def tools(fooled_at: float = 0.0) -> Tools:
    return Tools(SegmentationTask(SCENES.classes, fooled_at), SPACE, compute=Compute(width=2))


def segmenter() -> nn.Module:
    return conv_segmenter(NUM_CLASSES)


def pictures(strip) -> Tensor:
    return torch.stack([frame.image for frame in strip.frames])


def test_frames_are_the_iterates_of_the_attack_with_the_models_own_answers_and_their_scores():
    model, kit = segmenter(), tools()
    strips = make_strips({"a": model}, SCENES, kit, settings())
    ids = torch.tensor([strip.id for strip in strips])
    layouts = torch.stack([SCENES[int(i)]["layouts"] for i in ids])
    labels = torch.stack([SCENES[int(i)]["labels"] for i in ids])
    latents = kit.generator.sample(layouts, ids, settings().seed)
    outcome = SHORT.run(kit.task, model, kit.generator, latents, labels, record=True)
    assert [frame.iteration for frame in strips[0].frames] == [0, 1, 3]
    assert outcome.attacked.any()
    model.eval()
    for i, strip in enumerate(strips):
        wanted = outcome.trajectory[[0, 1, 3], i].clamp(0, 1)
        torch.testing.assert_close(pictures(strip), wanted, atol=1e-4, rtol=0)
        assert (strip.truth == labels[i].numpy()).all()
        for frame in strip.frames:
            answer = model(frame.image[None]).argmax(1)
            assert (answer[0].numpy() == frame.answer).all()
            assert frame.score == pytest.approx(float((answer == labels[i]).float().mean()))
    assert not torch.equal(strips[0].frames[0].image, strips[0].frames[-1].image)


def test_scenes_are_the_same_for_every_model_and_another_seed_chooses_others():
    models = {"a": segmenter(), "b": conv_segmenter(NUM_CLASSES, seed=1)}
    strips = make_strips(models, SCENES, tools(), settings(attacks={"gat": SHORT, "pgd": PIXELS}))
    by_cell = {}
    for strip in strips:
        by_cell.setdefault((strip.attack, strip.model), []).append(strip.id)
    assert len(by_cell) == 4
    assert len({tuple(ids) for ids in by_cell.values()}) == 1
    assert [strip.attack for strip in strips] == ["gat"] * 6 + ["pgd"] * 6
    others = make_strips({"a": models["a"]}, SCENES, tools(), settings(attacks={"pgd": PIXELS}, seed=3))
    assert [strip.id for strip in others] != by_cell["gat", "a"]


def test_a_strip_does_not_depend_on_the_scenes_beside_it():
    together = make_strips({"a": segmenter()}, SCENES, tools(), settings(width=3))
    alone = make_strips({"a": segmenter()}, SCENES, tools(), settings(width=1))
    for one, other in zip(together, alone, strict=True):
        assert one.id == other.id
        torch.testing.assert_close(pictures(one), pictures(other), atol=1e-4, rtol=0)


def test_attacks_on_images_start_from_the_real_image_even_with_a_random_start():
    (strip,) = make_strips(
        {"a": segmenter()},
        SCENES,
        Tools(SegmentationTask(SCENES.classes, 0.0)),
        settings(attacks={"pgd": PIXELS}, num_examples=1, iterations=(1, 3)),
    )
    image = SCENES[strip.id]["images"]
    assert [frame.iteration for frame in strip.frames] == [0, 1, 3]
    assert torch.equal(strip.frames[0].image, image)
    change = (strip.frames[2].image - image).abs().max()
    assert 0 < change <= 0.1 + 1e-6
    assert strip.settings == PIXELS.summary


def test_a_scene_that_was_wrong_before_stands_still_and_says_so():
    strips = make_strips({"a": segmenter()}, SCENES, tools(fooled_at=0.99), settings())
    assert {strip.state for strip in strips} == {"wrong before"}
    for strip in strips:
        assert torch.equal(strip.frames[0].image, strip.frames[-1].image)


def test_the_model_is_left_as_found():
    model = segmenter().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_strips({"a": model}, SCENES, tools(), settings(num_examples=1))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Seen:
    """Outputs of a detector that sees what it is told to; the loss follows the picture."""

    def __init__(self, images: Tensor, boxes: Tensor, scores: Tensor) -> None:
        self.images, self.boxes, self.scores = images, boxes, scores

    def losses(self, labels: Tensor) -> Tensor:
        return self.images.flatten(1).mean(1)

    def candidates(self) -> Candidates:
        n = len(self.images)
        return Candidates(self.boxes.expand(n, -1, -1), self.scores.expand(n, -1, -1))


class Detector(nn.Module):
    """Sees one box of class 2 at 0.9, and another at 0.1, wherever it looks."""

    def forward(self, images: Tensor) -> Seen:
        boxes = torch.tensor([[[2.0, 3, 20, 24], [0, 0, 9, 9]]])
        scores = torch.zeros(1, 2, 10)
        scores[0, :, 2] = torch.tensor([0.9, 0.1])
        return Seen(images, boxes, scores)


class Boxed(torch.utils.data.Dataset):
    """Two objects, of which the detector finds the first, and padding."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        rows = [[2.0, 3, 20, 24, 2, 0], [10, 10, 30, 30, 4, 0], [0, 0, 0, 0, -1, 0]]
        return {"images": torch.rand(3, 32, 32), "labels": torch.tensor(rows), "ids": 40 + index}


def test_detections_lose_their_padding_and_keep_what_they_count_by():
    task = DetectionTask([f"c{i}" for i in range(10)], threshold=0.4)
    strip, _ = make_strips(
        {"a": Detector()}, Boxed(), Tools(task), settings(attacks={"pgd": PIXELS}, num_examples=2)
    )
    assert strip.truth.tolist() == [[2, 3, 20, 24, 2, 0], [10, 10, 30, 30, 4, 0]]
    assert strip.frames[0].answer[:, :4].tolist() == [[2, 3, 20, 24], [0, 0, 9, 9]]
    assert strip.frames[0].answer[:, 5].tolist() == [2, 2]
    assert (strip.threshold, strip.overlap) == (0.4, 0.5)
    assert strip.frames[0].score == 0.5
    assert strip.id in {40, 41}


@pytest.mark.parametrize(
    "more, kit, message",
    [
        ({"iterations": (0, 4)}, tools, "4 is to be shown, but attack 'gat' takes 3 steps"),
        ({}, lambda: Tools(SegmentationTask(SCENES.classes)), "name one under `generator`"),
        ({}, lambda: Tools(LogitsTask(3)), "segmentation or detection, got the task"),
        ({"attacks": {"any": Forgetful()}}, tools, "'any' has not one sequence"),
    ],
)
def test_what_cannot_be_shown_is_refused(more, kit, message):
    with pytest.raises(ValueError, match=message):
        make_strips({"a": segmenter()}, SCENES, kit(), settings(**more))


def test_iterations_below_zero_are_refused_and_the_start_is_always_there():
    with pytest.raises(ValueError, match="counted from 0"):
        StripSettings(iterations=(-1, 2))
    assert StripSettings(iterations=(5, 2, 2)).iterations == (0, 2, 5)
