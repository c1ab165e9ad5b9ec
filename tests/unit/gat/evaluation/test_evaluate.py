"""Records: what they say is true, none is made twice, and a lost part comes back the same."""

import gzip
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gat.attacks import FGSM, PGD, LatentAttack, WorstOf
from gat.evaluation.evaluate import evaluate
from gat.evaluation.gallery import GallerySettings, make_gallery, pictures_of
from gat.evaluation.judge import read_pictures
from gat.evaluation.plan import EvaluationSettings, at_scale, cells, fingerprint, protocol_id, protocols
from gat.evaluation.records import (
    Record,
    archive_records,
    budget,
    control,
    controlled,
    read_records,
    write_records,
)
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
    assert sum(path.suffix == ".jsonl" for path in times) == 2 * 4
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
    assert len(set(tmp_path.glob("records/*.jsonl"))) == 2
    for change in ({"num_real": 6}, {"seed": 7}, {"attacks": {"fgsm": FGSM(eps=0.02)}}):
        evaluate(only, data, tools, settings.model_copy(update=change), accelerator, tmp_path)
    assert len(set(tmp_path.glob("records/original--fgsm--*.jsonl"))) == 4
    retrained = {"original": conv_classifier(seed=77).eval()}
    evaluate(retrained, data, tools, settings, accelerator, tmp_path)
    assert len(set(tmp_path.glob("records/original--fgsm--*.jsonl"))) == 5


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


def test_an_archive_holds_attacked_images_of_every_seed_and_is_the_same_again(tmp_path, finished):
    _, records = finished
    for name in ("a.gz", "b.gz"):
        (tmp_path / name).mkdir()
        archive_records(tmp_path / name / "r.gz", ((seed, r) for seed in (3, 5) for r in records))
    packed = [(tmp_path / name / "r.gz").read_bytes() for name in ("a.gz", "b.gz")]
    assert packed[0] == packed[1]
    rows = [json.loads(line) for line in gzip.decompress(packed[0]).splitlines()]
    attacked = [replace(r, distances={}, loss=round(r.loss, 4)) for r in records if r.attack != "none"]
    assert [row.pop("seed") for row in rows] == [3] * len(attacked) + [5] * len(attacked)
    assert [Record(**row) for row in rows] == attacked * 2
    assert 0 < len(attacked) < len(records)


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


SMALL = SETTINGS.model_copy(
    update={"width": 2, "attacks": {"pgd-linf": ATTACKS["pgd-linf"]}}
)  # 5 parts of 4 images


class SecondOfTwo(Accelerator):
    process_index = 1
    num_processes = 2
    is_main_process = False


