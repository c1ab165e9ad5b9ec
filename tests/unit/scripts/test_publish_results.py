"""What is published of several seeds is what their records say."""

import gzip
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from gat.evaluation.records import Record, write_records

RIGHT = {
    # clean, under the attack
    (0, "original"): ((0, 1, 2, 3, 4), (0,)),
    (0, "gat"): ((0, 1, 2, 3), (0, 1, 2)),
    (1, "original"): ((0, 1, 2, 3), ()),
    (1, "gat"): ((0, 1, 2, 3, 5), (0, 1, 2, 3)),
}
N = 6


def run_of(folder: Path, seed: int, **settings: object) -> Path:
    """A finished run of two models, `N` pictures each."""
    run = folder / f"tiny_{seed}"
    run.mkdir()
    config = {"name": run.name, "out": str(run), "seed": seed, "width": 8, **settings}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    provenance = {"commit": "c0ffee", "hardware": "abacus", "versions": {}, "protocols": {}}
    (run / "provenance.json").write_text(json.dumps(provenance))
    records = []
    for model in ("original", "gat"):
        clean, attacked = RIGHT[seed, model]
        for i in range(N):
            seen = 1 if i in clean else 0
            records.append(Record(model, "none", "", "real", i, 1, seen, seen, False))
            after = 1 if i in attacked else 0
            records.append(Record(model, "gat", "p", "generated", i, 1, 1, after, not after, iterations=3))
    write_records(run / "records.jsonl", records)
    return run


def publish(script: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *runs: Path) -> dict:
    monkeypatch.setattr("sys.argv", ["publish_results.py", *map(str, runs), "--out", str(out)])
    script.main()
    return json.loads((out / "table.json").read_text())


def test_accuracies_are_over_all_seeds(script, monkeypatch, tmp_path):
    table = publish(script, monkeypatch, tmp_path / "tiny", run_of(tmp_path, 0), run_of(tmp_path, 1))
    found = {(r["model"], r["attack"]): r for r in table["rows"] if r["metric"] == "accuracy"}
    assert {cell: (row["value"], row["n"]) for cell, row in found.items()} == {
        ("original", "clean"): (9 / 12, 12),
        ("gat", "clean"): (9 / 12, 12),
        ("original", "gat"): (pytest.approx(1 / 12), 12),
        ("gat", "gat"): (pytest.approx(7 / 12), 12),
    }
    assert found["gat", "gat"]["per_seed"] == [0.5, 0.6667]
    assert found["gat", "gat"]["seeds"] == [0, 1]
    assert table["trained_with"][1].endswith("configs/tiny.yaml name=tiny_1 seed=1")
    archive = gzip.decompress((tmp_path / "tiny" / "records.jsonl.gz").read_bytes()).splitlines()
    assert {json.loads(line)["seed"] for line in archive} == {0, 1}
    assert "| clean | real | gat | 75.0 (" in (tmp_path / "tiny" / "table.md").read_text()


def test_pairs_are_of_the_same_picture_and_seed(script, monkeypatch, tmp_path):
    table = publish(script, monkeypatch, tmp_path / "tiny", run_of(tmp_path, 0), run_of(tmp_path, 1))
    clean, attacked = table["pairs"]
    assert (clean["attack"], clean["model"], clean["baseline"], clean["n"]) == (
        "clean",
        "gat",
        "original",
        12,
    )
    assert (clean["only_baseline"], clean["only_model"], clean["difference"]) == (1, 1, 0)
    assert clean["per_seed"] == [-0.1667, 0.1667]
    assert clean["p_value"] == 1
    assert (attacked["attack"], attacked["only_baseline"], attacked["only_model"]) == ("gat", 0, 6)
    assert attacked["difference"] == pytest.approx(0.5)
    assert attacked["p_value"] == pytest.approx(2 / 2**6)


def test_runs_that_differ_in_more_than_the_seed_are_refused(script, monkeypatch, tmp_path):
    runs = run_of(tmp_path, 0), run_of(tmp_path, 1, width=16)
    with pytest.raises(ValueError, match=r"differs from .*tiny_0 in width; only the seed may"):
        publish(script, monkeypatch, tmp_path / "tiny", *runs)


def test_one_seed_does_not_count_twice(script, monkeypatch, tmp_path):
    run = run_of(tmp_path, 0)
    with pytest.raises(ValueError, match=r"needs its own seed, got \[0, 0\]"):
        publish(script, monkeypatch, tmp_path / "tiny", run, run)
