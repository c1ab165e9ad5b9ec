"""The import contracts of pyproject.toml hold, and would notice if they did not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of our packages, python files only."""
    folder = tmp_path_factory.mktemp("sources")
    for package in ("gat", "generators", "tasks"):
        for file in (ROOT / package).rglob("*.py"):
            copy = folder / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def test_the_contracts_hold(sources: Path):
    code, output = lint(sources)
    assert code == 0, output


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("gat/latents.py", "import generators.stylegan2.generator", "knows neither generators nor tasks"),
        ("tasks/datasets/splits.py", "import generators.stylegan2.config", "do not know each other"),
        ("gat/protocols.py", "import gat.cli.sample", "nobody imports the command line"),
        ("gat/latents.py", "import gat.protocols", "no circles"),
    ],
)
def test_a_planted_violation_is_caught(sources: Path, file: str, planted: str, broken: str):
    original = (sources / file).read_text()
    try:
        (sources / file).write_text(original + f"\n{planted}\n")
        code, output = lint(sources)
    finally:
        (sources / file).write_text(original)
    assert code == 1
    verdict = re.search(re.escape(broken) + r".*? (KEPT|BROKEN)", " ".join(output.split()))
    assert verdict, output
    assert verdict[1] == "BROKEN"
