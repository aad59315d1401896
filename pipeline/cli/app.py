"""The command group, and how every ending becomes an exit code."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from manifests.errors import DrystoneError
from manifests.limits import denied
from pipeline.cli.options import note_store
from pipeline.errors import OutputFailed
from pipeline.printing import drop_output, flush, warn, warn_of_fault
from pipeline.streams import install

#: Command → module that holds it; loaded when it is called, so that help and errors come fast.
COMMANDS = {
    "init": "pipeline.cli.init",
    "ingest": "pipeline.cli.ingest",
    "runs": "pipeline.cli.listing",
    "ls": "pipeline.cli.listing",
    "stats": "pipeline.cli.listing",
    "digests": "pipeline.cli.digests",
    "compare": "pipeline.cli.compare",
    "restore": "pipeline.cli.restore",
    "cat": "pipeline.cli.restore",
    "verify": "pipeline.cli.verify",
    "index": "pipeline.cli.index",
    "status": "pipeline.cli.status",
    "backend": "pipeline.cli.backend",
}
SUMMARIES = {
    "init": "Make a store.",
    "ingest": "Archive files, directories or standard input as one run.",
    "runs": "List the runs.",
    "ls": "List the objects of a run.",
    "stats": "Show what the store holds and what it costs.",
    "digests": "Print digests as b3sum and sha256sum do.",
    "compare": "Compare a run with a directory.",
    "restore": "Restore a run, a path or a byte range.",
    "cat": "Write an object, or a range of it, to standard output.",
    "verify": "Check that everything is there and whole.",
    "index": "Show the dedupe index, or build it anew.",
    "status": "Say whether the store is safe, and what to do next.",
    "backend": "List, add and remove backends.",
}
#: What the commands are called elsewhere.
ELSEWHERE = {
    "archive": "ingest",
    "backup": "ingest",
    "check": "verify",
    "create": "ingest",
    "diff": "compare",
    "dump": "cat",
    "extract": "restore",
    "info": "stats",
    "list": "runs",
    "snapshots": "runs",
}


def _near(word: str) -> str:
    """The command that somebody means who writes `word`, or empty."""
    from difflib import get_close_matches

    return ELSEWHERE.get(word) or "".join(get_close_matches(word, COMMANDS, n=1))


class _Carried(Exception):
    """Carries an error, as its cause, past click, which takes any pipe that broke for the output, and any end of a file
    for Ctrl-C."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (OSError, EOFError) as error:
            raise _Carried from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = _near(args[0].lower())
            raise click.UsageError(f"No such command {args[0]!r}." + (f" Did you mean {near!r}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-s",
    "--store",
    multiple=True,
    expose_value=False,
    metavar="DIR",
    callback=note_store,
    help="The store: its directory or any one backend.",
)
@click.option("--adopt-copy", is_flag=True, help="The store is a copy: first give it ids of its own.")
@click.version_option(package_name="drystone", prog_name="drystone")
@click.pass_context
def cli(context: click.Context, adopt_copy: bool) -> None:
    """Drystone: a bulk archiver that survives lost disks and rotten bits.

    \b
    drystone init /mnt/archive
    drystone -s /mnt/archive ingest ~/data
    drystone -s /mnt/archive restore latest --to /tmp/back
    """
    context.ensure_object(dict)["adopt_copy"] = adopt_copy


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit: 0 done, 1 failed, 2 usage, 3 done but something was skipped or lost, 4 something
    wants repair, 130 and 143 on SIGINT and SIGTERM, 141 where nobody reads the output any more."""
    install()
    code = _run(arguments)
    sys.stderr.flush()
    end_fork_server()
    # All is closed and flushed. To take down an interpreter with DuckDB in it costs 20 ms, which nobody has a use for.
    os._exit(code)


def end_fork_server() -> None:
    """Leave no process behind, which nobody in a container may look after."""
    module = sys.modules.get("pipeline.forkserver")
    if module is not None:
        module.end()


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends by `error`: this is the rule."""
    if isinstance(error, (click.exceptions.Exit, DrystoneError)):
        return error.exit_code
    if isinstance(error, click.ClickException):
        return 2
    return 130 if isinstance(error, (KeyboardInterrupt, click.Abort)) else 1


def _run(arguments: list[str] | None) -> int:
    try:
        result: Any = cli.main(arguments, prog_name="drystone", standalone_mode=False)
        flush()
        return result if isinstance(result, int) else 0
    except SystemExit as ended:  # click has answered a shell that completes a command line
        flush()
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException as raised:
        error = raised
        if isinstance(raised, _Carried | click.Abort) and raised.__cause__ is not None:
            error = raised.__cause__
        _tell(error)
        return exit_code_of(error)


def _tell(error: BaseException) -> None:
    """Say in one line how the command ended, and what was done and stands; a fault of Drystone's own with its place."""
    done = list(getattr(error, "__notes__", ()))
    if isinstance(error, click.exceptions.Exit):
        return
    if isinstance(error, OutputFailed):
        drop_output()
        if error.unread and not done:
            return  # whoever read our output has enough
        reason = "nobody reads the output any more" if error.unread else str(error)
    elif isinstance(error, click.exceptions.NoArgsIsHelpError):
        for line in error.ctx.get_help().split("\n"):
            warn(line)
        return
    elif isinstance(error, click.ClickException):
        warn(_usage_line(error))
        return
    elif isinstance(error, (KeyboardInterrupt, click.Abort)):
        reason = "stopped"
    elif isinstance(error, DrystoneError):
        reason = str(error)
    elif (limit := denied(error)) is not None:
        reason = limit
    elif isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        reason = f"{os.fsdecode(error.filename)}: {error.strerror}"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        from tempfile import gettempdir

        reason = f"{error.strerror}, it seems for temporary files, which go to {gettempdir()}: make room, or set TMPDIR"
    elif isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        reason = _denied_temporary_files() or f"{error.strerror}: make room in one of them, or set TMPDIR"
    else:
        warn_of_fault(error)
        reason = "that is a fault of Drystone's own; please report it"
    warn("; ".join([f"drystone: {reason}", *done]))


def _denied_temporary_files() -> str | None:
    """The limit that kept this process from trying out directories for temporary files: one that works now, with fewer
    files open, is what tells."""
    from tempfile import gettempdir

    try:
        gettempdir()
    except FileNotFoundError:
        return None
    return denied(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))


def _usage_line(error: click.ClickException) -> str:
    """What is wrong with the command line, in click's words, and where to look it up."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "drystone"
    return f"{command}: {error.format_message().rstrip('.')}. See: {command} --help"
