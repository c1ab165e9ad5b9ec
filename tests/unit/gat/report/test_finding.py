import pytest

from gat.report.finding import compared_model, finding
from gat.report.statistics import by_cell


@pytest.fixture
def clean(draw_records):
    return draw_records("original", "none", "t", "real", 0.0)


@pytest.fixture
def attacked(draw_records):
    return draw_records("original", "gat", "p", "generated", 1.0)


def test_the_whole_story_is_one_sentence_of_the_numbers(draw_records, clean, attacked):
    records = [
        *clean,
        *attacked,
        *draw_records("gat", "none", "t", "real", 0.0),
        *draw_records("gat", "gat", "p", "generated", 0.2),
    ]
    before = sum(record.clean_prediction == record.label for record in clean) / 60
    kept = sum(record.correct for record in records[-60:]) / 60
    assert finding(by_cell(records)) == (
        f"Pictures drawn to fool it take the original classifier from {before:.1%} to 0.0%; the GAT-trained one "
        f"keeps {kept:.1%}; on clean images it scores {before:.1%}, against {before:.1%} (0.0 points, within chance)."
    )


def test_a_training_that_did_not_help_is_not_praised(attacked, draw_records):
    records = [*attacked, *draw_records("gat", "gat", "p", "generated", 1.0)]
    assert finding(by_cell(records)).endswith("the GAT-trained one, at 0.0%, is not clearly better.")
    worse = [
        *draw_records("original", "gat", "p", "generated", 0.2),
        *draw_records("gat", "gat", "p", "generated", 1.0),
    ]
    assert finding(by_cell(worse)).endswith("the GAT-trained one does no better, at 0.0%.")


def test_less_is_said_where_less_was_measured(clean, attacked):
    assert "no attack was run" in finding(by_cell(clean))
    assert finding(by_cell(attacked)).endswith("to 0.0%.")
    assert "no records" in finding({})


def test_another_attack_is_called_by_its_name(draw_records):
    records = draw_records("original", "pgd-linf-8/255", "p", "real", 1.0)
    assert finding(by_cell(records)).startswith("PGD L∞ 8/255 attacks take the original classifier from")


def test_the_trained_model_is_gat_or_the_first_other():
    assert compared_model(["original", "pgd", "gat"]) == "gat"
    assert compared_model(["original", "pgd"]) == "pgd"
    assert compared_model(["gat"]) is None
