"""A command whose output is archived: started, waited for, and ended. Without a shell."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from types import TracebackType

from manifests.errors import UsageError
from pipeline.errors import CommandFailed
from pipeline.signalwatch import SignalWatch

PATIENCE_SECONDS = 3.0


class FeedingCommand:
    """A running command; `fd` is the end of its standard output. Use as a context manager: if it has not ended by then,
    it and all that is in its group is ended. What it leaves behind when it ends by itself is its own affair.

    It has a session of its own, so that Ctrl-C reaches it through us alone, and all that it started can be ended with
    it; so it can't ask for passwords at the terminal."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises UsageError when it can't be started."""
        self._name = command[0]
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, env=os.environ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"starting the command {self._name!r} failed: {reason}") from error
        assert self._process.stdout is not None  # as it was asked for
        self._output = self._process.stdout
        self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def fd(self) -> int:
        return self._output.fileno()

    def __enter__(self) -> FeedingCommand:
        return self

    def require_success(self, signals: SignalWatch) -> None:
        """Wait until it has ended, which may be after the end of its output. Raises CommandFailed unless it exits with
        0, and Interrupted."""
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)
        waiting.register(signals.fd, select.POLLIN)
        while self._process.poll() is None:
            waiting.poll()
            signals.check()
        code = self._process.returncode
        if code:
            names = {each.value: each.name for each in signal.Signals}
            how = f"was killed by {names.get(-code, f'signal {-code}')}" if code < 0 else f"ended with exit code {code}"
            raise CommandFailed(f"the command {self._name!r} {how}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.close()
        try:
            self._end()
        finally:
            os.close(self._pidfd)

    def _end(self) -> None:
        if self._process.returncode is not None:
            return
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)
        # As long as it is not reaped, its number, which is its group's, can't be another's: so that comes last.
        self._signal(signal.SIGTERM)
        waiting.poll(PATIENCE_SECONDS * 1000)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
