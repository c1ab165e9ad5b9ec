import json
import math
from dataclasses import replace

import pytest

from gat.report.checks import Doubt, bounds_of, check
from gat.report.folder import RunFolder, read_run
from gat.report.gallery import Gallery
from gat.report.statistics import Column


@pytest.fixture(scope="module")
def healthy(draw_records):
    """Records that nothing can be said against."""
    records = []
    n = 600
    for model, gat, pgd in (("original", 1.0, 1.0), ("gat", 0.2, 0.4)):
        records += draw_records(model, "none", "test-split", "real", 0.0, n)
        records += draw_records(model, "gat", "paper-10", "generated", gat, n)
        records += draw_records(model, "pgd-linf-8/255", "strict-20", "real", pgd, n)
    return [replace(record, oracle=record.label) for record in records]


def doubts(records, **more) -> list[Doubt]:
    return check(RunFolder("x", records=tuple(records), **more))


def only(found: list[Doubt], words: str) -> Doubt:
    matching = [doubt for doubt in found if words in doubt.text]
    assert len(matching) == 1, [doubt.text for doubt in found]
    return matching[0]


def test_a_healthy_run_raises_no_doubt(healthy):
    assert doubts(healthy) == []


@pytest.mark.parametrize(
    "attack, protocol, bounds",
    [
        ("pgd-linf-8/255", "p", {"linf_pixels": 8 / 255}),
        ("pgd-l2-0.5", "p", {"l2_pixels": 0.5}),
        ("pgd", "linf=0.03-20it", {"linf_pixels": 0.03}),
        ("gat", "paper-eps0.05", {}),
        ("pgd-linf-8/255", "stated", {"linf_pixels": 0.1, "l2_style": 2.0}),
    ],
)
def test_bounds_are_read_off_names_and_statements(attack, protocol, bounds):
    statements = {"stated": {"bounds": {"linf_pixels": 0.1, "l2_style": 2}}}
    assert bounds_of(Column(attack, protocol, "real"), statements) == pytest.approx(bounds)


def test_a_picture_beyond_its_bound_is_wrong(healthy):
    records = list(healthy)
    index = next(i for i, record in enumerate(records) if record.attack.startswith("pgd"))
    for distance in (0.05, math.nan):
        changed = list(records)
        changed[index] = replace(records[index], distances={"linf_pixels": distance})
        assert only(doubts(changed), "beyond the bound linf_pixels").level == "wrong"


def test_a_picture_on_its_bound_is_right(healthy):
    records = [replace(r, distances={"linf_pixels": 8 / 255 + 1e-7} if r.distances else {}) for r in healthy]
    assert doubts(records) == []


def test_an_attack_that_never_fools_the_undefended_model_is_wrong(healthy):
    records = [
        replace(r, success=False, prediction=r.clean_prediction)
        if (r.model, r.attack) == ("original", "gat")
        else r
        for r in healthy
    ]
    assert only(doubts(records), "not one success").level == "wrong"


def test_an_attack_that_never_fools_the_trained_model_is_no_such_doubt(healthy):
    records = [
        replace(r, success=False, prediction=r.clean_prediction)
        if (r.model, r.attack) == ("gat", "gat")
        else r
        for r in healthy
    ]
    assert not [doubt for doubt in doubts(records) if "not one success" in doubt.text]


def test_few_examples_are_said_to_be_few(healthy):
    doubt = only(doubts([r for r in healthy if r.id < 60]), "Too few examples")
    assert doubt.level == "careful"
    assert "n = 60" in doubt.text


def test_accuracy_under_attack_above_clean_is_doubted(healthy):
    records = [
        replace(r, clean_prediction=r.label, prediction=r.label, success=False)
        if (r.model, r.attack) == ("gat", "gat")
        else r
        for r in healthy
    ]
    assert only(doubts(records), "is above the clean one").level == "careful"


def test_a_variant_that_beats_the_whole_is_doubted(draw_records, healthy):
    records = [r for r in healthy if r.attack != "gat"]
    for model in ("original", "gat"):
        records += draw_records(model, "gat", "p", "generated", 0.3, 600)
        records += draw_records(model, "gat-style", "p", "generated", 0.9, 600)
    found = [doubt for doubt in doubts(records) if "which may move more" in doubt.text]
    assert len(found) == 2


def test_different_protocols_are_said_not_to_compare(healthy):
    records = [replace(r, protocol="other") if (r.model, r.attack) == ("gat", "gat") else r for r in healthy]
    assert only(doubts(records), "different protocols").level == "careful"


@pytest.mark.parametrize("lost, level", [(40, "careful"), (2, "note")])
def test_a_loss_of_clean_accuracy_is_told_from_chance(lost, level, healthy):
    records = []
    for r in healthy:
        if (r.model, r.attack) == ("gat", "none") and r.id < lost:
            r = replace(r, clean_prediction=(r.label + 1) % 3, prediction=(r.label + 1) % 3)
        records.append(r)
    assert only(doubts(records), "worse than Original on clean images").level == level


