"""The command on small untrained runs: several of them make one table, nothing is measured twice, mistakes are explained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gat.attacks import PGD, LatentAttack
from gat.cli import main
from gat.cli.compose import RunConfig, open_run
from gat.config import dump, load
from gat.evaluation.records import read_records
from gat.evaluation.suites import SUITES, Suite
from generators.stylegan2.checkpoints import Checkpoint, write_safetensors
from tasks.datasets.fashion_mnist import CLASSES
from tests.toys import tiny_generator

CONFIG = """
name: NAME
seed: SEED
data: {name: fashion_mnist, limit: 6, pad: 32}
model: {name: small_resnet, widths: [8], blocks: [1]}
generator: {name: stylegan2, checkpoint: GENERATOR}
method: METHOD
evaluation: {num_clean: 20, num_real: 6, num_generated: 10, width: 6, attacks: {own: {name: fgsm}}}
width: 6
"""


def _tiny(protocol, network) -> Suite:
    attacks = {
        "gat": LatentAttack(max_steps=1 if protocol == "paper" else 2),
        "pgd": PGD(steps=2),
        "pgd-l2": PGD(norm="l2", eps=0.5, steps=1),
        "pgd-random": PGD(steps=0),
    }
    return Suite(attacks, ("gat", "pgd", "pgd-l2"), "pgd")


@pytest.fixture(autouse=True)
def _tiny_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "tiny", _tiny)


def make_run(folder: Path, method: str, seed: int, original: int = 0) -> Path:
    """A run folder as training leaves it, with random weights of these seeds."""
    generator_path = folder.parent / "tiny.safetensors"
    if not generator_path.exists():
        generator = tiny_generator(c_dim=10, img_resolution=32)
        metadata = {"classes": json.dumps(CLASSES)}
        write_safetensors(
            generator_path, Checkpoint(generator.config, dict(generator.state_dict()), None, metadata)
        )
    folder.mkdir()
    text = CONFIG.replace("NAME", folder.name).replace("SEED", str(seed)).replace("METHOD", method)
    (folder / "config.yaml").write_text(text.replace("GENERATOR", str(generator_path)))
    config = load(RunConfig, [folder / "config.yaml"], [f"out={folder}"])
    (folder / "config.yaml").write_text(dump(config))
    current = open_run(config)
    for name, weights in (("original", original), (config.method.name, seed + 10)):
        torch.manual_seed(weights)
        model = config.model.build(10, 32)
        save_file(dict(model.state_dict()), folder / f"{name}.safetensors")
    current.accelerator.end_training()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    pgd = "{name: adversarial_training, attack: {name: pgd, steps: 1}}"
    return {
        "mine": make_run(folder / "mine", "{name: gat}", 0),
        "at_pgd": make_run(folder / "at_pgd", pgd, 1),
        "other_seed": make_run(folder / "other_seed", "{name: gat}", 2, original=5),
    }


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def rows_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(rows, list)
    return rows


def test_several_runs_make_one_table(runs, tmp_path, capsys):
    before = {path: sorted(p.name for p in path.iterdir()) for path in runs.values()}
    out = tmp_path / "table"
    assert evaluate(*runs.values(), "--suite", "tiny", "--out", out, "--json") == 0
    rows = rows_of(capsys)
    models = ["original", "mine", "at_pgd", "other_seed/original", "other_seed"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == models
    attacks = {"none", "gat", "pgd", "pgd-l2", "pgd-random", "pgd-transfer"}
    assert {row["attack"] for row in rows} == attacks | {"mean_unseen", "union", "worst"}
    assert {
        str(row["protocol"]).split("-")[0] for row in rows if row["attack"] in {"gat", "pgd", "pgd-l2"}
    } == {"strict"}
    over = {row["model"]: row["protocol"] for row in rows if row["attack"] == "mean_unseen"}
    assert over["original"] == "over gat + pgd + pgd-l2"
    assert over["mine"] == "over pgd + pgd-l2"
    assert over["at_pgd"] == "over gat"
    told = json.loads((out / "provenance.json").read_text())
    assert told["runs"] == list(map(str, runs.values()))
    assert told["suite"] == {"name": "tiny", "protocol": "strict", "attacks": ["gat", "pgd", "pgd-l2"]}
    assert told["seeds"]["training"] == [0, 1, 2]
    assert "--suite tiny --protocol strict" in told["command"]
    assert {"report.html", "gallery.npz", "probes.json", "tables", "figures"} <= {
        p.name for p in out.iterdir()
    }
    assert {path: sorted(p.name for p in path.iterdir()) for path in runs.values()} == before

    # The same again: nothing is measured twice; one more run measures only itself.
    times = {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    assert evaluate(*runs.values(), "--suite", "tiny", "--out", out, "--json") == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()} == times
    assert rows_of(capsys) == rows


def test_the_protocol_is_asked_for_and_settings_come_after_the_suite(runs, tmp_path, capsys):
    out = tmp_path / "paper"
    words = ["evaluation.attacks.pgd.steps=1", "evaluation.budgets=[0.5]", "evaluation.num_real=4"]
    assert (
        evaluate(runs["mine"], "--suite", "tiny", "--protocol", "paper", "--out", out, *words, "--json") == 0
    )
    rows = rows_of(capsys)
    assert {"pgd@0.5", "pgd-l2@0.5"} <= {str(row["attack"]) for row in rows}
    assert {row["model"] for row in rows} == {"original", "gat"}
    protocols = json.loads((out / "provenance.json").read_text())["protocols"]
    assert all(name.startswith("paper-") for name in protocols)
    assert {p["max_steps"] for p in protocols.values() if p["name"] == "latent"} == {1}
    linf = [p for p in protocols.values() if p["name"] == "pgd" and p["norm"] == "linf" and p["steps"]]
    assert {p["steps"] for p in linf} == {1}
    assert len({r.id for r in read_records(out / "records.jsonl") if r.attack == "pgd"}) == 4


def test_one_run_is_judged_in_its_own_folder_beside_what_it_was_judged_by(runs, capsys):
    folder = runs["at_pgd"]
    assert evaluate(folder, "--suite", "tiny", "--json") == 0
    rows = rows_of(capsys)
    assert {"own", "gat", "pgd"} <= {str(row["attack"]) for row in rows}
    assert {row["model"] for row in rows} == {"original", "adversarial_training"}
    assert load(RunConfig, [folder / "config.yaml"]).evaluation.suite == "tiny"
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    "words, says",
    [
        (["seed=1"], "wanted the folder of a run, got only settings"),
        (["{mine}", "--suite", "table3"], "invalid choice: 'table3'"),
        (["{mine}", "{mine}", "--suite", "tiny"], "named after the runs' folders, which must differ, got mine, mine"),
        (["{mine}", "nowhere", "--suite", "tiny"], "nowhere is not the folder of a run"),
        (["{at_pgd}", "--suite", "tiny", "generator=null"], "moves a generator's latents"),
        (["{mine}", "evaluation.transfer=cw"], "transfer: 'cw' is no attack on images; on offer: own"),
    ],
)  # fmt: skip
def test_mistakes_end_with_code_2_and_a_line_that_helps(runs, tmp_path, capsys, words, says):
    filled = [word.format_map(runs) for word in words]
    assert evaluate(*filled, "--out", tmp_path / "out") == 2
    assert says in capsys.readouterr().err


def test_other_data_and_folders_of_evaluations_are_refused(runs, tmp_path, capsys):
    other = make_run(tmp_path / "padded", "{name: gat}", 3)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("limit: 6", "limit: 7"))
    assert evaluate(runs["mine"], other, "--out", tmp_path / "out") == 2
    assert "has other data than" in capsys.readouterr().err
    (other / "config.yaml").write_text("runs: [a, b]\n")
    assert evaluate(other) == 2
    assert "is the folder of an evaluation; name its runs instead: a b" in capsys.readouterr().err
