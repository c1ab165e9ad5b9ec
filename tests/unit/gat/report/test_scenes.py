"""The page of a run on scenes."""

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from gat.report import write_report
from gat.report.checks import check
from gat.report.drawing import paint, palette
from gat.report.folder import SCENE_FILES, read_run
from gat.report.strips import write_strips

TASKS = ("segmentation", "detection")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}$x$|`"
VOID = {"meta", "img", "br", "use", "path"}


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of <style>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        found = [attributes for kind, attributes in self.tags if kind == tag]
        return [a for a in found if not name or name in (a.get("class") or "").split()]


def page_of(run) -> Page:
    return Page(write_report(run).read_text())


def pixels(image: dict[str, str | None]) -> np.ndarray:
    data = (image["src"] or "").removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module", params=TASKS)
def finished(request, tmp_path_factory, build_scenes):
    """A run on scenes with its report; only to be read."""
    folder = build_scenes(tmp_path_factory.mktemp(request.param) / "run-7", request.param)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page((finished / "report.html").read_text())


@pytest.fixture
def segmented(tmp_path, build_scenes):
    return build_scenes(tmp_path / "run-7", "segmentation")


@pytest.fixture
def detected(tmp_path, build_scenes):
    return build_scenes(tmp_path / "run-7", "detection")


def test_the_page_is_self_contained_balanced_and_in_order(page):
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in re.sub(r"url\(#", "", page.html)
    ids = Counter(a["id"] for tag, a in page.tags if "id" in a and tag not in {"path", "clippath"})
    assert [name for name, count in ids.items() if count > 1] == []
    for link in page.all("a"):
        assert (link["href"] or "").removeprefix("#") in ids
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(image.get("alt") for image in page.all("img"))


def test_metrics_are_on_the_page_and_what_is_about_labels_of_images_is_not(finished, page):
    percent = "%" if finished.parent.name.startswith("segmentation") else ""
    for value in ("91.0", "4.0", "21.0", "92.0", "83.0", "55.0"):
        assert f"{value}{percent}" in page.text
    for words in ("n = 40", "+79.0 points", "strict-gat", "generated images", "Oracle 88.0% → 84.0%"):
        assert words in page.text
    assert page.text.count("seen in training") == 1
    sections = {section.get("id") for section in page.all("section")}
    assert {"metrics", "strips", "curves", "all", "training", "run", "definitions", "warnings"} == sections
    for words in (
        "Accuracy against valid pictures",
        "keeps its label",
        "McNemar",
        "still answered right",
        "confus",
    ):
        assert words not in page.text
    assert "SPADE" in page.text


def test_every_scene_shows_every_model_through_the_same_steps(page):
    assert page.text.count("Scene #") == 5
    assert len(page.all("div", "scene")) == 5
    assert len(page.all("div", "figures")) == 10
    for words in ("Start", "1 step", "10 steps"):
        assert page.text.count(words) >= 10
    assert page.text.count("⚑ fooled after 7 steps") == 5
    assert page.text.count("○ held for 10 steps") == 5
    assert "2 more scenes: GAT" in page.text
    assert "Fooled: Original 5 of 5, GAT-trained 0 of 5" in page.text
    assert "seed 11" in page.text
    assert "16×16 pixels" in page.text
    assert len(page.all("img", "crisp")) == len(page.all("img"))
    # Two differences of at most 0.04 * 255 fit 16-fold, not 32-fold.
    assert "×16" in page.text


def test_maps_have_a_legend_in_the_colours_they_are_painted_with(segmented):
    page = page_of(segmented)
    swatches = [item.get("style") for item in page.all("li") if "--swatch" in (item.get("style") or "")]
    first = swatches[:4]
    wanted = ["#" + bytes(colour.tolist()).hex() for colour in palette(3)]
    assert first == [f"--swatch: {colour}" for colour in (*wanted, "#000000")]
    assert page.text.count("no class") == 5
    assert page.text.count("left & right <boot>") >= 5
    # Three frames with a picture and a map each, then the difference over the true map.
    assert len(page.all("img")) == 5 * 2 * 8
    assert not page.all("rect", "missed")
    strips = [strip for strip in read_run(segmented).strips.items if strip.id == 0]
    for i, strip in enumerate(strips):
        drawn = [pixels(image) for image in page.all("img")[8 * i : 8 * i + 8]]
        for frame, picture, answer in zip(strip.frames, drawn[:6:2], drawn[1:6:2], strict=True):
            np.testing.assert_array_equal(picture, frame.image)
            np.testing.assert_array_equal(answer, paint(frame.answer, 3))
        change = strip.frames[-1].image.astype(int) - strip.frames[0].image
        np.testing.assert_array_equal(drawn[6], np.minimum(16 * abs(change), 255))
        np.testing.assert_array_equal(drawn[7], paint(strip.truth, 3))
        for frame in strip.frames:
            assert f"{frame.score:.1%}" in page.text
    assert "Intersection over union per class" in page.text


def test_boxes_are_found_wrong_or_missed_by_stroke_and_by_word(detected):
    page = page_of(detected)
    kinds = Counter(kind for kind in ("found", "wrong", "missed", "true") for _ in page.all("rect", kind))
    # Per scene: undefended 2, 1, 0 found and 0, 1, 2 wrong and missed; trained 2 found each time; two true objects per strip. And
    # one of each in the key.
    assert kinds == {"found": 5 * (3 + 6) + 1, "wrong": 5 * 3 + 1, "missed": 5 * 3 + 1, "true": 5 * 2 * 2}
    assert len(page.all("img")) == 5 * 2 * 5
    for words in (
        "2 of 2 found",
        "1 of 2 found",
        "0 of 2 found",
        "2 wrong boxes",
        "no wrong box",
        "✗ sky .90",
    ):
        assert words in page.text
    assert "floor .60" in page.text
    assert "at least 0.3" in page.text
    alts = [image["alt"] for image in page.all("img")]
    assert any("missed: left & right <boot>, floor" in alt for alt in alts)


def test_names_of_objects_stay_inside_the_picture(detected):
    page = page_of(detected)
    for text in page.all("text"):
        if not (text.get("class") or "").startswith("of-"):
            continue
        assert 0 <= float(text["x"]) < 16
        assert 0 < float(text["y"]) <= 16


def test_markdown_json_and_tables_have_the_metrics_too(finished):
    task = "segmentation" if finished.parent.name.startswith("segmentation") else "detection"
    headline = {"segmentation": "pixel_accuracy", "detection": "ap"}[task]

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((finished / "report.json").read_text(), parse_constant=refuse)
    (row,) = [
        r for r in content["rows"] if (r["model"], r["attack"], r["metric"]) == ("gat", "gat", headline)
    ]
    assert (row["task"], row["value"], row["n"], row["seeds"]) == (task, 0.83, 40, [3])
    assert content["paired"] == content["accuracy_per_class"] == content["aggregates"] == []
    markdown = (finished / "report.md").read_text()
    assert "Accuracy, with 95% Wilson intervals" not in markdown
    assert "n = 40" in markdown
    tables = {path.name for path in (finished / "tables").iterdir()}
    assert tables == {"metrics.md", "metrics.tex", "rows.csv", "table.json"}
    assert "83.0" in (finished / "tables" / "metrics.tex").read_text()
    rows = json.loads((finished / "tables" / "table.json").read_text())["rows"]
    assert (finished / "tables" / "rows.csv").read_text().count("\n") == len(rows) + 1
    assert not (finished / "figures").exists()


def test_writing_twice_gives_the_same_page(segmented):
    first = write_report(segmented).read_bytes()
    assert write_report(segmented).read_bytes() == first


@pytest.mark.parametrize("missing", [*SCENE_FILES, "strips.npz", "records.jsonl", "provenance.json"])
def test_every_missing_file_is_a_warning_and_not_an_end(segmented, missing):
    (segmented / missing).unlink()
    page = page_of(segmented)
    assert f"{missing} is missing" in page.text
    assert page.open == []
    assert "gallery" not in page.text


def test_damaged_files_are_told_at_the_top(detected):
    (detected / "metrics.json").write_text("{}")
    (detected / "strips.json").write_text("[]")
    page = page_of(detected)
    assert page.text.count("Do not use these numbers yet") == 2
    assert page.open == []


@pytest.mark.parametrize("task", TASKS)
def test_names_cannot_become_markup_anywhere(tmp_path, build_scenes, draw_metrics, draw_strips, task):
    run = build_scenes(tmp_path / "run-7", task)
    values = {(HOSTILE, "none"): 0.9, (HOSTILE, HOSTILE): 0.2, ("b", HOSTILE): 0.8}
    (run / "metrics.json").write_text(json.dumps(draw_metrics(task, values)))
    strips = [replace(s, model=HOSTILE, attack=HOSTILE, settings=HOSTILE) for s in draw_strips(task)]
    write_strips(run, strips, task, [HOSTILE] * 3, seed=0)
    page = page_of(run)
    assert not page.all("script")
    assert not [image for image in page.all("img") if "onerror" in image or image["src"] == "x"]
    assert page.open == []
    assert HOSTILE in page.text
    assert "<script" not in (run / "report.md").read_text()


def test_healthy_runs_raise_no_doubt_that_is_about_classification(finished):
    doubts = check(read_run(finished))
    assert [doubt.level for doubt in doubts] == ["note"]
    assert "oracle" in doubts[0].text


def test_an_undefended_segmenter_that_keeps_a_tenth_of_its_pixels_is_not_called_unattacked(segmented):
    """Not one image counts as fooled, and yet the attack works."""
    path = segmented / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"success": False, "prediction": 1}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not [d for d in check(read_run(segmented)) if d.level == "wrong"]