@pytest.mark.parametrize("every, level", [(2, "careful"), (50, "note")])
def test_pictures_the_oracle_rejects_are_counted(every, level, healthy):
    records = [
        replace(r, oracle=(r.label + 1) % 3) if r.success and r.id % every == 0 else r for r in healthy
    ]
    assert only(doubts(records), "no longer reads the label").level == level


def test_a_poor_oracle_is_no_judge(healthy):
    records = [replace(r, oracle_clean=(r.label + 1) % 3) if r.id % 5 == 0 else r for r in healthy]
    assert "80.0%" in only(doubts(records), "poor judge").text


def test_a_run_without_an_oracle_says_so(healthy):
    records = [replace(r, oracle=None, oracle_clean=None) for r in healthy]
    assert only(doubts(records), "No independent oracle").level == "careful"


def test_repeated_and_contradictory_records_are_wrong(healthy):
    records = list(healthy)
    assert only(doubts([*records, records[0]]), "more than once").level == "wrong"
    flipped = [replace(records[0], success=True), *records[1:]]
    assert only(doubts(flipped), "contradicts the predictions").level == "wrong"


def test_losses_that_are_not_finite_are_wrong(healthy):
    records = list(healthy)
    records[3] = replace(records[3], loss=math.nan)
    metrics = ({"step": 0, "loss": 1.0}, {"step": 5, "loss": math.nan}, {"step": 9, "loss": math.inf})
    found = doubts(records, metrics=metrics)
    assert only(found, "loss or distance of 1 record is").level == "wrong"
    assert only(found, "loss was not finite at 2 of 3 reports, first at step 5").level == "wrong"


def test_one_model_alone_has_nothing_to_compare_to(healthy):
    records = [r for r in healthy if r.model == "original"]
    assert only(doubts(records), "Only one model").level == "note"


def test_missing_clean_records_are_missed(healthy):
    assert only(doubts([r for r in healthy if r.attack != "none"]), "No clean accuracy").level == "careful"


def test_a_gallery_of_successes_only_says_so(draw_items, classes, healthy):
    items = tuple(replace(i, panels=tuple(replace(p, success=True) for p in i.panels)) for i in draw_items())
    assert only(doubts(healthy, gallery=Gallery(items, classes, 0)), "happen to be successes").level == "note"


def test_missing_files_come_before_notes_and_damaged_ones_first(run):
    (run / "metrics.jsonl").unlink()
    (run / "records.jsonl").write_text('{"model": "original"}\n')
    found = check(read_run(run))
    assert [doubt.level for doubt in found] == ["wrong", "careful"]
    assert "records.jsonl cannot be read" in found[0].text
    assert "line 1" in found[0].text
    assert "metrics.jsonl is missing" in found[1].text


@pytest.mark.parametrize(
    "name, content",
    [
        ("gallery.json", "{"),
        ("gallery.npz", "nonsense"),
        ("config.yaml", "a: [1"),
        ("provenance.json", "[]"),
        ("metrics.jsonl", '{"step": 1}\nnot json\n{"step": 2}\n'),
        ("records.jsonl", ""),
    ],
)
def test_every_damaged_file_is_named_and_the_others_are_read(run, name, content):
    (run / name).write_text(content)
    folder = read_run(run)
    assert len(folder.problems) == 1
    assert name in folder.problems[0].text
    assert not folder.problems[0].missing


def test_metrics_of_a_run_that_was_stopped_in_the_middle_of_a_line_are_read(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "lo')
    folder = read_run(run)
    assert len(folder.metrics) == 20
    assert folder.problems == ()


def test_seeds_classes_and_task_are_found(run, classes):
    folder = read_run(run)
    assert (folder.seeds, folder.classes, folder.task) == ([3], classes, "hats")
    (run / "provenance.json").write_text(json.dumps({"classes": ["a", "b"]}))
    folder = read_run(run)
    assert (folder.seeds, folder.classes) == ([3], ("a", "b"))


def test_training_curves_are_also_found_by_stage(run):
    (run / "metrics.jsonl").unlink()
    for stage in ("original", "gat"):
        (run / "training" / stage).mkdir(parents=True)
        (run / "training" / stage / "metrics.jsonl").write_text(
            json.dumps({"stage": stage, "step": 1, "loss": 1.0}) + "\n"
        )
    folder = read_run(run)
    assert folder.problems == ()
    assert [row["stage"] for row in folder.metrics] == ["original", "gat"]


def test_seeds_are_those_of_the_training_and_data_names_the_task(run):
    provenance = {"seeds": {"training": 4, "evaluation": 1}, "data": {"name": "gloves", "train": 10}}
    (run / "provenance.json").write_text(json.dumps(provenance))
    folder = read_run(run)
    assert (folder.seeds, folder.task) == ([4], "gloves")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds none of records\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read_run(tmp_path / "nowhere")
