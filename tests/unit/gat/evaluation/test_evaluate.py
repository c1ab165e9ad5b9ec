"""Records: what they say is true, none is made twice, and a lost part comes back the same."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gat.attacks import FGSM, PGD, LatentAttack
from gat.evaluation.evaluate import EvaluationSettings, evaluate, protocol_id, protocols
from gat.evaluation.gallery import GallerySettings, make_gallery
from gat.evaluation.records import Record, read_records, write_records
from gat.training.methods import Tools
from generators.stylegan2.space import StyleGAN2Space
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, Blobs, balanced, conv_classifier, tiny_space

TASK = ClassificationTask(CLASSES)
ATTACKS = {
    "gat": LatentAttack(max_steps=3),
    "pgd-linf": PGD(eps=0.02, steps=3),
    "fgsm": FGSM(eps=0.01),
}
SETTINGS = EvaluationSettings(attacks=ATTACKS, num_real=20, num_generated=12, width=8)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def space() -> StyleGAN2Space:
    return tiny_space()


@pytest.fixture(scope="module")
def data() -> Blobs:
    return Blobs(40, side=16)


@pytest.fixture(scope="module")
def models(space: StyleGAN2Space, data: Blobs) -> dict[str, nn.Module]:
    latents = space.sample(torch.arange(60) % 3, torch.arange(60), seed=0)
    generated = space.freeze(latents, [])({}, torch.arange(60))
    images = torch.cat([data.images, generated])
    return {
        name: balanced(conv_classifier(seed=seed), images) for name, seed in (("original", 0), ("gat", 3))
    }


@pytest.fixture(scope="module")
def tools(space: StyleGAN2Space) -> Tools:
    return Tools(TASK, space, oracle=conv_classifier(seed=9).eval())


class Calls:
    """How often the models were asked."""

    def __init__(self, models: dict[str, nn.Module]) -> None:
        self.count = 0
        self.handles = [model.register_forward_hook(self.add) for model in models.values()]

    def add(self, *_: object) -> None:
        self.count += 1

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models, data, tools, accelerator) -> tuple[Path, list[Record]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, evaluate(models, data, tools, SETTINGS, accelerator, folder)


def of(records: list[Record], model: str, attack: str) -> list[Record]:
    return [record for record in records if (record.model, record.attack) == (model, attack)]


def test_every_pair_has_a_record_per_example(finished, models):
    _, records = finished
    for model in models:
        assert [r.id for r in of(records, model, "none")] == list(range(100, 140))
        assert [r.id for r in of(records, model, "gat")] == list(range(12))
        assert {r.source for r in of(records, model, "gat")} == {"generated"}
        assert len({r.id for r in of(records, model, "pgd-linf")}) == 20
    ids = {(m, a): [r.id for r in of(records, m, a)] for m in models for a in ("pgd-linf", "fgsm")}
    assert len({tuple(v) for v in ids.values()}) == 1  # the same choice for every model and attack
    assert [r.label for r in of(records, "gat", "gat")] == [i % 3 for i in range(12)]


def test_clean_records_are_plain_accuracy(finished, models, data):
    _, records = finished
    for name, model in models.items():
        with torch.no_grad():
            logits = model(data.images)
        clean = of(records, name, "none")
        assert [r.prediction for r in clean] == logits.argmax(1).tolist()
        assert [r.label for r in clean] == data.labels.tolist()
        assert [r.loss for r in clean] == pytest.approx(
            TASK.loss(logits, data.labels).tolist(), rel=1e-4, abs=1e-5
        )
        right = (logits.argmax(1) == data.labels).float().mean()
        assert sum(r.correct for r in clean) / len(clean) == pytest.approx(float(right))
        assert 0 < right < 1  # or the tests below would show nothing
        assert not any(r.success or r.iterations or r.backwards or r.distances["linf_pixels"] for r in clean)


@pytest.mark.parametrize("attack", ATTACKS)
def test_wrong_examples_are_not_attacked_and_count_as_wrong(finished, attack):
    _, records = finished
    wrong = [r for r in of(records, "original", attack) if r.clean_prediction != r.label]
    assert wrong
    for record in wrong:
        assert not record.correct
        assert not record.success
        assert record.iterations == record.backwards == 0
        assert record.prediction == record.clean_prediction
        assert record.distances["linf_pixels"] == 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_success_is_a_right_answer_turned_wrong(finished, attack):
    _, records = finished
    attacked = [r for r in of(records, "original", attack) if r.clean_prediction == r.label]
    assert any(r.success for r in attacked)
    for record in attacked:
        assert record.success == (record.prediction != record.label)
        assert record.correct == (not record.success)
        assert record.iterations >= 1 or record.success
        assert record.backwards <= record.forwards


def test_bounds_hold_on_every_record(finished):
    _, records = finished
    for record in records:
        eps = {"pgd-linf": 0.02, "fgsm": 0.01, "none": 0.0}.get(record.attack)
        assert eps is None or record.distances["linf_pixels"] <= eps + 1e-6


def test_the_oracle_is_asked_before_and_after(finished, tools, data):
    _, records = finished
    reads = tools.oracle(data.images).argmax(1).tolist()
    for record in of(records, "original", "none"):
        assert record.oracle == record.oracle_clean == reads[record.id - 100]
    assert all(record.oracle is not None for record in records)


def test_a_second_call_repeats_nothing(finished, models, data, tools, accelerator):
    folder, records = finished
    times = {path: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}
    assert len(times) == 2 * 4
    with Calls(models) as calls:
        again = evaluate(models, data, tools, SETTINGS, accelerator, folder)
    assert calls.count == 0
    assert again == records == read_records(folder / "records.jsonl")
    assert {path: path.stat().st_mtime_ns for path in (folder / "records").iterdir()} == times


def test_a_lost_part_comes_back_the_same_and_alone(finished, models, data, tools, accelerator):
    folder, records = finished
    lost = next(folder.glob("records/gat--pgd-linf--*.jsonl"))
    text = lost.read_text()
    lost.unlink()
    other = {"original": models["original"]}
    with Calls(other) as calls:
        again = evaluate(models, data, tools, SETTINGS, accelerator, folder)
    assert calls.count == 0
    assert lost.read_text() == text
    assert again == records


def test_other_weights_or_settings_are_measured_anew(finished, models, data, tools, accelerator, tmp_path):
    only = {"original": models["original"]}
    settings = EvaluationSettings(attacks={"fgsm": FGSM(eps=0.01)}, num_real=5, width=8)
    evaluate(only, data, tools, settings, accelerator, tmp_path)
    first = set(tmp_path.glob("records/*"))
    assert len(first) == 2
    for change in ({"num_real": 6}, {"seed": 7}, {"attacks": {"fgsm": FGSM(eps=0.02)}}):
        evaluate(only, data, tools, settings.model_copy(update=change), accelerator, tmp_path)
    assert len(set(tmp_path.glob("records/original--fgsm--*"))) == 4
    retrained = {"original": conv_classifier(seed=77).eval()}
    evaluate(retrained, data, tools, settings, accelerator, tmp_path)
    assert len(set(tmp_path.glob("records/original--fgsm--*"))) == 5


def test_an_attack_on_latents_without_a_generator_is_refused(models, data, accelerator, tmp_path):
    with pytest.raises(ValueError, match="attack 'gat' moves a generator's latents"):
        evaluate(models, data, Tools(TASK), SETTINGS, accelerator, tmp_path)


def test_the_width_of_the_batch_changes_no_verdict(finished, models, data, tools, accelerator, tmp_path):
    _, records = finished
    narrow = evaluate(models, data, tools, SETTINGS.model_copy(update={"width": 3}), accelerator, tmp_path)
    for one, other in zip(records, narrow, strict=True):
        assert (one.id, one.prediction, one.success, one.iterations) == (
            other.id, other.prediction, other.success, other.iterations,
        )  # fmt: skip


def test_protocol_ids_differ_where_settings_differ():
    variants = [
        PGD(), PGD(eps=0.1), PGD(steps=21), PGD(norm="l2"), PGD(restarts=2), PGD(random_start=False), PGD(seed=1),
        FGSM(), FGSM(eps=0.1), LatentAttack(), LatentAttack(move="style"), LatentAttack(eps={"*": 1.0}),
        LatentAttack(step_size={"*": 0.1}), LatentAttack(max_steps=9), LatentAttack(unit="absolute"),
    ]  # fmt: skip
    ids = [protocol_id(attack) for attack in variants]
    assert len(set(ids)) == len(ids)
    assert protocol_id(PGD()) == protocol_id(PGD(eps=8 / 255))
    assert all(name.split("-")[0] == attack.name for name, attack in zip(ids, variants, strict=True))


def test_protocols_name_their_bounds_and_all_settings(finished):
    found = protocols(SETTINGS)
    assert {r.protocol for r in finished[1]} == {"", *found}
    assert found[protocol_id(ATTACKS["pgd-linf"])]["bounds"] == {"linf_pixels": 0.02}
    assert found[protocol_id(ATTACKS["fgsm"])]["bounds"] == {"linf_pixels": 0.01}
    assert "bounds" not in found[protocol_id(ATTACKS["gat"])]
    assert found[protocol_id(ATTACKS["gat"])]["max_steps"] == 3
    json.dumps(found)


def test_records_survive_the_file(tmp_path, finished):
    _, records = finished
    write_records(tmp_path / "r.jsonl", records)
    assert read_records(tmp_path / "r.jsonl") == records
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize("bad", ["{", '{"model": "x"}', '{"colour": 1}', "[1]"])
def test_a_line_that_is_no_record_is_named(tmp_path, finished, bad):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(asdict(finished[1][0])) + "\n" + bad + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2: not a record"):
        read_records(path)


def test_the_gallery_shows_the_same_latents_everywhere(models, tools):
    settings = GallerySettings(attack=LatentAttack(max_steps=3), groups=("coarse", "fine"), num_examples=4)
    items = make_gallery(models, tools, settings)
    assert [(i.model, i.group, i.id) for i in items] == [
        (model, group, i) for model in models for group in settings.groups for i in range(4)
    ]
    for item in items:
        first = items[item.id]
        assert torch.equal(item.original, first.original)
        assert item.label == first.label
        assert [panel.kind for panel in item.panels] == ["noise", "style"]
        for panel in item.panels:
            answer = int(models[item.model](panel.image[None]).argmax())
            assert panel.prediction == answer
            assert panel.success == (item.prediction == item.label != answer)
            assert panel.oracle == int(tools.oracle(panel.image[None]).argmax())
    assert make_gallery(models, tools, settings)[3].panels[0].iterations == items[3].panels[0].iterations
    with pytest.raises(ValueError, match="gallery needs a generator"):
        make_gallery(models, Tools(TASK), settings)


def test_other_tools_are_measured_anew(models, data, tools, accelerator, tmp_path):
    only = {"original": models["original"]}
    settings = SETTINGS.model_copy(update={"attacks": {"gat": ATTACKS["gat"]}})
    first = evaluate(only, data, tools, settings, accelerator, tmp_path)
    other = replace(tools, generator=tiny_space("resnet"), identity="another")
    second = evaluate(only, data, other, settings, accelerator, tmp_path)
    losses = [[r.loss for r in of(records, "original", "gat")] for records in (first, second)]
    assert losses[0] != losses[1]
