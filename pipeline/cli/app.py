"""The command group, and how every ending becomes an exit code."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from manifests.errors import DrystoneError, UsageError
from pipeline.printing import begin, drop_output, flush, warn, warn_of_fault

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

_UNREAD = 128 + signal.SIGPIPE


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

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
    "-s", "--store", metavar="DIR", envvar="DRYSTONE_STORE", help="The store: its directory or any one backend."
)
@click.version_option(package_name="drystone", prog_name="drystone")
@click.pass_context
def cli(context: click.Context, store: str | None) -> None:
    """Drystone: a bulk archiver that survives lost disks and rotten bits.

    \b
    drystone init /mnt/archive
    drystone -s /mnt/archive ingest ~/data
    drystone -s /mnt/archive restore latest --to /tmp/back
    """
    if store == "":
        raise UsageError("-s is empty: name a store")
    context.obj = {"store": store}


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit: 0 done, 1 failed, 2 usage, 3 done but something was skipped or lost, 4 something
    wants repair, 130 and 143 on SIGINT and SIGTERM, 141 where nobody reads the output any more."""
    begin()
    code = _run(arguments)
    sys.stderr.flush()
    # All is closed and flushed. To take down an interpreter with DuckDB in it costs 20 ms, which nobody has a use for.
    os._exit(code)


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends by `error`: this is the rule."""
    if isinstance(error, (click.exceptions.Exit, DrystoneError)):
        return error.exit_code
    if isinstance(error, click.ClickException):
        return 2
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 130
    return _UNREAD if isinstance(error, BrokenPipeError) else 1


def _run(arguments: list[str] | None) -> int:
    try:
        result: Any = cli.main(arguments, prog_name="drystone", standalone_mode=False)
        flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ending:
        return exit_code_of(ending)
    except click.ClickException as error:
        warn(_usage_line(error))
        return exit_code_of(error)
    except (KeyboardInterrupt, click.Abort) as error:
        warn("drystone: stopped; nothing was committed")
        return exit_code_of(error)
    except DrystoneError as error:
        warn(f"drystone: {error}")
        return exit_code_of(error)
    except (BrokenPipeError, SystemExit):  # the latter is what click makes of the former, and of nothing else
        # Whoever read our output has enough: end quietly, with the code of a tool that SIGPIPE killed. Not with 0, to
        # please `set -o pipefail`: what was left unsaid may be that something is lost.
        drop_output()
        return _UNREAD
    except OSError as error:
        # What commands write to themselves is reported by them; this is standard output, on a disk that is full, say.
        warn(f"drystone: writing the output failed: {error.strerror}")
        drop_output()
        return exit_code_of(error)
    except Exception as error:  # a fault of Drystone's own
        warn_of_fault(error)
        return exit_code_of(error)


def _usage_line(error: click.ClickException) -> str:
    """What is wrong with the command line, in click's words, and where to look it up."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "drystone"
    return f"{command}: {error.format_message()} See: {command} --help"
