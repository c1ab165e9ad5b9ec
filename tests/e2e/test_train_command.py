"""The real command on real images, from an empty folder to the page, in one process and in two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gat.cli import main
from gat.evaluation.records import Record, read_records
from tasks.datasets.fashion_mnist import CLASSES
from tests.toys import tiny_garments

REPOSITORY = Path(__file__).parents[2]

CONFIG = """
name: tiny
data: {name: fashion_mnist, limit: 6, pad: 32}
model: {name: small_resnet, widths: [8], blocks: [1]}
generator: {name: stylegan2, checkpoint: GENERATOR}
base: {steps: 6, batch_size: 16, log_every: 2, save_every: 3}
method: {name: gat, attack: {max_steps: 2}}
train: {steps: 3, batch_size: 16, log_every: 1, save_every: 2}
evaluation:
  num_clean: 30
  num_real: 11
  num_generated: 10
  width: 4
  attacks:
    gat: {name: latent, max_steps: 2}
    pgd: {name: pgd, steps: 2}
gallery: {num_examples: 1, groups: [coarse], attack: {max_steps: 1}}
width: 8
"""


def train_gat(
    *words: str, launcher: tuple[str, ...] = (sys.executable,), **env: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env}
    return subprocess.run(
        [*launcher, str(REPOSITORY / "train_gat.py"), *words],
        capture_output=True, text=True, env=environment, timeout=300, cwd=REPOSITORY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.yaml").write_text(CONFIG.replace("GENERATOR", str(tiny_garments(folder))))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = train_gat("--config", str(config), f"out={folder}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["run"] == str(folder)
    return folder


def test_a_run_leaves_everything_in_its_folder(run: Path):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "provenance.json", "records.jsonl", "gallery.json", "report.html"} <= names
    assert {"base.safetensors", "original.safetensors", "gat.safetensors"} <= names
    assert not list(run.rglob("*.tmp"))
    assert "<html" in (run / "report.html").read_text().lower()
    facts = json.loads((run / "provenance.json").read_text())
    assert facts["classes"] == list(CLASSES)
    assert facts["hardware"]["processes"] == 1


def test_the_records_are_complete(run: Path):
    records = read_records(run / "records.jsonl")
    counts: dict[tuple[str, str], int] = {}
    for record in records:
        counts[record.model, record.attack] = counts.get((record.model, record.attack), 0) + 1
    each = {"none": 30, "gat": 10, "pgd": 11}
    assert counts == {(model, attack): n for model in ("original", "gat") for attack, n in each.items()}


def test_the_same_command_again_does_nothing_new_and_succeeds(config: Path, run: Path):
    kept = [path for path in run.rglob("*") if path.suffix == ".safetensors" or path.parent.name == "records"]
    times = {path: path.stat().st_mtime_ns for path in [*kept, *run.rglob("state.pt")]}
    cells = [path for path in kept if path.suffix == ".jsonl"]  # beside pictures and probes
    assert len([path for path in times if path.suffix in (".safetensors", ".pt")]) == 3 + 3
    assert len(cells) == 6
    done = train_gat("--config", str(config), f"out={run}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"page: {run / 'report.html'}"
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_the_written_settings_are_themselves_a_config(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--config", str(run / "config.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == (run / "config.yaml").read_text()


def test_a_dry_run_leaves_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        main(["train", "--config", str(config), f"out={tmp_path / 'run'}", "train.lr=1e-4", "--dry-run"]) == 0
    )
    assert "lr: 0.0001" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("train.stpes=3", "steps"),
        ("evaluation.attacks.pgd.step=3", "steps"),
        ("method.name=gta", "gat"),
        ("train.steps=-1", "train.steps"),
        ("generator.checkpoint=nowhere.pkl", "nowhere.pkl"),
        ("data.pad=64", "32 px"),
        ("generator=null", "method gat needs a generator"),
    ],
)
def test_a_mistake_ends_with_code_2_and_a_line_that_helps(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, says: str
):
    folder = tmp_path / "run"
    assert main(["train", "--config", str(config), f"out={folder}", word]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert "Traceback" not in shown.err
    assert not (folder / "config.yaml").exists()


def test_a_finished_run_is_measured_again_under_another_attack(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    old = {path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}
    word = "evaluation.attacks.fgsm={name: fgsm}"
    assert main(["evaluate", str(folder), word, "gallery=null", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {(row["model"], row["attack"]): row["n"] for row in rows}
    for model in ("original", "gat"):
        for attack, n in (("none", 30), ("gat", 10), ("pgd", 11), ("fgsm", 11), ("union", 11)):
            assert found.pop((model, attack)) == n
    assert {attack for _, attack in found} == {"mean_unseen", "worst"}
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows)
    new = {path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}
    assert len([name for name in new if name.endswith(".jsonl")]) == 6 + 2
    assert all(new[name] == old[name] for name in old)


def test_attacks_leave_pictures_of_what_they_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "bags.npz"
    words = ["attack", str(run), "--n", "5", "--target", "Bag", "--out", str(out), "--json", "max_steps=3"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    with np.load(out) as archive:
        assert archive["images"].shape == archive["start_images"].shape == (5, 32, 32, 3)
        assert 8 not in archive["labels"]  # nothing is aimed at its own class
        assert archive["success"].sum() == told["fooled"]
        assert (archive["predictions"][archive["success"]] == 8).all()
        untouched = archive["iterations"] == 0
        assert (archive["images"][untouched] == archive["start_images"][untouched]).all()
    assert (
        main(["attack", str(run), "--attack", "pgd", "--n", "3", "--out", str(tmp_path / "x.png"), "steps=1"])
        == 0
    )
    assert (tmp_path / "x.png").stat().st_size > 0
    assert main(["attack", str(run), "--target", "Bags", "--out", str(tmp_path / "y.png")]) == 2
    assert "no class 'Bags'; on offer: 0 T-shirt/top" in capsys.readouterr().err


def test_a_folder_refuses_models_of_other_settings(config: Path, run: Path):
    done = train_gat("--config", str(config), f"out={run}", "seed=5")
    assert done.returncode == 2
    assert "seed was 0, is 5" in done.stderr


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def same(a: Record, b: Record) -> bool:
    names = (
        "model",
        "attack",
        "protocol",
        "source",
        "id",
        "label",
        "clean_prediction",
        "prediction",
        "success",
        "iterations",
    )
    return all(getattr(a, name) == getattr(b, name) for name in names) and a.loss == pytest.approx(
        b.loss, rel=1e-3, abs=1e-4
    )


def test_two_processes_write_the_records_of_one(run: Path, tmp_path: Path):
    folder = tmp_path / "two"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "records")
    (folder / "records.jsonl").unlink()
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = ("--config", str(folder / "config.yaml"), f"out={folder}", "gallery=null")
    done = train_gat(*words, launcher=launcher, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "provenance.json").read_text())["hardware"]["processes"] == 2
    one, two = read_records(run / "records.jsonl"), read_records(folder / "records.jsonl")
    assert len(one) == len(two)
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
