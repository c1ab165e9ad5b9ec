import math
import re
from xml.etree import ElementTree

import pytest

from gat.report.plots import flatten, survival_chart, to_png, to_svg, training_charts, training_series
from gat.report.statistics import proportion


@pytest.fixture
def curves():
    return {
        "original": [proportion(hits, 100) for hits in (97, 40, 3, 0)],
        "gat": [proportion(hits, 100) for hits in (96, 90, 85, 78)],
    }


def test_a_survival_chart_says_in_words_what_it_shows(curves):
    chart = survival_chart("GAT", curves, ["original", "gat"])
    assert "Original from 97.0% before the first step to 0.0% after 3" in chart.description
    assert "GAT-trained from 96.0% before the first step to 78.0% after 3" in chart.description


def test_a_model_keeps_its_colour_when_another_is_missing(curves):
    svg = to_svg(survival_chart("GAT", {"gat": curves["gat"]}, ["original", "gat"]).figure)
    assert "var(--series-1)" in svg
    assert "var(--series-0)" not in svg


def test_svg_is_well_formed_follows_the_page_and_repeats_no_id_across_charts(curves):
    models = ["original", "gat"]
    first = to_svg(survival_chart("GAT", curves, models).figure)
    second = to_svg(survival_chart("PGD", {"gat": curves["gat"]}, models).figure)
    ElementTree.fromstring(first)
    assert first.startswith("<svg ")
    assert not re.search(r"(fill|stroke): #", first)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", first)
    # Clip paths and markers are named by a hash of what they are, so that equal names are equal things.
    named = [
        dict(re.findall(r'<(?:path|clipPath) id="([^"]+)"(.*?)/?>', svg, re.DOTALL))
        for svg in (first, second)
    ]
    assert all(named[0][name] == named[1][name] for name in named[0].keys() & named[1].keys())


def test_drawing_is_deterministic(curves):
    first, second = (to_svg(survival_chart("GAT", curves, ["original", "gat"]).figure) for _ in range(2))
    assert first == second


def test_names_are_drawn_as_they_are():
    name = r"$\frac{1}{0}$ <script> & 衣"
    svg = to_svg(survival_chart("x", {name: [proportion(1, 2)] * 3}, [name]).figure)
    texts = [
        "".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    ]
    assert name in texts


def test_png_is_a_png(curves):
    figure = survival_chart("GAT", curves | {"衣": curves["gat"]}, ["original", "gat", "衣"]).figure
    assert to_png(figure, dpi=50).startswith(b"\x89PNG\r\n\x1a\n")


def test_nested_metrics_are_joined():
    assert flatten({"loss": {"clean": 1, "gat": {"x": 2}}, "step": 0}) == {
        "loss/clean": 1,
        "loss/gat/x": 2,
        "step": 0,
    }


def test_training_series_follow_steps_split_by_texts_and_leave_out_what_is_not_finite():
    rows = [
        {"step": 10, "loss": 2.0, "model": "gat"},
        {"step": 0, "loss": 3.0, "model": "gat"},
        {"step": 20, "loss": math.nan, "model": "gat"},
        {"step": 0, "loss": 5, "model": "original", "done": True},
    ]
    found = {series.label: (series.steps, series.values) for series in training_series(rows)}
    assert found == {"all (GAT-trained)": ((0.0, 10.0), (3.0, 2.0)), "all (Original)": ((0.0,), (5.0,))}


def test_parts_of_a_loss_stand_for_their_sum():
    rows = [{"step": 0, "loss": 3.0, "loss_clean": 1.0, "loss_adversarial": 2.0}]
    assert [series.metric for series in training_series(rows)] == ["loss_clean", "loss_adversarial"]


def test_losses_shares_and_speeds_share_charts_and_the_rest_follows():
    rows = [
        {
            "step": s,
            "grad_norm": 1.0,
            "loss_clean": 1.0,
            "loss_adversarial": 2.0,
            "accuracy": 0.5,
            "fooled": 0.1,
            "images_per_sec": 9.0,
        }
        for s in range(3)
    ]
    assert [chart.title for chart in training_charts(rows)] == [
        "Loss",
        "Shares",
        "Speed, per second",
        "Grad norm",
    ]


def test_a_single_point_is_not_a_curve():
    assert training_charts([{"step": 0, "loss": 1.0}]) == []


def test_long_trainings_stay_light():
    rows = [{"step": s, "loss": math.sin(s)} for s in range(20_000)]
    (chart,) = training_charts(rows)
    assert len(to_svg(chart.figure)) < 60_000
