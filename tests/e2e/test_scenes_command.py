"""Scenes by the real commands, with the generator that ships: from an empty folder to the page, pictures and Table 1."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gat.cli import main
from gat.evaluation.records import read_records
from tests.toys import SCENES_ORACLE

STEPS = "{gamma/*: 0.05, beta/*: 0.05}"
RUN = f"""
data: {{name: fashion_scenes, labels: LABELS, num_train: 16, num_test: 6}}
model: MODEL
layouts: {{name: fashion_scenes, labels: LABELS, num_train: 24}}
generator: {{name: spade}}
oracle: {SCENES_ORACLE}
base: {{steps: 20, batch_size: 8, lr: 1.0e-2, warmup_steps: 2, log_every: 1, save_every: 2}}
method:
  name: gat
  attack: {{step_size: {STEPS}, max_steps: 2, stop_when_fooled: false}}
  rotation: [[fine, both], [all, gamma]]
  train_on: iterates
  only_fooling: false
  oversample: 1.0
train: {{steps: 2, batch_size: 4, log_every: 1, save_every: 1}}
evaluation:
  num_real: 3
  num_generated: 3
  width: 3
  attacks:
    gat-start: {{name: latent, step_size: {STEPS}, max_steps: 0}}
    gat: {{name: latent, step_size: {STEPS}, max_steps: 2, stop_when_fooled: false}}
    pgd: {{name: pgd, steps: 2}}
strips:
  attacks: {{gat: {{name: latent, step_size: {STEPS}, max_steps: 2, stop_when_fooled: false}}}}
  iterations: [0, 2]
  num_examples: 2
