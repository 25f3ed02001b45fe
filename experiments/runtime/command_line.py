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
        words = sys.argv[1:] if arguments is None else list(arguments)
        fail(f"unknown argument {in_context(unknown[0], words)}{suggestion(unknown[0], command)}")
    return at_home(parsed)


def in_context(word: str, words: Sequence[str]) -> str:
    """A word of a command, and the flag before it, which may be one that takes no value."""
    before = words[words.index(word) - 1] if word in words[1:] else ""
    is_value = before.startswith("--") and not word.startswith("-")
    return f"{word} after {before}" if is_value else word


def suggestion(word: str, command: Any) -> str:
    """How the message about a word that is no flag goes on: with the flag that is spelled most like
    it, and how to see all.
    """
    flag = word.partition("=")[0].replace("_", "-")
    alike = difflib.get_close_matches(flag, flags(command), n=1)
    return f"{f'; did you mean {alike[0]}?' if alike else ';'} --help lists all flags"


def at_home(value: Any) -> Any:
    """A command, or what is in it, with the user's folder for the `~` at the beginning of a path,
    which a shell leaves in `--flag=~/path`.
    """
    if isinstance(value, tuple):
        return tuple(map(at_home, value))
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith("~/")):
        return type(value)(Path(value).expanduser())
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    given = vars(value)
    changes = {name: at_home(part) for name, part in given.items()}
    changes = {name: part for name, part in changes.items() if part != given[name]}
    return dataclasses.replace(value, **changes) if changes else value


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
        if dataclasses.is_dataclass(hint):
            names += flags(hint)
            continue
        flag = (renamed or [name])[0].replace("_", "-")
        names += [f"--{flag}", f"--no-{flag}"] if hint is bool else [f"--{flag}"]
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
