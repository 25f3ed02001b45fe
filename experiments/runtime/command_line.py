"""Typed command lines: a frozen dataclass is the list of flags, and a wrong command
gets one line.
"""

import contextlib
import dataclasses
import difflib
import functools
import io
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import tyro

from experiments.runtime import processes
from experiments.runtime.errors import RunnerError, Stopped, UsageError

Command = TypeVar("Command")


def parse(
    command: type[Command],
    program: str,
    arguments: Sequence[str] | None = None,
    default: Command | None = None,
) -> Command:
    """Read the flags of a dataclass, nested dataclasses without prefix, from `arguments` (None: the
    process's own).

    What no flag says is as in `default`, or as the dataclass has it.

    A flag or value that is not understood ends the process with one line on stderr and exit code 2.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: Any
            parsed, unknown = tyro.cli(
                command,
                prog=program,
                args=arguments,
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
                return_unknown_args=True,
            )
    except SystemExit as exit:
        if not exit.code:  # --help
            raise
        fail(first_paragraph(errors.getvalue()))
    if unknown:
        fail(f"unknown argument {unknown[0]}{suggestion(unknown[0], flags(command))}")
    return at_home(parsed)


def suggestion(word: str, known: Sequence[str]) -> str:
    """How the message about a word that is no flag goes on: with the flag that is spelled most like
    it, and how to see all.
    """
    flag = word.partition("=")[0].replace("_", "-")
    alike = difflib.get_close_matches(flag, known, n=1)
    return f"{f'; did you mean {alike[0]}?' if alike else ';'} --help lists all flags"


def at_home(command: Any) -> Any:
    """The command with the user's folder for the `~` at the beginning of a path, which a shell
    leaves in `--flag=~/path`.
    """
    changes: dict[str, Any] = {}
    for name, value in vars(command).items():
        if dataclasses.is_dataclass(value):
            changes[name] = at_home(value)
        elif isinstance(value, Path) or (isinstance(value, str) and value.startswith("~/")):
            changes[name] = type(value)(Path(value).expanduser())
    changes = {name: value for name, value in changes.items() if value != getattr(command, name)}
    return dataclasses.replace(command, **changes) if changes else command


def flags(command: Any) -> list[str]:
    """The flags of a dataclass, those of nested dataclasses among them."""
    names = []
    for name, hint in get_type_hints(command, include_extras=True).items():
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            continue
        renamed = [
            extra.name
            for extra in getattr(hint, "__metadata__", ())
            if getattr(extra, "name", None)
        ]
        names += (
            flags(hint)
            if dataclasses.is_dataclass(hint)
            else ["--" + (renamed or [name])[0].replace("_", "-")]
        )
    return names


def first_paragraph(box: str) -> str:
    """What an error box of tyro says between its title and the next rule, as one line."""
    rows = [line.strip("│ ") for line in box.splitlines()[1:]]
    paragraphs = re.split(r"^[─╰╯-]+$", "\n".join(rows), flags=re.MULTILINE)
    text = " ".join(next(filter(str.strip, paragraphs)).split())
    return re.sub(r"^Error parsing (?!--)\S+: ", "", text)


def fail(message: str) -> NoReturn:
    """End the process as for a command that is not understood."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def entry_point(
    module: str,
    kind: type[Command],
    run: Callable[[Command, str], int | None],
    default: Callable[[Sequence[str]], Command] | None = None,
) -> Callable[..., int]:
    """The function `main(arguments=None)` of a command: it reads the flags, does what they ask for,
    and returns `exit_code`.

    Args:
        module: which `python -m` runs.
        kind: the dataclass of its flags.
        run: is given the flags, and the command as it was typed.
        default: from the words of the command to what no flag says; None: as the dataclass has it.
    """

    def main(arguments: Sequence[str] | None = None) -> int:
        words = sys.argv[1:] if arguments is None else arguments
        command = parse(kind, f"python -m {module}", words, default(words) if default else None)
        return exit_code(functools.partial(run, command), module, words)

    return main


def exit_code(run: Callable[[str], int | None], module: str, arguments: Sequence[str]) -> int:
    """Do what a command asks for; `run` is given the command as it was typed.

    Returns:
        What `run` does, or 0; after a RunnerError, which is printed, 2 if it is a mistake in the
        command and 1 if not; 130 after Ctrl-C, and 0 after SIGTERM, since then all went as it
        should, with the command that goes on from there.
    """
    typed = shlex.join(["python", "-m", module, *arguments])
    try:
        return run(typed) or 0
    except UsageError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        processes.leave(2)
        return 2
    except RunnerError as error:
        print(f"error: {error}", file=sys.stderr)
        processes.leave(1)
        return 1
    except Stopped as stopped:
        print(f"{stopped}; to go on:\n  {typed}", file=sys.stderr)
        return 0 if stopped.preempted else 130
