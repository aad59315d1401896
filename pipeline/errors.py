"""Errors of the pipeline.

DrystoneError
├── OutputFailed          standard output could not be written to
├── OutputKept            what is in the place of an output file was kept; `exit_code` is 3
└── PipelineError         a run of workers ended badly
    ├── StageFailed       a stage raised: which, on what, with the worker's traceback as its cause
    ├── WorkerDied        a worker process died: which, by which signal, while reading what
    ├── ForkServerLost    the process that starts workers ended
    ├── CommandFailed     the command whose output was to be archived did not end well
    └── Interrupted       SIGINT or SIGTERM; `exit_code` is 130 or 143
"""

from __future__ import annotations

import signal

from manifests.errors import DrystoneError


class OutputFailed(DrystoneError):
    """Standard output could not be written to. `unread`: because nobody reads it any more."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"writing the output failed: {error.strerror}")
        self.unread = isinstance(error, BrokenPipeError)
        # As of a tool that SIGPIPE killed. Not 0, to please `set -o pipefail`: the message that nobody read may have
        # said that something is lost.
        self.exit_code = 128 + signal.SIGPIPE if self.unread else 1


class OutputKept(DrystoneError):
    """An output file was not written, for something is in its place that is not to be replaced."""

    exit_code = 3


class PipelineError(DrystoneError):
    """A run of workers ended badly. `worker`: by whom, where it was one."""

    worker = ""


class StageFailed(PipelineError):
    """A stage raised an error in a worker."""


class WorkerDied(PipelineError):
    """A worker process died without a word."""


class ForkServerLost(PipelineError):
    """The process that starts workers ended."""


class CommandFailed(PipelineError):
    """The command whose output was to be archived failed, or was killed."""


class Interrupted(PipelineError):
    """The user or the system asked for an end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class RemoteTraceback(Exception):
    """Traceback of a worker as text: the cause of the error that is raised again in the supervisor."""

    def __init__(self, text: str) -> None:
        super().__init__(f"\n{text}")
