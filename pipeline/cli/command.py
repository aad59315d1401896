"""The class of all commands: nothing that is given on the command line, or was done, is passed over without a word."""

from __future__ import annotations

from typing import Any

import click

from manifests.errors import UsageError
from pipeline.printing import flush
from pipeline.standing import standing

#: Options of which the last counts, by their names in the code. They say how fast and in which form, never which store
#: is meant, or what is written where: scripts put such an option behind a default to have their way, as with other
#: tools.
LAST_COUNTS = frozenset({"output", "tool", "memory", "workers"})
_DONE = f"{__name__}.done"


class Command(click.Command):
    """A command that refuses an option given twice, unless it takes several values or is in LAST_COUNTS: of `--to A
    --to B`, A would be forgotten. It refuses empty values, too, for `restore "$RUN"` without a RUN would mean another
    run, and `--files-from "$LIST"` without a LIST everything."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # a shell completes a line that is not finished yet
            given, _, order = self.make_parser(ctx).parse_args(list(args))
            self.see(ctx, given, order)
        return super().parse_args(ctx, args)

    def see(self, ctx: click.Context, given: dict[str, object], order: list[click.Parameter]) -> None:
        """Look at the options before click makes values of them. `given`: values by the parameter's name, all of them
        where it takes several; `order`: the parameters in the order in which they stand on the command line. Raises
        UsageError."""
        for param in order:
            value = given.get(param.name or "")
            if value == "" or (isinstance(param, click.Option) and isinstance(value, list) and "" in value):
                raise UsageError(f"{_name(param)} is empty: give it a value, or leave it out")
        once = [param for param in order if isinstance(param, click.Option) and _counts_once(param)]
        for number, param in enumerate(once):
            if param in once[:number]:
                raise UsageError(f"{_name(param)} is given twice, and only one can count: leave the other out")

    def invoke(self, ctx: click.Context) -> Any:
        """All output is written before the command counts as ended, so that `stands` covers it."""
        with standing() as done:
            ctx.meta[_DONE] = done
            result = super().invoke(ctx)
            flush()
        return result


def stands(what: str) -> None:
    """Note what the running command has done and no error undoes: the message of one that follows says so."""
    click.get_current_context().meta[_DONE].append(what)


def _counts_once(option: click.Option) -> bool:
    return not (option.multiple or option.is_flag or option.name in LAST_COUNTS)


def _name(param: click.Parameter) -> str:
    return "/".join(param.opts) if isinstance(param, click.Option) else param.human_readable_name
