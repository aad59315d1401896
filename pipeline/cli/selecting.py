"""Options of ingest that say what goes in and what is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from manifests.errors import UsageError
from pipeline.cli.command import Command
from pipeline.cli.options import SIZE, Decorated
from pipeline.textfile import beginning
from stages.select import SelectOptions

_META = "drystone.patterns"
_PATTERN_OPTIONS = ("exclude", "include", "exclude_from")


class SelectingCommand(Command):
    """A command that keeps the order in which different options for patterns were given: the last match decides."""

    def see(self, ctx: click.Context, given: dict[str, Any], order: list[click.Parameter]) -> None:
        super().see(ctx, given, order)
        values = {name: iter(given.get(name) or ()) for name in _PATTERN_OPTIONS}
        ctx.meta[_META] = [(param.name, next(values[param.name])) for param in order if param.name in values]


def _pattern_option(name: str, metavar: str, text: str) -> Any:
    return click.option(name, multiple=True, expose_value=False, metavar=metavar, help=text)


def selecting_options(command: Decorated) -> Decorated:
    """`--exclude` and its like, `--files-from` and `-0`. Order is kept by SelectingCommand."""
    for option in reversed(
        [
            _pattern_option("--exclude", "PATTERN", "Leave out what a gitignore line matches."),
            _pattern_option("--include", "PATTERN", "Take in again what a pattern before it left out."),
            _pattern_option("--exclude-from", "FILE", "Patterns, one a line, as in gitignore."),
            click.option(
                "--exclude-caches", is_flag=True, help="Leave out the contents of directories with CACHEDIR.TAG."
            ),
            click.option("--exclude-larger-than", type=SIZE, metavar="SIZE", help="Leave out files of more bytes."),
            click.option("-x", "--one-file-system", is_flag=True, help="Do not go into other file systems."),
            click.option(
                "--files-from", default="", metavar="FILE", help="Archive only what FILE (- for standard input) lists."
            ),
            click.option("-0", "--null", "nul", is_flag=True, help="Entries of --files-from end with NUL."),
        ]
    ):
        command = option(command)
    return command


def select_options(
    context: click.Context, caches: bool, larger_than: int | None, one_file_system: bool
) -> SelectOptions:
    """What the command line leaves out. Raises UsageError."""
    patterns: list[str] = []
    for name, value in context.meta[_META]:
        patterns += _PATTERN_READERS[name](value)
    return SelectOptions(tuple(patterns), caches, larger_than, one_file_system)


def _exclude(pattern: str) -> Iterator[str]:
    # A comment makes no sense here, a name like #backup# does.
    yield "\\" + pattern if pattern.startswith("#") else pattern


def _include(pattern: str) -> Iterator[str]:
    if pattern.startswith("!"):
        raise UsageError(f"--include {pattern}: say --exclude {pattern[1:]}")
    yield "!" + pattern


def _exclude_from(name: str) -> Iterator[str]:
    try:
        with open(name, "rb") as file:
            data = beginning(file.read(), name)
    except OSError as error:
        raise UsageError(f"--exclude-from {name}: {error.strerror}") from error
    if b"\0" in data:
        raise UsageError(f"--exclude-from {name} holds NUL bytes, as UTF-16 does: write it as UTF-8")
    for line in data.split(b"\n"):
        text = os.fsdecode(line.removesuffix(b"\r"))
        if text.strip() and not text.startswith("#"):
            yield text


_PATTERN_READERS: dict[str, Any] = {"exclude": _exclude, "include": _include, "exclude_from": _exclude_from}
