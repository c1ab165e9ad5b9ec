import json

import pytest

from gat.evaluation.records import Record, write_records
from gat.report.folder import read_run
from gat.report.table1 import (
    PAPER,
    measure,
    measure_others,
    other_rows,
    paper_rows,
    table1,
    table1_latex,
    table1_markdown,
    table1_rows,
)


def classifiers(folder, seed, broken):
    """100 examples, of which the undefended model gets 90 right, and `broken` of the trained one's 80 fall."""
    folder.mkdir(parents=True)
    records = []
    for model, right, fooled in (("original", 90, 90), ("gat", 80, broken)):
        for attack in ("none", "gat", "pgd"):
            for i in range(100):
                before = 0 if i < right else 1
                success = attack == "gat" and i < min(fooled, right)
                protocol = "" if attack == "none" else f"strict-{attack}"
                source = "generated" if attack == "gat" else "real"
                records.append(
                    Record(model, attack, protocol, source, i, 0, before, 1 if success else before, success)
                )
    write_records(folder / "records.jsonl", records)
    told = {"seeds": {"training": seed, "evaluation": 1}, "data": {"name": "fashion_mnist"}}
    (folder / "provenance.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, build_scenes):
    root = tmp_path_factory.mktemp("table1")
    folders = []
    for seed, shift in ((0, -0.02), (1, 0.0), (2, 0.05)):
        folders.append(classifiers(root / f"c{seed}", seed, broken=10 + 5 * seed))
        folders += [
            build_scenes(root / f"{task}{seed}", task, seed, shift) for task in ("segmentation", "detection")
        ]
    return [read_run(folder) for folder in folders]


@pytest.fixture(scope="module")
def rows(runs):
    return table1_rows(cell for run in runs for cell in measure(run))


def cell(rows, task, model, attack):
    (row,) = [r for r in rows if (r["task"], r["model"], r["attack"]) == (task, model, attack)]
    return row


def test_a_run_gives_the_four_numbers_of_its_task(runs):
    found = {(c.model, c.attack): c.value.value for c in measure(runs[0])}
    assert found == {
        ("original", "clean"): 0.9,
        ("original", "gat"): 0.0,
        ("trained", "clean"): 0.8,
        ("trained", "gat"): 0.7,
    }
    assert {(c.task, c.data, c.seed, c.name) for c in measure(runs[0])} == {
        ("classification", "fashion_mnist", 0, "gat"),
        ("classification", "fashion_mnist", 0, "original"),
    }
    scenes = {(c.model, c.attack): c.value.value for c in measure(runs[1], "pgd-linf")}
    assert scenes["trained", "pgd-linf"] == pytest.approx(0.53)
    assert scenes["original", "clean"] == pytest.approx(0.89)


def test_rows_are_means_over_seeds_with_the_lowest_and_the_highest(rows):
    assert len(rows) == 12
    row = cell(rows, "classification", "gat", "gat")
    assert row["value"] == pytest.approx((0.7 + 0.65 + 0.6) / 3)
    assert (row["low"], row["high"], row["n"], row["seeds"]) == (0.6, 0.7, 300, [0, 1, 2])
    assert row["per_seed"] == [0.7, 0.65, 0.6]
    assert row["interval"] == "lowest and highest seed"
    row = cell(rows, "detection", "gat", "gat")
    assert row["metric"] == "ap"
    assert row["value"] == pytest.approx(0.83 + 0.03 / 3)
    assert (row["low"], row["high"]) == (pytest.approx(0.81), pytest.approx(0.88))
    assert (row["protocol"], row["source"], row["n"]) == ("strict-gat", "generated", 120)
    assert [r["task"] for r in rows[::4]] == ["classification", "segmentation", "detection"]
    assert {r["model"] for r in rows} == {r["model"] for r in paper_rows()} == {"original", "gat"}
    assert json.loads(json.dumps(rows)) == rows


def test_one_seed_has_the_interval_of_its_examples(runs):
    row = cell(table1_rows(measure(runs[1])), "segmentation", "gat", "gat")
    assert (row["value"], row["low"], row["high"]) == tuple(map(pytest.approx, (0.81, 0.79, 0.83)))
    assert row["interval"] == "95% over examples"


def test_the_table_has_the_papers_numbers_beside_it(rows):
    table = table1(rows)
    assert table.header[1:3] == ("Classification, clean", "Classification, adversarial")
    lines = {line[0]: line[1:] for line in table.rows}
    assert lines["Adversarially trained"][1] == "65.0 (60.0–70.0)"
    assert lines["Original"][0] == "90.0 (90.0–90.0)"
    paper = "Paper, adversarially trained (LSUN, COCO-Stuff)"
    assert lines[paper] == ("89.5", "78.4", "69.1", "60.2", "40.2", "33.7")
    assert lines["Paper, original (LSUN, COCO-Stuff)"] == ("88.9", "0.0", "67.9", "2.7", "39.0", "2.0")
    assert lines["Paper, original (CelebA-HQ)"] == ("95.7", "0.0", "", "", "", "")
    assert lines["Paper, adversarially trained (CelebA-HQ)"][:2] == ("96.2", "83.6")
    for words in ("seeds 0, 1, 2", "n = 300", "n = 120", "gat [strict-gat]", "lowest and highest seed"):
        assert words in table.caption


def test_all_other_attacks_stand_below(runs, rows):
    others = other_rows(cell for run in runs for cell in measure_others(run))
    assert not {"clean", "gat"} & {row["attack"] for row in others}
    pgd = cell([row for row in others if row["task"] == "classification"], "classification", "gat", "pgd")
    assert (pgd["value"], pgd["n"], pgd["seeds"]) == (pytest.approx(0.8), 300, [0, 1, 2])
    text = table1_markdown(rows, others)
    assert text.startswith(table1_markdown(rows))
    assert "| classification | pgd | real | 90.0 (90.0–90.0) | 80.0 (80.0–80.0) |" in text
    assert pgd["oracle"] is None
    assert cell(rows, "segmentation", "gat", "gat")["oracle"] == pytest.approx(0.84)
    scenes = [line for line in text.splitlines() if line.startswith("| segmentation | pgd-linf")]
    assert len(scenes) == 1


def test_markdown_and_latex_hold_the_same_numbers(rows):
    markdown, latex = table1_markdown(rows), table1_latex(rows)
    assert "| Adversarially trained | 80.0 (80.0–80.0) | 65.0 (60.0–70.0) |" in markdown
    assert "Adversarially trained & 80.0 & 65.0 &" in latex
    assert "(60.0" not in latex
    assert latex.count(r"\\") == 7


def test_tasks_that_were_not_run_are_left_out(runs):
    table = table1(table1_rows(cell for run in runs[1::3] for cell in measure(run)))
    assert table.header == ("Model", "Segmentation, clean", "Segmentation, adversarial")
    assert [line[0] for line in table.rows] == [
        "Adversarially trained",
        "Original",
        "Paper, adversarially trained (COCO-Stuff)",
        "Paper, original (COCO-Stuff)",
    ]


def test_what_another_method_trained_bears_its_name(rows):
    told = [row | {"model": "random_latents"} if row["model"] == "gat" else row for row in rows]
    assert [line[0] for line in table1(told).rows][:3] == [
        "Trained on random samples",
        "Original",
        "Paper, adversarially trained (LSUN, COCO-Stuff)",
    ]
    assert "| Original | Trained on random samples |" in table1_markdown(told, told)


def test_the_papers_rows_are_sixteen(rows):
    assert len(paper_rows()) == 16
    assert paper_rows()[0].keys() <= rows[0].keys()
    assert len(PAPER) == 4


def test_the_same_seed_twice_and_other_protocols_are_refused(runs):
    with pytest.raises(ValueError, match=r"own seed, got \[0, 0\]"):
        table1_rows([*measure(runs[0]), *measure(runs[0])])
    from dataclasses import replace

    other = [replace(c, protocol="paper-gat" if c.protocol else "") for c in measure(runs[3])]
    pat = [replace(c, name="pat" if c.name == "gat" else c.name) for c in measure(runs[3])]
    for unlike in (other, pat, measure(runs[3], "pgd")):
        with pytest.raises(ValueError, match="differ in model, data, attack or protocol"):
            table1_rows([*measure(runs[0]), *unlike])
    with pytest.raises(ValueError, match="needs rows"):
        table1([])


def test_runs_that_lack_a_number_are_refused_by_name(runs, tmp_path, build_scenes):
    with pytest.raises(ValueError, match=r"c0: .*'cw' once are wanted; there is none, gat \[strict-gat\]"):
        measure(runs[0], "cw")
    folder = build_scenes(tmp_path / "bare", "segmentation")
    (folder / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"bare: metrics\.json is missing"):
        measure(read_run(folder))
    pooled = classifiers(tmp_path / "pooled", [0, 1], broken=3)
    with pytest.raises(ValueError, match=r"pooled: a run of one training seed is wanted, got seeds \[0, 1\]"):
        measure(read_run(pooled))