width: 4
"""
SCENES = {
    "segmentation": RUN.replace("LABELS", "masks").replace(
        "MODEL", "{name: small_segnet, widths: [8, 16], blocks: [1, 1]}"
    ),
    "detection": RUN.replace("LABELS", "boxes").replace("MODEL", "{name: small_fcos, widths: [8, 8, 16], blocks: [0, 1, 1], levels: 2}")
    .replace("train_on: iterates", "train_on: iterates\n  in_step: true").replace("save_every: 1}", "save_every: 2}"),
}  # fmt: skip


@pytest.fixture(scope="module", params=SCENES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "scenes.yaml").write_text(SCENES[request.param])
    assert main(["train", "--config", str(folder / "scenes.yaml"), f"out={folder / 'run'}"]) == 0
    return folder / "run"


def test_training_ends_with_a_page_of_both_models(run):
    records = read_records(run / "records.jsonl")
    assert {r.model for r in records} == {"original", "gat"}
    assert len(records) == 2 * (6 + 3 + 3 + 3)
    assert all(r.evidence is not None and 0 <= r.score <= 1 and 0 <= r.oracle_score <= 1 for r in records)
    moved = {r.id: r.distances["linf_gamma"] for r in records if r.attack == "gat" and r.model == "original"}
    assert len(moved) == 3
    if "segmentation" in str(run):  # so young a detector finds nothing, so there is nothing to attack
        assert any(moved.values())
    found = json.loads((run / "metrics.json").read_text())
    assert found["task"] == json.loads((run / "provenance.json").read_text())["task"]
    assert len(found["rows"]) == 8
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["data"]["train"] == 16 and provenance["data"]["layouts"] == 24
    page = (run / "report.html").read_text()
    assert {"segmentation": "Pixel accuracy", "detection": "Average precision"}[found["task"]] in page
    assert page.count("data:image/png;base64,") > 4


def test_pictures_of_an_attack_come_with_maps_or_boxes(run, tmp_path, capsys):
    words = [f"step_size={STEPS}", "max_steps=2"]
    assert main(["attack", str(run), "--n", "3", "--out", str(tmp_path / "x.npz"), *words]) == 0
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert archive["images"].shape == (3, 64, 64, 3)
        assert archive["labels"].shape[1:] in {(64, 64), (5, 6)}
        assert len(archive["predictions"]) == 3
    assert "before" in capsys.readouterr().out
    assert (
        main(["attack", str(run), "--attack", "pgd", "--n", "2", "--out", str(tmp_path / "x.png"), "steps=1"])
        == 0
    )
    rows = (
        5 if "segmentation" in str(run) else 3
    )  # start, attacked and change, with label maps below the first two or boxes in them
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.size == (2 * (3 * 64 + 3) + 3, rows * (3 * 64 + 3) + 3)
    assert main(["attack", str(run), "--labels", "Bag", "--out", str(tmp_path / "y.png"), *words]) == 2


def test_evaluating_again_repeats_nothing_and_takes_other_attacks(run, capsys):
    before = (run / "records.jsonl").read_text()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert (run / "records.jsonl").read_text() == before
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {row["attack"] for row in rows} >= {"none", "gat", "pgd"}


def test_more_test_scenes_may_be_judged_but_not_models_of_other_data(run, tmp_path, capsys):
    words = [str(run), "data.num_test=9", "evaluation.attacks={}", "strips=null"]
    assert main(["evaluate", *words, "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(row["model"], row["attack"], row["n"]) for row in rows] == [
        ("original", "none", 9),
        ("gat", "none", 9),
    ]
    found = json.loads((tmp_path / "metrics.json").read_text())
    for row, measured in zip(rows, found["rows"], strict=True):
        assert row[found["headline"]] == pytest.approx(
            measured["metrics"][found["headline"]]["value"], abs=1e-4
        )
    told = json.loads((tmp_path / "provenance.json").read_text())
    assert told["command"] == shlex.join(["gat", "evaluate", *words, "--out", str(tmp_path)])
    other = shutil.copytree(run, tmp_path / "other")
    assert main(["evaluate", *words, str(other), "--out", str(tmp_path / "both"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(row["model"], row["n"]) for row in rows] == [("original", 9), (run.name, 9), ("other", 9)]
    assert main(["evaluate", str(run), "--out", str(tmp_path), "data.num_train=3"]) == 2
    assert "holds models made with other settings (data was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model={name: small_resnet}"], "model small_resnet is for classification, but data fashion_scenes"),
        (["generator={name: stylegan2}"], "draws"),
        (["oracle.name=small_convnet"], "oracle"),
        (["label_smoothing=0.1"], "label_smoothing is for classification"),
        (
            ["layouts.labels=boxes"],
            "layouts: fashion_scenes has task detection, the training data fashion_scenes has segmentation",
        ),
        (
            ["layouts.image_size=32"],
            "has images of size (32, 32), the training data fashion_scenes has (64, 64)",
        ),
        (["layouts={name: fashion_mnist}"], "layouts: data fashion_mnist has none"),
        (
            ["generator=null", "method={name: standard}"],
            "layouts: only a generator of scenes draws from layouts",
        ),
        (["data.image_size=32"], "the generator draws images of 64x64 px, but the data has 32x32 px"),
    ],
)
def test_what_does_not_fit_scenes_is_refused(tmp_path, capsys, words, says):
    (tmp_path / "scenes.yaml").write_text(SCENES["segmentation"])
    assert main(["train", "--config", str(tmp_path / "scenes.yaml"), f"out={tmp_path / 'run'}", *words]) == 2
    assert says in capsys.readouterr().err


def test_table_1_holds_every_task_beside_the_papers(tmp_path, capsys):
    text = "".join(
        f"  {task}:\n" + "".join(f"    {line}\n" for line in content.strip().splitlines())
        for task, content in SCENES.items()
    )
    (tmp_path / "table1.yaml").write_text(f"seeds: [0]\nout: {tmp_path / 'runs'}\nruns:\n{text}")
    precision = {"segmentation": "bf16", "detection": "no"}
    command = ["reproduce", "table1", "--config", str(tmp_path / "table1.yaml")]
    command += ["--results", str(tmp_path / "results")]
    command += [f'runs.{task}.mixed_precision="{name}"' for task, name in precision.items()]
    assert main(command) == 0
    assert "Paper, original" in capsys.readouterr().out
    table = json.loads((tmp_path / "results/table.json").read_text())
    assert table["command"] == "gat " + shlex.join(command)
    cells = {(row["task"], row["model"], row["attack"]): row for row in table["rows"]}
    assert len(cells) == 8
    found = json.loads((tmp_path / "runs/seed0/segmentation/metrics.json").read_text())
    clean = found["rows"][0]["metrics"]["pixel_accuracy"]["value"]
    assert cells["segmentation", "original", "clean"]["value"] == pytest.approx(clean)

    found = {task: origin["hardware"]["mixed_precision"] for task, origin in table["origins"].items()}
    assert found == precision

    # A table of one task alone says so in its command, which else would train the others too.
    alone = ["--results", str(tmp_path / "alone"), "--task", "segmentation"]
    for _ in range(2):
        assert main([*command, *alone]) == 0
    of_one = json.loads((tmp_path / "alone/table.json").read_text())
    assert of_one["rows"] == [row for row in table["rows"] if row["task"] == "segmentation"]
    assert of_one["command"].endswith(" --task segmentation")

    # One task again: the other keeps its rows, without its runs, and is of the commit it was measured on.
    (tmp_path / "runs/seed0/detection").rename(tmp_path / "gone")
    table["origins"]["detection"]["commit"] = "long ago"
    (tmp_path / "results/table.json").write_text(json.dumps(table))
    command += ["--task"]
    assert main([*command, "segmentation"]) == 0
    again = json.loads((tmp_path / "results/table.json").read_text())
    assert again["rows"] == table["rows"]
    assert again["command"] == table["command"]
    assert again["other_attacks"] == table["other_attacks"]
    assert again["protocols"] == table["protocols"]
    assert again["origins"]["detection"]["commit"] == "long ago"
    assert again["origins"]["segmentation"] == table["origins"]["segmentation"]
    assert main([*command, "segmentation", "runs.detection.train.steps=77"]) == 2
    assert "has detection of other settings than these; run it too" in capsys.readouterr().err
    assert main([*command, "classification"]) == 2
    assert "there is no task classification; on offer: segmentation, detection" in capsys.readouterr().err


def test_a_dry_run_says_what_memory_the_attacks_will_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "scenes.yaml").write_text(SCENES["segmentation"])
    command = ["train", "--config", str(tmp_path / "scenes.yaml"), "--dry-run"]
    assert main([*command, "generator.memory_budget_gib=0.1"]) == 0
    out = capsys.readouterr().out
    notes = [line for line in out.splitlines() if line.startswith("# memory: ")]
    assert len(notes) == 4  # two turns of the rotation, two attacks; PGD moves no latents
    assert re.fullmatch(
        r"# memory: training: 6 sites moved, 1\.2 MiB an example; 0\.\d\d GiB for 4 at once \(the budget allows \d\), "
        "besides the attacked model",
        notes[0],
    )
    (tmp_path / "printed.yaml").write_text(out)
    assert main(["train", "--config", str(tmp_path / "printed.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == out
    assert main([*command, "generator.memory_budget_gib=0.01"]) != 0
    assert "move coarser groups, set coarse_grid, or raise memory_budget_gib" in capsys.readouterr().err
