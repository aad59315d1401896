"""Options of commands that say where their metrics go, and the command within."""

from __future__ import annotations

from functools import wraps
from typing import Any

import click

from pipeline.cli.app import exit_code_of
from pipeline.cli.options import Decorated, Parsed
from pipeline.metrics.publication import Address, Publication
from pipeline.printing import warn


def metrics_options(command: Decorated) -> Decorated:
    """`--metrics-port`, `--metrics-dir` and `--metrics-push`; stands right above `pass_context`. The store that the
    command opens by `open_store` is the one that the metrics tell of."""

    @wraps(command)
    def published(
        *arguments: Any,
        metrics_port: Address | None,
        metrics_dir: str | None,
        metrics_push: str | None,
        **options: Any,
    ) -> Any:
        publication = Publication(metrics_port, metrics_dir or None, metrics_push or None)
        if publication == Publication() or options.get("dry_run"):  # which is no success of what it tries
            return command(*arguments, **options)
        return _published(publication, lambda: command(*arguments, **options))

    for option in (
        click.option(
            "--metrics-push",
            metavar="URL",
            envvar="DRYSTONE_METRICS_PUSH",
            help="Push metrics to a Prometheus Pushgateway at the end.",
        ),
        click.option(
            "--metrics-port",
            type=Parsed("[ADDR:]PORT", Address.parse),
            metavar="[ADDR:]PORT",
            envvar="DRYSTONE_METRICS_PORT",
            help="Serve Prometheus metrics meanwhile, at 127.0.0.1 unless told; 0: any port.",
        ),
        click.option(
            "--metrics-dir",
            metavar="DIR",
            envvar="DRYSTONE_METRICS_DIR",
            help="Write metrics as a file for node-exporter into DIR at the end.",
        ),
    ):
        published = option(published)
    return published


def _published(publication: Publication, command: Decorated) -> Any:
    from pipeline.metrics.figures import StoreFigures
    from pipeline.metrics.publish import Publisher

    context = click.get_current_context()
    figures = context.obj["figures"] = StoreFigures()
    publisher = context.obj["publisher"] = Publisher(publication, _name(context), figures, warn)
    code = 1
    try:
        result = command()
        code = result if isinstance(result, int) else 0
        return result
    except BaseException as error:
        code = exit_code_of(error)
        raise
    finally:
        publisher.end(code)


def _name(context: click.Context) -> str:
    """`ingest`, `backend_add`: the command by the names that lead to it."""
    names = []
    while context.parent is not None:
        names.append(context.info_name or "")
        context = context.parent
    return "_".join(reversed(names))
