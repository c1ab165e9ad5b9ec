"""`gat COMMAND ...`: the command line, and the only place in this package that knows generators and tasks.

A command is a module of the same name beside this file with

    a docstring                                               its help: what it does, then an example
    add_arguments(parser: argparse.ArgumentParser) -> None
    run(args: argparse.Namespace) -> int                      exit code

It is imported when it is asked for, so that `gat --help` does not wait for torch.

Exit codes: 0 done; 1 failed (a traceback follows unless the failure explains itself); 2 what was asked cannot be done, with
one line on standard error that says why; 130 interrupted.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

COMMANDS = {
    "train": "train a classifier on clean and adversarial images, then evaluate it and write the report",
    "attack": "attack a trained classifier and keep the pictures",
    "evaluate": "measure clean and attacked accuracy of the models of a run",
    "sample": "draw images from a generator's checkpoint",
    "convert": "turn a foreign StyleGAN2 or SPADE checkpoint into safetensors",
    "reproduce": "make a table of the paper again, every row and seed of it",
    "report": "write the page of a run",
    "doctor": "check this machine and this installation",
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run one command.

    Args:
        argv: words after the program's name; None takes the process's.
        prog: how the command was called, for its help; None is `gat COMMAND`.

    Returns:
        The exit code.
    """
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv), prog)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(words: list[str], prog: str | None) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"gat {_version()}")
        return 0
    command, *rest = words
    prog = prog or f"gat {command}"
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(f"gat: no command {command!r}; {hint}on offer: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    show_traceback = False
    try:
        module = import_module(f"gat.cli.{command}")
        parser = argparse.ArgumentParser(
            prog=prog, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(parser)
        parser.add_argument("--traceback", action="store_true", help="show where an error came from")
        args = parser.parse_intermixed_args(rest)
        show_traceback = args.traceback
        return int(module.run(args))
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if isinstance(error, ImportError) and error.name:
            raise  # not a reader that says what to install, but something broken
        if show_traceback:
            traceback.print_exc()
        print(f"{prog}: {_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gat COMMAND ...",
            "",
            "Generative adversarial training: attack classifiers with images that a generator renders from pushed latents,",
            "and train on them.",
            "",
            *lines,
            "",
            "`gat COMMAND --help` tells more. Start with: gat doctor",
        ]
    )


def _version() -> str:
    try:
        return version("gat-robust")
    except PackageNotFoundError:
        return "(not installed)"
