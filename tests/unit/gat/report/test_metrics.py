import json
import math

import pytest

from gat.evaluation.records import Record, read_records
from gat.report.finding import scene_finding
from gat.report.metric_checks import check_metrics
from gat.report.metric_tables import all_metrics_table, metric_rows, metric_table, pixel_class_table
from gat.report.metrics import inline, overlap, read_metrics, shown, shown_interval
from gat.report.statistics import Column, Estimate, by_cell
from gat.report.tables import to_latex, to_markdown


@pytest.fixture
def read(tmp_path, draw_metrics, scene_values):
    """Metrics of these values, after changes to what the file says."""

    def make(task="segmentation", change=lambda content: None, **values):
        cells = scene_values | {tuple(name.split("__")): value for name, value in values.items()}
        content = draw_metrics(task, cells)
        change(content)
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        return read_metrics(tmp_path / "metrics.json")

    return make


def test_metrics_read_back_as_they_were_written(read):
    metrics = read()
    assert (metrics.task, metrics.headline, metrics.names) == (
        "segmentation",
        "pixel_accuracy",
        ["pixel_accuracy", "miou"],
    )
    assert metrics.models == ["original", "gat"]
    assert [column.attack for column in metrics.columns] == ["none", "gat", "pgd-linf"]
    row = metrics.row("gat", Column("gat", "strict-gat", "generated"))
    estimate = row.metrics["miou"]
    assert (estimate.value, estimate.n) == (0.415, 40)
    assert (estimate.low, estimate.high) == (pytest.approx(0.395), pytest.approx(0.435))
    assert (row.score.before, row.score.after, row.oracle.after) == (0.93, 0.83, 0.84)
    assert metrics.row("gat", Column("gat", "paper", "generated")) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("headline"),
        lambda content: content.update(headline="ap"),
        lambda content: content.update(rows=[]),
        lambda content: content.update(rows=3),
        lambda content: content["rows"][0].update(model=3),
        lambda content: content["rows"][0].update(n="40"),
        lambda content: content["rows"][0].update(metrics={"pixel_accuracy": 0.5}),
        lambda content: content["rows"][0].update(oracle={"before": 0.5}),
    ],
)
def test_damaged_metrics_are_refused_by_name(read, change):
    with pytest.raises(ValueError, match=r"metrics\.json"):
        read(change=change)


def test_average_precision_is_printed_as_it_is_by_convention():
    assert shown("pixel_accuracy", 0.784) == "78.4%"
    assert shown("ap", 0.402) == "40.2"
    assert shown("ap50", math.nan) == "–"
    assert shown_interval("miou", Estimate(0.5, 0.41, 0.6, 3)) == "41.0–60.0%"
    assert shown_interval("ap", Estimate(0.5, 0.41, 0.6, 3)) == "41.0–60.0"
    assert shown_interval("ap", Estimate(0.5, math.nan, math.nan, 3)) == ""
    assert (inline("pixel_accuracy"), inline("ap75"), inline("boundary_iou")) == (
        "pixel accuracy",
        "AP75",
        "boundary_iou",
    )


def test_intervals_overlap_when_they_share_a_value():
    low, high, far = Estimate(0.5, 0.4, 0.6, 9), Estimate(0.7, 0.6, 0.8, 9), Estimate(0.9, 0.81, 1, 9)
    assert overlap(low, high)
    assert overlap(high, low)
    assert not overlap(low, far)
    assert not overlap(far, low)


def test_the_headline_table_has_models_down_and_attacks_across(read):
    table = metric_table(read(), seen=lambda model, column: (model, column.attack) == ("gat", "gat"))
    assert table.header == (
        "Model",
        "Clean",
        "GAT [strict-gat]",
        "PGD L∞ [strict-pgd-linf]",
    )
    assert table.rows[0] == (
        "Original",
        "91.0% (89.0–93.0%; n = 40)",
        "4.0% (2.0–6.0%; n = 40)",
        "21.0% (19.0–23.0%; n = 40)",
    )
    assert table.rows[1][2] == "83.0% (81.0–85.0%; n = 40) †"
    print_ = metric_table(read("detection"), compact=True)
    assert print_.rows[0] == ("Original", "91.0", "4.0", "21.0")
    assert "4.0 & 21.0" in to_latex(print_)


