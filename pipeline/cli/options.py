"""Options that commands share, and their one way of being read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from manifests.errors import DrystoneError, UsageError
from manifests.oserrors import in_words
from manifests.sizes import parse_size
from pipeline.budget import DEFAULT_MEMORY
from pipeline.printing import warn

if TYPE_CHECKING:
    from pipeline.filestore import FileStore

_JSON = f"{__name__}.json"
FORMATS = ("table", "json", "jsonl", "csv", "parquet")
Decorated = Callable[..., Any]


class Parsed(click.ParamType[Any]):
    """A parameter read by one of our own parsers, whose complaint becomes a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = Parsed("SIZE", parse_size)


def store_option(command: Decorated) -> Decorated:
    """`-s/--store` and `--adopt-copy` behind the command's name, too."""
    command = click.option(
        "--adopt-copy",
        is_flag=True,
        expose_value=False,
        callback=_note_adoption,
        help="The store is a copy: first give it ids of its own.",
    )(command)
    return click.option(
        "-s", "--store", multiple=True, metavar="DIR", callback=note_store, help="The store; or set DRYSTONE_STORE."
    )(command)


def note_store(context: click.Context, param: click.Parameter, places: tuple[str, ...]) -> str | None:
    """The store that `-s` names, before or behind the command's name. Raises UsageError where there are two of
    them: the one that is passed over may be the one that was meant."""
    noted = context.ensure_object(dict)
    for place in places:
        if not place:
            raise UsageError(f"{'/'.join(param.opts)} is empty: name a store, or leave it out")
        first = noted.setdefault("store", place)
        if os.path.normpath(first) != os.path.normpath(place):
            raise UsageError(f"-s names two stores, {first} and {place}: leave one of them out")
    return noted.get("store")


def _note_adoption(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        context.obj["adopt_copy"] = True


def format_options(command: Decorated) -> Decorated:
    """`--format`, and `--json` for short."""
    command = click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_note_json,
        help="Short for --format json.",
    )(command)
    return click.option(
        "--format",
        "output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        callback=_choose_format,
        help="Form of the output.",
    )(command)


def _note_json(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    context.meta[_JSON] = wanted


def _choose_format(context: click.Context, _: click.Parameter, output: str) -> str:
    if not context.meta[_JSON]:
        return output
    is_given = context.get_parameter_source("output") is ParameterSource.COMMANDLINE
    if is_given and output != "json":
        raise UsageError(f"--json and --format {output} contradict each other: leave one out")
    return "json"


def quiet_option(command: Decorated) -> Decorated:
    return click.option("-q", "--quiet", is_flag=True, help="No progress, no tables.")(command)


def verbose_option(command: Decorated) -> Decorated:
    return click.option("-v", "--verbose", is_flag=True, help="Name everything that is wrong.")(command)


def memory_option(command: Decorated) -> Decorated:
    return click.option(
        "--memory",
        type=SIZE,
        default=DEFAULT_MEMORY,
        metavar="SIZE",
        help="Of all processes together [default: 600MiB].",
    )(command)


def resource_options(command: Decorated) -> Decorated:
    """`--workers` and `--memory`."""
    command = memory_option(command)
    return click.option("--workers", type=click.IntRange(1), help="Worker processes [default: one a core].")(command)


def cache_directory() -> Path | None:
    """Where the environment wants caches: DRYSTONE_CACHE, XDG_CACHE_HOME, or None for the default. A relative
    XDG_CACHE_HOME counts for nothing, as the XDG rules say."""
    if own := os.environ.get("DRYSTONE_CACHE"):
        return Path(own)
    if os.path.isabs(base := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(base) / "drystone"
    return None


def open_store(context: click.Context, store: str | None) -> FileStore:
    """The FileStore that the command line or the environment names. Raises UsageError when no store is named."""
    from pipeline.filestore import FileStore
    from pipeline.signalwatch import QueryWatch

    location = store or os.environ.get("DRYSTONE_STORE")
    if not location:
        raise UsageError("which store? give -s DIR, or set DRYSTONE_STORE")
    try:
        adopt_copy = context.obj["adopt_copy"]
        figures = context.obj.get("figures")
        opened = FileStore.open(location, cache=cache_directory(), figures=figures, adopt_copy=adopt_copy)
    except OSError as error:
        raise DrystoneError(f"opening the store {location} failed: {in_words(error)}") from error
    if (publisher := context.obj.get("publisher")) is not None:
        from pipeline.owndirectories import backend_directories

        try:
            publisher.keep_out_of(backend_directories(opened.members))
        except BaseException:
            opened.close()
            raise
    context.with_resource(QueryWatch(None, opened.stop_queries, opened.resume_queries))
    if adopt_copy:
        warn(f"drystone: the copy at {location} is a store of its own now, {opened.config.store_id}")
    for notice in [*opened.notices, *(() if context.params.get("quiet") else opened.members.asides)]:
        warn(f"drystone: {notice}")
    return opened
