"""A table of the paper from the records of several seeds, whose numbers are known beforehand."""

import gzip
import json
from pathlib import Path

import pytest

from gat.cli import main
from gat.cli.reproduce.table2 import PAPER, Table2Config, pool_seeds, publish
from gat.config import ConfigError, load
from gat.evaluation.records import Record, write_records

ROWS = {"at-pgd": {"name": "adversarial_training"}, "gat": {"name": "gat"}}
CONFIG = Table2Config.model_validate({"rows": ROWS, "seeds": [0, 1], "protocols": ["paper"]})
ATTACKS = ("pgd", "spatial", "recolor")
RIGHT = {  # of 4 examples, per seed
    ("original", "pgd"): (0, 0), ("original", "spatial"): (0, 1), ("original", "recolor"): (1, 1),
    ("at-pgd", "pgd"): (4, 3), ("at-pgd", "spatial"): (1, 1), ("at-pgd", "recolor"): (2, 2),
    ("gat", "pgd"): (2, 3), ("gat", "spatial"): (2, 2), ("gat", "recolor"): (3, 3),
}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Table2Config:
    """Records of two seeds, as `gat evaluate` leaves them."""
    config = CONFIG.model_copy(update={"out": tmp_path / "table2"})
    for seed in config.seeds:
        folder = config.judged_folder("paper", seed)
        folder.mkdir(parents=True)
        records = []
        for model in ("original", "at-pgd", "gat"):
            for i in range(10):
                records.append(Record(model, "none", "", "real", i, 0, 0, 0, success=False))
            for attack in ATTACKS:
                for i in range(4):
                    answer = int(i >= RIGHT[model, attack][seed])
                    records.append(
                        Record(
                            model, attack, f"paper-{attack}", "real", i, 0, 0, answer, success=bool(answer)
                        )
                    )
        write_records(folder / "records.jsonl", records)
        facts = {
            "classes": ["no", "yes"],
            "trained_on": {"original": [], "at-pgd": ["additive", "pgd"], "gat": ["latent"]},
            "seeds": {"training": [seed], "evaluation": 1},
            "suite": {"name": "table2", "protocol": "paper", "attacks": list(ATTACKS)},
            "protocols": {
                f"paper-{a}": {"name": a, "kinds": [a], "summary": a, "bounds": {}} for a in ATTACKS
            },
        }
        (folder / "provenance.json").write_text(json.dumps(facts))
        (folder / "config.yaml").write_text("runs: []\n")
    return config


def test_seeds_are_pooled_and_what_was_trained_on_is_not_unseen(table, tmp_path):
    page = pool_seeds(table, "paper")
    assert page.read_text().startswith("<!")
    target = publish(table, tmp_path / "results", "gat reproduce table2")
    found = json.loads((target / "table.json").read_text())
    rows = {(r["model"], r["attack"]): r for r in found["rows"] if r["metric"] == "accuracy"}
    assert rows["gat", "pgd"]["value"] == 5 / 8
    assert rows["gat", "pgd"]["per_seed"] == [0.5, 0.75]
    assert rows["gat", "pgd"]["n"] == 8
    assert rows["gat", "mean_unseen"]["value"] == pytest.approx((5 + 4 + 6) / 24)
    assert rows["at-pgd", "mean_unseen"]["value"] == pytest.approx((2 + 4) / 16)  # without PGD
    assert "spatial" in rows["at-pgd", "mean_unseen"]["protocol"]
    assert "pgd" not in rows["at-pgd", "mean_unseen"]["protocol"]
    assert rows["gat", "union"]["value"] == 4 / 8
    assert rows["gat", "mean_unseen"]["seeds"] == [0, 1]
    assert found["paper"]["gat"] == list(PAPER["gat"])
    text = (target / "table.md").read_text()
    assert "| at-pgd | 100.0" in text
    assert "87.5 (75.0-100.0)*" in text  # the star: it has seen PGD
    assert "| gat | 89.5 | 78.4" in text  # the paper's own row
    # Against at-pgd on what neither has seen, which leaves PGD out of both means: (4 + 6) - (2 + 4) of 16.
    assert "| at-pgd | spatial, recolor | 62.5 | 37.5 | +25.0 (" in text
    assert "| original | pgd, spatial, recolor | 62.5 | 12.5 | +50.0 (" in text
    (against_pgd,) = [pair for pair in found["unseen_by_both"]["paper"] if pair["other"] == "at-pgd"]
    assert against_pgd["columns"] == ["spatial", "recolor"]
    assert against_pgd["difference"]["low"] <= 0.25 <= against_pgd["difference"]["high"]
    lines = gzip.decompress((target / "records.jsonl.gz").read_bytes()).splitlines()
    kept = [json.loads(line) for line in lines]
    assert len(kept) == 2 * 3 * 3 * 4
    assert {record["seed"] for record in kept} == {0, 1}


def test_each_row_and_seed_has_a_run_of_its_own():
    run = CONFIG.row_run("gat", 1)
    assert run.folder == Path("runs/table2/seed1/gat")
    assert run.seed == 1
    assert run.method.name == "gat"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rows": {"original": {"name": "standard"}}}, "always trained"),
        ({"rows": {"x": {"name": "nope"}}}, "not one of"),
        ({"rows": {}}, "at least 1"),
        ({"rows": ROWS, "protocols": ["sloppy"]}, "strict"),
    ],
)
def test_impossible_tables_are_refused(tmp_path, settings, says):
    file = tmp_path / "table.yaml"
    file.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=says):
        load(Table2Config, [file], [])


def test_a_dry_run_prints_a_configuration_that_is_valid_itself(tmp_path, capsys):
    file = Path("configs/fashion_table2.yaml")
    assert main(["reproduce", "table2", "--config", str(file), "--dry-run", "seeds=[5]"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load(Table2Config, [again], []) == load(Table2Config, [file], ["seeds=[5]"])


def test_an_unknown_table_is_refused(capsys):
    assert main(["reproduce", "table9"]) == 2
    assert "table2" in capsys.readouterr().err