def test_the_full_table_tells_before_and_after(read, build_scenes, tmp_path):
    run = build_scenes(tmp_path / "run", "segmentation")
    cells = by_cell(read_records(run / "records.jsonl"))
    table = all_metrics_table(read(), cells)
    row = dict(zip(table.header, table.rows[2], strict=True))
    assert row["Attack"], row["Model"] == ("GAT", "Original")
    assert row["Pixel accuracy"] == "4.0% (2.0–6.0%)"
    assert row["Mean IoU"] == "2.0% (0.0–4.0%)"
    assert row["Pixel accuracy per image"] == "93.0% → 4.0%"
    assert row["Oracle"] == "88.0% → 84.0%"
    assert row["Fooled"] == "38 of 40"
    assert len(table.rows) == 6
    assert to_markdown(table).count("\n") == 7


def test_result_rows_have_the_format_of_the_results_folder(read):
    rows = metric_rows(read(), [1, 2])
    (row,) = [r for r in rows if (r["model"], r["attack"], r["metric"]) == ("gat", "gat", "pixel_accuracy")]
    assert row == {
        "task": "segmentation",
        "model": "gat",
        "attack": "gat",
        "protocol": "strict-gat",
        "source": "generated",
        "metric": "pixel_accuracy",
        "value": 0.83,
        "low": pytest.approx(0.81),
        "high": pytest.approx(0.85),
        "n": 40,
        "seeds": [1, 2],
    }
    clean = {r["metric"] for r in rows if r["attack"] == "clean"}
    assert clean == {"pixel_accuracy", "miou", "score", "oracle_score"}
    attacked = {r["metric"] for r in rows if r["attack"] == "gat"}
    assert attacked == clean | {"score_before", "oracle_score_before"}


def test_intersection_over_union_per_class_comes_from_the_evidence(read, build_scenes, tmp_path):
    run = build_scenes(tmp_path / "run", "segmentation")
    cells, metrics = by_cell(read_records(run / "records.jsonl")), read()
    table = pixel_class_table(metrics, cells, ["original"], metrics.columns[:1], ("sky", "boot", "floor"))
    # Confusions of every image: 30 right of 30; 10 right of 20; 14 of 14, and 10 others taken for it.
    assert table.rows == (("sky", "100.0%"), ("boot", "50.0%"), ("floor", f"{14 / 24:.1%}"))
    assert table.header == ("Class", "Original: Clean")
    assert pixel_class_table(metrics, {}, ["original"], metrics.columns, ()) is None


def test_the_oracle_stands_beside_the_models_class_by_class(read):
    metrics = read()
    about = {"evidence": [[0, 0, 5]], "oracle_evidence": [[0, 0, 2], [0, 1, 3]]}
    record = Record("original", "none", "", "real", 0, 1, 1, 1, False, **about)
    table = pixel_class_table(metrics, by_cell([record]), ["original"], metrics.columns, ("sky",))
    assert table.header == ("Class", "Original: Clean", "Oracle: Clean")
    assert table.rows == (("sky", "100.0%", "40.0%"),)


def test_what_the_oracle_still_reads_is_told_where_the_labels_are_pixels(read):
    def tell(content):
        content["rows"][1]["shown"] = {"before": 0.97, "after": 0.89}

    plain, told = all_metrics_table(read(), {}), all_metrics_table(read(change=tell), {})
    assert set(told.header) - set(plain.header) == {"Where it reads"}
    assert [row[told.header.index("Where it reads")] for row in told.rows].count("97.0% → 89.0%") == 1
    (row,) = (r for r in metric_rows(read(change=tell), []) if r["metric"] == "shown_score")
    assert row["value"] == 0.89


def test_a_class_that_is_answered_but_never_labelled_has_no_row(read):
    metrics = read()
    record = Record("original", "none", "", "real", 0, 1, 1, 1, False, evidence=[[0, 0, 5], [0, 3, 5]])
    table = pixel_class_table(metrics, by_cell([record]), ["original"], metrics.columns[:1], ())
    assert table.rows == (("class 0", "50.0%"),)


def texts(metrics) -> list[str]:
    return [f"{doubt.level}: {doubt.text}" for doubt in check_metrics(metrics)]


