"""Scenes go the way of pictures: through the same evaluation, with scores for classes."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import default_collate

from gat.attacks import PGD, LatentAttack
from gat.evaluation.evaluate import evaluate
from gat.evaluation.judge import layout_agreement
from gat.evaluation.metrics import metric_rows
from gat.evaluation.plan import EvaluationSettings
from gat.evaluation.records import Record, read_records
from gat.training.methods import GAT, Batch, Tools
from tasks.detection import DetectionTask
from tasks.models.small_fcos import SmallFCOSConfig
from tasks.segmentation import SegmentationTask
from tests.toys import scene_segmenter, tiny_scenes, tiny_spade

STEPS = {"gamma/*": 0.3, "beta/*": 0.3}
LATENT = LatentAttack(step_size=STEPS, max_steps=3, stop_when_fooled=False)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def tools() -> Tools:
    data = tiny_scenes()
    return Tools(SegmentationTask(data.classes, fooled_at=0.0), tiny_spade(), scene_segmenter(5))


def judged(tools, accelerator, folder, width=4, data=None, model=None):
    attacks = {"renderings": LATENT.model_copy(update={"max_steps": 0}), "gat": LATENT, "pgd": PGD(steps=2)}
    settings = EvaluationSettings(attacks=attacks, num_real=6, num_generated=6, width=width, num_pictures=2)
    data = data or tiny_scenes()
    return evaluate({"original": model or scene_segmenter()}, data, tools, settings, accelerator, folder)


def test_scores_are_those_of_the_answers_and_the_attack_lowers_them(tools, accelerator, tmp_path):
    records = judged(tools, accelerator, tmp_path)
    data, model = tiny_scenes(), scene_segmenter()
    clean = {r.id: r for r in records if r.attack == "none"}
    for i in range(len(data)):
        item = data[i]
        with torch.no_grad():
            answer = model(item["images"][None]).argmax(1)[0]
        assert clean[item["ids"]].score == pytest.approx(float((answer == item["labels"]).float().mean()))
    of = {name: [r for r in records if r.attack == name] for name in ("renderings", "gat", "pgd")}
    assert [len(rs) for rs in of.values()] == [6, 6, 6]
    assert sum(record.score > 0 for record in of["renderings"]) > 2
    for before, after in zip(of["renderings"], of["gat"], strict=True):
        assert before.id == after.id and before.clean_score == after.clean_score == before.score
        if before.score > 0:
            assert after.iterations == 3 and after.loss > before.loss
        assert {"linf_gamma", "linf_beta"} <= after.distances.keys()
    assert {r.source for r in of["gat"]} == {"generated"} and {r.source for r in of["pgd"]} == {"real"}
    assert all(r.label == 1 and r.prediction == (r.score > 0) for r in records)


def test_numbers_of_the_whole_set_come_from_the_records(tools, accelerator, tmp_path):
    records = judged(tools, accelerator, tmp_path)
    assert read_records(tmp_path / "records.jsonl") == records
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert (found["task"], found["headline"]) == ("segmentation", "pixel_accuracy")
    assert [row["attack"] for row in found["rows"]] == ["none", "renderings", "gat", "pgd"]
    for row in found["rows"]:
        scores = [r.score for r in records if r.attack == row["attack"]]
        accuracy = row["metrics"]["pixel_accuracy"]
        assert accuracy["value"] == pytest.approx(sum(scores) / len(scores))  # all images are of one size
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert row["score"]["after"] == pytest.approx(accuracy["value"])
        assert row["n"] == len(scores) and row["oracle"]["before"] is not None


def test_a_scene_does_not_depend_on_its_batch(tools, accelerator, tmp_path):
    wide = judged(tools, accelerator, tmp_path / "wide", width=6)
    for one, other in zip(judged(tools, accelerator, tmp_path / "narrow", width=2), wide, strict=True):
        assert (one.attack, one.id, one.iterations) == (other.attack, other.id, other.iterations)
        assert one.score == pytest.approx(other.score, abs=0.02)
        assert one.loss == pytest.approx(other.loss, rel=1e-3)


def test_detectors_go_the_same_way(accelerator, tmp_path):
    data = tiny_scenes("boxes")
    torch.manual_seed(0)
    detector = SmallFCOSConfig().build(len(data.classes), 32).eval()
    tools = Tools(DetectionTask(data.classes, fooled_at=0.0), tiny_spade(), scene_segmenter(5))
    records = judged(tools, accelerator, tmp_path, data=data, model=detector)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert (found["task"], found["headline"]) == ("detection", "ap")
    boxes = {r.id: r.evidence["boxes"] for r in records if r.attack == "none"}
    for i in range(len(data)):
        assert len(boxes[data[i]["ids"]]) == int((data[i]["labels"][:, 4] >= 0).sum())


def test_the_oracle_is_asked_for_the_layout_and_not_for_unknown_pixels():
    reading = nn.functional.one_hot(torch.tensor([[[0, 1], [1, 0]]]), 3).permute(0, 3, 1, 2).float()
    layouts = torch.tensor([[[[0, 1], [2, 255]], [[0, 0], [0, 0]]]])
    assert layout_agreement(reading, layouts).tolist() == pytest.approx([2 / 3])


class Answers(nn.Module):
    """An oracle that reads one class everywhere."""

    def __init__(self, only: int) -> None:
        super().__init__()
        self.only = only

    def forward(self, images):
        logits = images.new_zeros(len(images), len(tiny_scenes().classes), *images.shape[2:])
        logits[:, self.only] = 1
        return logits


def test_what_counts_as_shown_is_what_the_oracle_reads(accelerator, tmp_path):
    data, model = tiny_scenes(), scene_segmenter()
    labels = torch.stack([data[i]["labels"] for i in range(len(data))])
    with torch.no_grad():
        answers = torch.cat([model(data[i]["images"][None]).argmax(1) for i in range(len(data))])
    commonest = int(answers[answers == labels].mode().values)
    rare = int(next(k for k in labels.unique() if not (labels == k).flatten(1).any(1).all()))
    for only in (commonest, rare):
        tools = Tools(SegmentationTask(data.classes, fooled_at=0.0), tiny_spade(), Answers(only))
        records = judged(tools, accelerator, tmp_path / str(only))
        found = {r.id: r.shown_score for r in records if r.attack == "none"}
        for i, (answer, label) in enumerate(zip(answers, labels, strict=True)):
            read = label == only
            wanted = float((answer == only)[read].float().mean()) if read.any() else None
            assert found[data[i]["ids"]] == (None if wanted is None else pytest.approx(wanted))
        rows = json.loads((tmp_path / str(only) / "metrics.json").read_text())["rows"]
        there = [score for score in found.values() if score is not None]
        assert rows[0]["shown"]["after"] == pytest.approx(sum(there) / len(there))
        share = float((labels == only).float().mean())
        assert rows[0]["oracle_metrics"]["pixel_accuracy"] == pytest.approx(share)
        assert None in found.values()
        if only == commonest:
            assert max(there) > 0


def test_pixels_that_the_attack_paints_over_do_not_count_as_shown(accelerator, tmp_path):
    """The oracle is the attacked model itself: where it still reads the label, it is right."""
    data, model = tiny_scenes(), scene_segmenter()
    tools = Tools(SegmentationTask(data.classes, fooled_at=0.0), tiny_spade(), model)
    attacked = [r for r in judged(tools, accelerator, tmp_path, model=model) if r.attack == "gat"]
    assert any(r.score < 1 for r in attacked)
    assert all(r.shown_score in (1, None) and r.clean_shown_score in (1, None) for r in attacked)
    assert any(r.shown_score == 1 for r in attacked)


def test_intervals_are_of_examples_and_the_same_every_time():
    task = SegmentationTask(("a", "b"))
    shares = [0, 2, 5, 9, 10, 10, 3, 7]
    records = [
        Record("m", "pgd", "p", "real", i, 1, 1, 1, False, score=n / 10, clean_score=1.0,
               evidence=[[0, 0, n], [0, 1, 10 - n]])
        for i, n in enumerate(shares)
    ]  # fmt: skip
    (row,) = metric_rows(records, task)
    assert row["metrics"]["pixel_accuracy"]["value"] == pytest.approx(sum(shares) / 80)
    error = torch.tensor(shares).div(10).std() / len(shares) ** 0.5
    width = row["metrics"]["pixel_accuracy"]["high"] - row["metrics"]["pixel_accuracy"]["low"]
    assert 2 * float(error) < width < 6 * float(error)
    assert metric_rows(records, task) == [row]
    assert metric_rows([Record("m", "pgd", "p", "real", 0, 1, 1, 1, False)], task) == []


def test_a_memory_budget_limits_how_many_go_at_once_and_changes_no_result(tools, accelerator, tmp_path):
    """Two fit: evaluation, training and the attack itself never hold more, in the space or in a pass of the model."""
    tight = tiny_spade()
    tight.memory_budget_gib = (tight.memory_needed(LATENT.moved(tight), 2) + 1) / 2**30
    assert LATENT.max_width(tight) == 2 and LATENT.max_width(tools.generator) is None
    drawn, sample = [], tight.sample
    tight.sample = lambda layouts, ids, seed: drawn.append(len(ids)) or sample(layouts, ids, seed)
    poor = replace(tools, generator=tight)

    records = judged(poor, accelerator, tmp_path / "tight", width=6)
    assert drawn == [2, 2, 2] * 2  # renderings, attack
    for one, other in zip(records, judged(tools, accelerator, tmp_path / "free", width=6), strict=True):
        assert (one.attack, one.id, one.iterations) == (other.attack, other.id, other.iterations)
        assert one.loss == pytest.approx(other.loss, rel=1e-3)

    batch = default_collate([tiny_scenes()[i] for i in range(6)])
    batch = Batch(batch["images"], batch["labels"], batch["layouts"])
    method = GAT(attack=LATENT, rotation=(("all", "both"),), only_fooling=False, oversample=1.0)
    drawn.clear()
    lesson, free = (method.lesson(some, scene_segmenter(), batch, 2) for some in (poor, tools))
    assert drawn == [2, 2, 2]
    torch.testing.assert_close(lesson.images, free.images, atol=1e-4, rtol=0)
    assert torch.equal(lesson.labels, free.labels)

    widths, model = [], scene_segmenter()
    model.register_forward_hook(lambda module, inputs, outputs: widths.append(len(inputs[0])))
    latents = sample(batch.layouts, torch.arange(6), 0)
    LATENT.run(tools.task, model, tight, latents, batch.labels)
    assert set(widths) == {2}
