"""The command line as a whole: what a wrong word, a failure and an interruption look like."""

import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gat.cli import COMMANDS, main
from gat.config import ConfigError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces `gat doctor` by a command that does what the test says."""
    module = ModuleType("gat.cli.doctor", doc="Checks.\n\nExample:\n    gat doctor")
    module.add_arguments = lambda parser: parser.add_argument("words", nargs="*")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gat.cli.doctor", module)

    def install(run: Any) -> None:
        module.run = run  # type: ignore[attr-defined]

    return install


def raises(error: BaseException) -> Any:
    def run(args: Any) -> int:
        raise error

    return run


def test_help_names_every_command_and_loads_none_of_them():
    began = time.monotonic()
    code = "import sys; from gat.cli import main; code = main(['--help']); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example" in shown
    assert f"gat {command} " in shown.split("Example")[1] or f"gat {command}\n" in shown.split("Example")[1]


def test_no_command_is_an_error_that_shows_the_commands(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "doctor" in capsys.readouterr().out


def test_a_misspelt_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]):
    assert main(["trian"]) == 2
    says = capsys.readouterr().err
    assert says.startswith("gat: no command 'trian'; did you mean 'train'? on offer: ")


def test_words_and_options_may_be_mixed(command: Any):
    seen: list[str] = []
    command(lambda args: seen.extend(args.words) or 0)
    assert main(["doctor", "a=1", "--traceback", "b=2"]) == 0
    assert seen == ["a=1", "b=2"]


@pytest.mark.parametrize(
    "error", [ValueError("wanted a cat, got a dog"), ConfigError("wanted a cat, got a dog")]
)
def test_a_users_mistake_is_one_line_and_code_2(
    command: Any, error: Exception, capsys: pytest.CaptureFixture[str]
):
    command(raises(error))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "gat doctor: wanted a cat, got a dog\n"


def test_a_missing_file_is_named(command: Any, capsys: pytest.CaptureFixture[str]):
    command(lambda args: Path("no/such/file").stat())
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "gat doctor: no/such/file: No such file or directory\n"


def test_a_reader_that_misses_a_package_says_so_in_one_line(command: Any, capsys: pytest.CaptureFixture[str]):
    command(raises(ImportError("x.lmdb is a database: pip install lmdb to read it")))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "gat doctor: x.lmdb is a database: pip install lmdb to read it\n"


def test_the_traceback_of_a_mistake_is_shown_on_request(command: Any, capsys: pytest.CaptureFixture[str]):
    command(raises(ValueError("wanted a cat")))
    assert main(["doctor", "--traceback"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_diverged_training_is_one_line_and_code_1(command: Any, capsys: pytest.CaptureFixture[str]):
    command(raises(FloatingPointError("the loss is NaN at step 7")))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "gat doctor: the loss is NaN at step 7\n"


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), KeyError("a bug"), ModuleNotFoundError("a bug", name="gat.x")]
)
def test_a_fault_of_the_program_keeps_its_traceback(command: Any, error: Exception):
    command(raises(error))
    with pytest.raises(type(error)):
        main(["doctor"])


def test_an_interruption_is_code_130(command: Any, capsys: pytest.CaptureFixture[str]):
    command(raises(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "gat doctor: interrupted\n"


def test_an_unknown_option_is_code_2(command: Any, capsys: pytest.CaptureFixture[str]):
    command(lambda args: 0)
    assert main(["doctor", "--no-such-option"]) == 2
    assert "--no-such-option" in capsys.readouterr().err


def test_the_exit_code_of_a_command_is_handed_on(command: Any):
    command(lambda args: 1)
    assert main(["doctor"]) == 1


def test_a_reader_that_hangs_up_early_sees_no_traceback():
    program = (
        f"{shlex.quote(sys.executable)} -c 'import sys; from gat.cli import main; sys.exit(main())' --help"
    )
    done = subprocess.run(f"{program} | true", shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""