def only(found: list[str], words: str) -> str:
    matching = [text for text in found if words in text]
    assert len(matching) == 1, found
    return matching[0]


def test_healthy_metrics_raise_no_doubt_but_what_the_oracle_lost(read):
    (found,) = texts(read())
    assert found.startswith("note: After the attack the oracle reads the layout on 84.0%")


def test_an_oracle_that_is_blind_to_some_classes_is_told(read):
    def reads(value):
        def change(content):
            for row in content["rows"]:
                row["oracle_metrics"] = {"pixel_accuracy": 0.9, "mean_class_accuracy": value}

        return texts(read(change=change))

    assert "55.0% of a class's pixels" in only(reads(0.55), "blind to some classes")
    assert len(reads(0.7)) == 1


def test_an_attack_that_changes_nothing_on_the_undefended_model_is_wrong(read):
    found = only(texts(read(original__gat=0.93)), "probably broken")
    assert found.startswith("wrong: Original, GAT [strict-gat]")
    assert not [text for text in texts(read(gat__gat=0.95)) if "broken" in text]


def test_a_trained_model_that_the_attack_helps_is_doubted(read):
    found = only(texts(read(gat__gat=0.95)), "learnt to read the attack")
    assert found.startswith(
        "careful: GAT-trained, GAT [strict-gat]: the mean score per image is 93.0% before"
    )
    for value in (0.93, 0.9):
        assert not [text for text in texts(read(gat__gat=value)) if "learnt" in text]


def test_a_lower_clean_value_is_told_with_its_weight(read):
    assert only(texts(read(gat__none=0.90)), "worse than").startswith("note")
    assert only(texts(read(gat__none=0.80)), "−11.0 points").startswith("careful")


def test_wide_intervals_unasked_and_poor_oracles_are_told(read):
    def widen(content):
        content["rows"][1]["metrics"]["pixel_accuracy"]["high"] = 0.4

    assert "Original, GAT" in only(texts(read(change=widen)), "Too few images")

    def silence(content):
        for row in content["rows"]:
            row["oracle"] = None

    assert only(texts(read(change=silence)), "No independent oracle").startswith("careful")

    def blur(content):
        content["rows"][1]["oracle"] = {"before": 0.6, "after": 0.3}

    found = texts(read(change=blur))
    assert "60.0%" in only(found, "poor judge")
    assert only(found, "may no longer show").startswith("careful")


def test_a_number_that_is_none_is_wrong(read):
    def lose(content):
        content["rows"][0]["metrics"]["miou"]["value"] = None

    assert only(texts(read(change=lose)), "is not finite").startswith("wrong: Original, Clean")


def test_the_finding_compares_what_was_measured(read):
    assert scene_finding(read()) == (
        "Pictures drawn to fool it take the pixel accuracy of the original segmenter from 91.0% on clean images to 4.0%; the "
        "GAT-trained one keeps 83.0%; on clean images it has 92.0%, against 91.0% (+1.0 points, within the intervals)."
    )
    assert "from 91.0 on clean images to 4.0; the GAT-trained one keeps 83.0" in scene_finding(
        read("detection")
    )
    assert "at 6.0%, is not clearly better" in scene_finding(read(gat__gat=0.06))
    assert "does no better, at 0.0%" in scene_finding(read(gat__gat=0.0, original__gat=0.3))


def test_the_finding_says_what_the_start_was_where_that_is_known(read):
    def start(content):
        content["rows"][1]["clean_metrics"] = {"pixel_accuracy": {"value": 0.885, "low": 0.86, "high": 0.9}}

    assert "from 88.5% to 4.0%" in scene_finding(read(change=start))


def test_the_finding_says_no_more_than_there_is(read):
    def keep(*attacks):
        def change(content):
            content["rows"] = [
                r for r in content["rows"] if r["attack"] in attacks and r["model"] == "original"
            ]

        return change

    assert scene_finding(None).startswith("There are no metrics")
    assert scene_finding(read(change=keep("none"))) == (
        "On clean images the original segmenter has pixel accuracy 91.0%; no attack was run."
    )
    assert scene_finding(read(change=keep("pgd-linf"))) == (
        "PGD L∞ attacks leave the original segmenter with pixel accuracy 21.0%."
    )
