"""`gat COMMAND ...`: the command line, and the only place in this package that knows generators and tasks.

A command is a module of the same name beside this file with

    a docstring                                               its help: what it does, then an example
    add_arguments(parser: argparse.ArgumentParser) -> None
    run(args: argparse.Namespace) -> int                      exit code

It is imported when it is asked for, so that `gat --help` does not wait for torch. Exit codes: see `gat.cli.exit_codes`.
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from gat.cli.exit_codes import exit_code

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
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        return exit_code("gat", lambda: _without_command(words))
    command, *rest = words
    prog = prog or f"gat {command}"
    args = argparse.Namespace(traceback=False)

    def work() -> int:
        module = import_module(f"gat.cli.{command}")
        parser = argparse.ArgumentParser(
            prog=prog, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(parser)
        parser.add_argument("--traceback", action="store_true", help="show where an error came from")
        parser.parse_intermixed_args(rest, args)
        return int(module.run(args))

    return exit_code(prog, work, lambda: args.traceback)


def _without_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"gat {_version()}")
        return 0
    near = get_close_matches(words[0], COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    print(f"gat: no command {words[0]!r}; {hint}on offer: {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


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