class StopError(RuntimeError):
    pass


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_killed_evaluation_repeats_at_most_the_part_it_was_in(
    models, data, tools, accelerator, tmp_path, share
):
    only = {"gat": models["gat"]}
    settings = SMALL.model_copy(update={"num_clean": 1})
    reference = evaluate(only, data, tools, settings, accelerator, tmp_path / "whole")
    with Calls(only) as calls:
        evaluate(only, data, tools, settings, accelerator, tmp_path / "counted")

    def stop(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StopError

    left = int(share * calls.count)
    handle = models["gat"].register_forward_hook(stop)
    try:
        with pytest.raises(StopError):
            evaluate(only, data, tools, settings, accelerator, tmp_path / "killed")
    finally:
        handle.remove()
    (parts,) = [path for path in (tmp_path / "killed" / "records").iterdir() if path.is_dir()]
    finished = sorted(path.name for path in parts.glob("*.jsonl"))
    assert "gat--pgd-linf" in parts.name
    if share == 0.5:  # a change of width starts the cell anew, and mixes nothing
        wider = tmp_path / "wider"
        shutil.copytree(tmp_path / "killed", wider)
        other = settings.model_copy(update={"width": 3})
        again = evaluate(only, data, tools, other, accelerator, wider)
        assert [(r.id, r.prediction) for r in again] == [(r.id, r.prediction) for r in reference]
        assert not [path for path in (wider / "records").iterdir() if path.is_dir()]
    with Calls(only) as resumed:
        records = evaluate(only, data, tools, settings, accelerator, tmp_path / "killed")
    assert records == reference
    # What is repeated is less than one part of five.
    assert resumed.count <= (1 - share) * calls.count + calls.count / 4
    assert bool(finished) == (share > 0.2)
    assert not parts.exists()


def test_the_share_of_one_process_is_taken_up_by_another_number_of_processes(
    models, data, tools, accelerator, tmp_path
):
    only = {"gat": models["gat"]}
    reference = evaluate(only, data, tools, SMALL, accelerator, tmp_path / "one")
    with pytest.raises(FileNotFoundError):  # it does not merge: that is for the first, which is not there
        evaluate(only, data, tools, SMALL, SecondOfTwo(cpu=True), tmp_path / "two")
    parts = sorted(path.name for path in (tmp_path / "two" / "records").glob("gat--pgd*/*.jsonl"))
    assert parts == ["00001.jsonl", "00003.jsonl"]
    assert evaluate(only, data, tools, SMALL, accelerator, tmp_path / "two") == reference
    one, two = (next((tmp_path / name / "records").glob("gat--pgd*.jsonl")) for name in ("one", "two"))
    assert one.read_text() == two.read_text()


def test_names_say_what_is_a_control_and_at_which_budget():
    assert control("pgd-linf-8/255-long") == "long"
    assert controlled("pgd-linf-8/255-long") == "pgd-linf-8/255"
    assert [control(name) for name in ("random", "pgd-linf", "gat-random-more", "fog-random")] == [
        None, None, None, "random",
    ]  # fmt: skip
    assert [budget(name) for name in ("pgd", "pgd@0.5", "a@b", "x@y@2")] == [
        ("pgd", 1.0), ("pgd", 0.5), ("a@b", 1.0), ("x@y", 2.0),
    ]  # fmt: skip


def test_budgets_multiply_the_bound_and_leave_controls_alone(models, data, tools, accelerator, tmp_path):
    attacks = {"pgd": PGD(eps=0.02, steps=2), "pgd-long": PGD(eps=0.02, steps=4), "gat": ATTACKS["gat"]}
    settings = SETTINGS.model_copy(update={"attacks": attacks, "budgets": (0.5, 1.0, 2.0)})
    assert list(settings.plan()) == ["pgd", "pgd-long", "gat", "pgd@0.5", "pgd@2"]
    only = {"gat": models["gat"]}
    records = evaluate(only, data, tools, settings, accelerator, tmp_path)
    for name, bound in (("pgd@0.5", 0.01), ("pgd", 0.02), ("pgd@2", 0.04)):
        farthest = max(r.distances["linf_pixels"] for r in of(records, "gat", name))
        assert bound / 2 < farthest <= bound + 1e-6
    worst = at_scale(WorstOf(attacks=(PGD(eps=0.1), FGSM(eps=0.2))), 0.5)
    assert isinstance(worst, WorstOf)
    assert [attack.bounds["linf_pixels"] for attack in worst.attacks] == [0.05, 0.1]
    assert at_scale(LatentAttack(), 0.5) is None


def test_single_attacks_may_have_fewer_examples_which_are_among_the_others(
    models, data, tools, accelerator, tmp_path
):
    attacks = {"pgd": PGD(steps=1), "pgd-long": PGD(steps=2), "gat": ATTACKS["gat"]}
    settings = SETTINGS.model_copy(update={"attacks": attacks, "num": {"*-long": 7, "gat": 5}})
    records = evaluate({"gat": models["gat"]}, data, tools, settings, accelerator, tmp_path)
    few, many = ({r.id for r in of(records, "gat", name)} for name in ("pgd-long", "pgd"))
    assert len(few) == 7
    assert few < many
    assert len(of(records, "gat", "gat")) == 5


def test_kept_pictures_are_those_the_records_are_about(finished, models, data, tools):
    folder, records = finished
    wanted = cells(models, data, tools, SETTINGS, folder)
    for item in pictures_of(wanted, 3):
        (panel,) = item.panels
        record = next(r for r in of(records, item.model, item.group) if r.id == item.id)
        assert (item.label, panel.prediction, panel.success) == (
            record.label,
            record.prediction,
            record.success,
        )
        change = abs(panel.image - item.original).max()
        assert change == pytest.approx(record.distances["linf_pixels"], abs=1 / 255)
        if record.source == "real":
            assert item.original == pytest.approx(data.images[item.id - 100].numpy(), abs=0.6 / 255)
    shown = [(i.group, i.model, i.id) for i in pictures_of(wanted, 3)]
    assert len(shown) == 3 * len(models) * len(ATTACKS)
    assert len({tuple(i for g, m, i in shown if (g, m) == ("fgsm", model)) for model in models}) == 1


def test_images_made_for_one_model_are_shown_to_the_other(models, data, tools, accelerator, tmp_path):
    attacks = {"pgd": PGD(eps=0.1, steps=3), "fgsm": FGSM()}
    settings = SETTINGS.model_copy(update={"attacks": attacks, "transfer": "pgd"})
    records = evaluate(models, data, tools, settings, accelerator, tmp_path)
    made = {cell.model: cell for cell in cells(models, data, tools, settings, tmp_path) if cell.name == "pgd"}
    for mine, other in (("original", "gat"), ("gat", "original")):
        pictures = read_pictures(made[other].pictures)
        with torch.no_grad():
            answers = models[mine](torch.from_numpy(pictures["images"])).argmax(1).tolist()
        told = {r.id: r for r in of(records, mine, "pgd-transfer")}
        assert {i: r.prediction for i, r in told.items()} == dict(
            zip(pictures["ids"].tolist(), answers, strict=True)
        )
        assert all(
            r.success == (r.clean_prediction == r.label != r.prediction) and not r.backwards
            for r in told.values()
        )
        assert {r.protocol for r in told.values()} == {protocol_id(attacks["pgd"])}
    with pytest.raises(ValueError, match="transfer: 'cw' is no attack on images; on offer: pgd, fgsm"):
        evaluate(models, data, tools, settings.model_copy(update={"transfer": "cw"}), accelerator, tmp_path)


def test_another_name_for_the_same_settings_costs_nothing(
    finished, models, data, tools, accelerator, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    settings = SETTINGS.model_copy(update={"protocol": "strict"})
    with Calls(models) as calls:
        records = evaluate(models, data, tools, settings, accelerator, folder)
    assert calls.count == 0
    assert {r.protocol for r in records} == {"", *protocols(settings)}
    assert all(r.protocol.startswith("strict-") for r in records if r.attack != "none")


def test_what_was_asked_of_the_models_lies_beside_the_records(finished, models):
    probes = json.loads((finished[0] / "probes.json").read_text())
    assert probes == {
        model: {"random_outputs": 0.0, "probabilities": 0.0, "zero_gradients": 0.0} for model in models
    }


def test_evaluation_leaves_models_as_found(models, data, tools, accelerator, tmp_path):
    only = {"gat": models["gat"]}
    before, state = fingerprint(models["gat"]), torch.get_rng_state()
    evaluate(only, data, tools, SMALL, accelerator, tmp_path)
    assert fingerprint(models["gat"]) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in models["gat"].parameters())
