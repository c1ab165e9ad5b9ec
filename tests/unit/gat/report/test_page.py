import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from gat.evaluation.records import read_records, write_records
from gat.report import write_report
from gat.report.__main__ import main
from gat.report.checks import check
from gat.report.folder import FILES, read_run
from gat.report.gallery import GalleryItem, Panel, write_gallery

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}$x$|`"


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of <style>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "use", "path"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in {"meta", "img", "br", "use", "path"}:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run) -> Page:
    return Page(write_report(run).read_text())


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page((finished / "report.html").read_text())


def test_the_page_needs_no_network_and_no_scripts(finished, page):
    html = (finished / "report.html").read_text()
    assert not page.all("script")
    assert not page.all("link")
    assert "default-src 'none'" in html
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in re.sub(r"url\(#", "", html)


def test_tags_are_balanced_and_ids_and_headings_in_order(page):
    assert page.open == []
    ids = Counter(
        attributes["id"]
        for tag, attributes in page.tags
        if "id" in attributes and tag not in {"path", "clippath"}
    )
    assert [name for name, count in ids.items() if count > 1] == []
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for link in page.all("a"):
        assert (link["href"] or "").removeprefix("#") in ids


def test_every_picture_is_described_and_every_chart_too(page):
    assert page.all("img")
    assert all(image.get("alt") for image in page.all("img"))
    charts = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(charts) == len(page.all("svg"))
    assert all(chart.get("aria-label") for chart in charts)


def test_numbers_on_the_page_are_those_of_the_records(finished, page):
    records = read_records(finished / "records.jsonl")
    for model in ("original", "gat"):
        for attack in ("none", "gat", "pgd-linf-8/255"):
            verdicts = [
                record.correct for record in records if (record.model, record.attack) == (model, attack)
            ]
            assert f"{sum(verdicts) / len(verdicts):.1%}" in page.text
    for words in (
        "paper-10",
        "strict-20",
        "test-split",
        "gat train --config 'configs/a b.yaml'",
        "seed 11",
        "run-7",
        "hats",
    ):
        assert words in page.text


def test_fooled_and_held_differ_in_words_and_not_only_in_colour(page):
    assert page.text.count("⚑ fooled, 3 steps") > 0
    assert page.text.count("○ held, 3 steps") > 0


def test_layer_groups_go_from_coarse_to_fine_and_pictures_beyond_six_are_folded(finished, page):
    assert page.text.index("Coarse layers") < page.text.index("Fine layers")
    assert len([card for card in page.all("li") if card.get("class") == "card"]) == 2 * (7 + 2)
    assert page.text.count("1 more: Fine layers") == 2


def test_all_doubts_are_printed_outside_of_anything_folded(run):
    (run / "provenance.json").unlink()
    doubts = check(read_run(run))
    assert doubts
    html = write_report(run).read_text()
    visible = Page(re.sub(r"<details.*?</details>", "", html, flags=re.DOTALL))
    markdown = (run / "report.md").read_text()
    for doubt in doubts:
        assert doubt.text in visible.text
    assert "provenance.json is missing" in markdown


def test_names_cannot_become_markup_anywhere(run, draw_records, draw_items):
    records = [
        *draw_records(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0.5),
        *draw_records("original", "gat-" + HOSTILE, HOSTILE, "real", 0.5),
    ]
    write_records(run / "records.jsonl", records)
    write_gallery(run, draw_items(), [HOSTILE] * 3, seed=0)
    (run / "config.yaml").write_text(f"task:\n  name: {json.dumps(HOSTILE)}\n# </pre>{HOSTILE}\n")
    (run / "provenance.json").write_text(
        json.dumps({HOSTILE: HOSTILE, "command": HOSTILE, "protocols": {HOSTILE: {HOSTILE: HOSTILE}}})
    )
    page = page_of(run)
    assert not page.all("script")
    assert not [image for image in page.all("img") if "onerror" in image or image["src"] == "x"]
    assert page.open == []
    assert HOSTILE in page.text
    assert "49" not in page.all("title")
    prose = (run / "report.md").read_text().split("## Command")[0]
    assert "<script" not in prose


@pytest.mark.parametrize("missing", [*FILES, "gallery.npz"])
def test_every_missing_file_is_a_warning_and_not_an_end(run, missing):
    (run / missing).unlink()
    page = page_of(run)
    assert f"{missing} is missing" in page.text
    assert page.open == []


@pytest.mark.parametrize("only", FILES)
def test_any_one_file_is_enough_for_a_page(run, only):
    for name in FILES:
        if name != only:
            (run / name).unlink()
    page = page_of(run)
    assert page.open == []
    assert "What was run" in page.text


def test_a_damaged_records_file_is_told_at_the_top(run):
    (run / "records.jsonl").write_text("{}\n")
    page = page_of(run)
    assert page.text.index("Do not use these numbers yet") < page.text.index("Pictures")


def test_json_is_strict_json_with_the_rows_of_a_result_table(run):
    (run / "metrics.jsonl").write_text('{"step": 0, "loss": NaN}\n')
    (run / "provenance.json").write_text('{"loss": NaN, "seeds": [1, 2]}')
    (run / "config.yaml").write_text("day: 2026-01-02\n")
    write_report(run)

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((run / "report.json").read_text(), parse_constant=refuse)
    assert content["provenance"]["loss"] is None
    assert content["config"]["day"] == "2026-01-02"
    cell = {"model": "original", "attack": "gat", "metric": "accuracy"}
    (row,) = [row for row in content["rows"] if cell.items() <= row.items()]
    assert (row["value"], row["n"], row["seeds"], row["protocol"]) == (0.0, 60, [1, 2], "paper-10")
    (curve,) = [c for c in content["survival"] if (c["model"], c["attack"]) == ("original", "gat")]
    assert curve["accuracy_after_steps"][-1] == row["value"]
    (paired,) = [p for p in content["paired"] if p["attack"] == "gat"]
    assert paired["n"] == 60
    assert paired["difference"] > 0
    assert any("loss was not finite" in doubt["text"] for doubt in content["doubts"])


def test_writing_twice_gives_the_same_files_and_leaves_nothing_else(run):
    before = {path.name for path in run.iterdir()}
    names = (
        "report.html", "report.json", "report.md",
        "tables/accuracy.md", "tables/accuracy.tex", "tables/rows.csv", "tables/table.json",
    )  # fmt: skip
    write_report(run)
    first = [(run / name).read_bytes() for name in names]
    write_report(run)
    assert [(run / name).read_bytes() for name in names] == first
    written = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert written == before | set(names)


def test_attacks_a_model_was_trained_on_are_marked_at_that_model_only(run):
    protocols = {"paper-10": {"name": "latent", "summary": "ten steps"}, "strict-20": {"name": "pgd"}}
    (run / "provenance.json").write_text(
        json.dumps({"trained_on": {"original": [], "gat": ["latent"]}, "protocols": protocols})
    )
    page = page_of(run)
    assert page.text.count("seen in training") == 1
    assert "ten steps" in page.text


def test_a_missing_protocol_leaves_no_empty_brackets(run):
    records = read_records(run / "records.jsonl")
    write_records(run / "records.jsonl", [type(r)(**{**vars(r), "protocol": ""}) for r in records])
    page = page_of(run)
    assert "[]" not in page.text
    assert "[]" not in (run / "report.md").read_text()


def test_large_pictures_are_shrunk_and_small_ones_shown_as_pixels(run, tmp_path, draw_items):
    assert 'class="pixels"' in write_report(run).read_text()
    rng = np.random.default_rng(0)
    item = draw_items()[0]
    image = rng.random((3, 600, 400), dtype=np.float32)
    panels = tuple(type(panel)(**{**vars(panel), "image": image}) for panel in item.panels)
    write_gallery(
        run, [type(item)(**{**vars(item), "original": image, "panels": panels})], ["a", "b", "c"], seed=0
    )
    html = write_report(run).read_text()
    assert 'class="pixels"' not in html
    assert len(html) < 2_000_000


def test_numbers_that_are_not_finite_do_not_break_the_page(run):
    records = read_records(run / "records.jsonl")
    write_records(run / "records.jsonl", [type(r)(**{**vars(r), "loss": math.nan}) for r in records])
    assert "not finite" in page_of(run).text


def test_the_command_prints_the_path_or_says_what_is_wrong(run, tmp_path, capsys):
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


SUITE = ("gat", "pgd-linf", "spatial", "recolor", "perceptual", "jpeg", "fog", "snow")


@pytest.fixture(scope="module")
def table(tmp_path_factory, draw_records, classes):
    """An evaluation of ten models under eight attacks, with controls, another budget, and pictures."""
    folder = tmp_path_factory.mktemp("evaluation") / "table2"
    folder.mkdir()
    records, items = [], []
    models = ("original", *(f"at_method_{i}" for i in range(8)), "gat")
    rng = np.random.default_rng(3)
    for m, model in enumerate(models):
        records += draw_records(model, "none", "", "real", 0.0, 40)
        for a, attack in enumerate(SUITE):
            fooled = 1.0 if model == "original" else (3 * m + 5 * a) % 10 / 10
            source = "generated" if attack == "gat" else "real"
            records += draw_records(model, attack, f"strict-{attack}", source, fooled, 40)
            for example in range(2):
                image = rng.random((3, 8, 8), dtype=np.float32)
                panel = Panel(attack, np.clip(image + 0.1, 0, 1), 1, example == 0, 3, 0)
                items.append(GalleryItem(model, attack, example, 0, image, 0, (panel,), 0))
        records += draw_records(model, "pgd-linf-random", "strict-r", "real", 0.0, 40)
        records += draw_records(model, "pgd-linf@0.5", "strict-h", "real", 0.1, 40)
    write_records(folder / "records.jsonl", records)
    write_gallery(folder, items, classes, seed=1)
    (folder / "config.yaml").write_text("runs: [a, b]\n")
    told = {
        "runs": ["a", "b"],
        "suite": {"name": "table2", "attacks": list(SUITE[:7])},
        "trained_on": {"gat": ["latent"], "at_method_0": ["pixels"]},
        "protocols": {
            "strict-gat": {"name": "latent", "kinds": ["latent"]},
            "strict-pgd-linf": {
                "name": "worst_of",
                "kinds": ["apgd", "pixels"],
                "bounds": {"linf_pixels": 0.031},
            },
        },
    }
    (folder / "provenance.json").write_text(json.dumps(told))
    write_report(folder)
    return folder


def test_many_models_become_a_heat_map_with_the_numbers_in_it(table):
    page = Page((table / "report.html").read_text())
    assert page.open == []
    classes = [attributes.get("class") for attributes in page.all("table")]
    assert classes[0] == "heat"
    assert "headline" not in classes
    content = json.loads((table / "report.json").read_text())
    values = [
        row["value"] for row in content["rows"] if row["metric"] == "accuracy" and row["attack"] in SUITE
    ]
    assert len(values) == 80
    shown = page.text[: page.text.index("The best against the others")]
    assert all(f"{100 * value:.1f}" in shown for value in values)
    assert page.text.count("seen in training") == 2


def test_the_mean_is_over_the_suite_less_what_was_trained_on(table):
    content = json.loads((table / "report.json").read_text())
    found = {(a["model"], a["name"]): [c["attack"] for c in a["over"]] for a in content["aggregates"]}
    assert found["original", "mean_unseen"] == list(SUITE[:7])
    assert found["gat", "mean_unseen"] == list(SUITE[1:7])
    assert found["at_method_0", "mean_unseen"] == [a for a in SUITE[:7] if a != "pgd-linf"]
    assert found["gat", "union"] == list(SUITE[1:7])
    means = {a["model"]: a["value"] for a in content["aggregates"] if a["name"] == "mean_unseen"}
    best = max(means, key=lambda model: means[model])
    assert content["finding"].startswith("Over attacks it was not trained on,")
    assert f"{means[best]:.1%}" in content["finding"]
    assert len(content["mean_differences"]) == 9
    assert {d["second"] for d in content["mean_differences"]} == {best}


def test_any_two_models_are_compared(table):
    content = json.loads((table / "report.json").read_text())
    pairs = {(p["baseline"], p["model"]) for p in content["paired"] if p["attack"] == "fog"}
    assert len(pairs) == 45
    assert ("at_method_2", "gat") in pairs


def test_pictures_of_each_attack_show_two_models_and_fold_the_rest(table):
    html = (table / "report.html").read_text()
    pictures = html[html.index('id="pictures"') : html.index('id="curves"')]
    assert pictures.count("<h3>") == len(SUITE)
    assert pictures.count("8 more models:") == len(SUITE)
    assert pictures.count('class="card"') == 10 * len(SUITE) * 2


def test_tables_and_figures_for_papers_lie_beside_the_page(table):
    tex = (table / "tables" / "accuracy.tex").read_text()
    assert tex.count(r"\\") == 11
    assert "Mean over unseen attacks" in tex
    rows = json.loads((table / "tables" / "table.json").read_text())["rows"]
    assert {"mean_unseen", "union", "worst", "clean"} <= {row["attack"] for row in rows}
    assert (table / "tables" / "rows.csv").read_text().count("\n") == len(rows) + 1
    names = {path.name for path in (table / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("heatmap", "budget-pgd-linf") for kind in ("png", "pdf")}


def test_an_evaluation_that_trained_nothing_misses_no_training_curves(table):
    assert not [doubt for doubt in check(read_run(table)) if "is missing" in doubt.text]
