"""Publishing the metrics of a command: over HTTP while it runs, as a file and by a push when it ends.

Metrics never cost a command its success: what can't be published is said, and the command goes on.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, pushadd_to_gateway, start_http_server

from manifests.errors import UsageError
from manifests.oserrors import in_words
from manifests.ownfile import ForeignFile, read_own, write_own
from pipeline.metrics.collector import LAST_SUCCESS, CommandFigures, registry_of
from pipeline.metrics.figures import StoreFigures
from pipeline.metrics.publication import Address, Publication, host_of
from pipeline.owndirectories import OwnDirectories, require_target_outside

JOB = "drystone"
#: Of a metrics file: the collector is another user.
_MODE = 0o644
#: A push takes no longer, whatever the gateway does.
PUSH_SECONDS = 10.0


class Publisher:
    """Publishes the metrics of one command. `say` tells people what did not work. Call `end` once."""

    def __init__(
        self, publication: Publication, command: str, figures: StoreFigures, say: Callable[[str], None]
    ) -> None:
        self._publication = publication
        self._figures = figures
        self._say = say
        self._command = CommandFigures(command)
        if publication.directory is not None:
            self._folder, self._name = publication.directory, f"drystone_{command}.prom"
            self._command.last_success = self._earlier_success()
        self._registry: CollectorRegistry = registry_of(figures, self._command)
        # Node-exporter puts the files of all commands together; no series may be in two of them.
        self._named = registry_of(figures, self._command, named=True)
        self._server: Any = None
        if publication.address is not None:
            self._serve(publication.address)

    def keep_out_of(self, own: OwnDirectories) -> None:
        """Raise UsageError where the file would go into a backend of the store, and write none."""
        if self._publication.directory is not None:
            try:
                require_target_outside(self._publication.directory, own)
            except UsageError as error:
                self._publication = replace(self._publication, directory=None)
                raise UsageError(f"--metrics-dir {error}") from error

    def end(self, exit_code: int) -> None:
        """The command has ended: publish how."""
        self._command.end(exit_code)
        self._figures.end()
        if self._server is not None:
            server, thread = self._server
            server.socket.shutdown(socket.SHUT_RDWR)  # or it would look only twice a second whether to end
            server.shutdown()
            server.server_close()
            thread.join()
        if self._publication.directory is not None:
            self._write()
        if self._publication.push is not None:
            self._push(self._publication.push)

    def _serve(self, address: Address) -> None:
        try:
            self._server = start_http_server(address.port, address.host, self._registry)
        except OSError as error:
            self._say(f"metrics are not served at {address.url(address.port)}: {error.strerror or error}")
            return
        if not address.port:
            self._say(f"metrics: {address.url(self._server[0].server_port)}")

    def _earlier_success(self) -> float | None:
        """When an earlier run of this command had its last success, by the file that is there."""
        path = os.path.join(self._folder, self._name)
        try:
            text = read_own(path).decode(errors="replace")
            found = re.search(rf"^{LAST_SUCCESS}\{{.*\}} (\S+)$", text, re.MULTILINE)
            return None if found is None else float(found[1])
        except (FileNotFoundError, ForeignFile):  # not a file that was written here
            return None
        except OSError as error:
            self._say(f"the last success is not known: reading {path} failed: {error.strerror}")
            return None
        except ValueError:
            self._say(f"the last success is not known: {path} has no number for it")
            return None

    def _write(self) -> None:
        """Write the file: whole, or what was there stays. Its name ends in .prom when it is complete."""
        path = os.path.join(self._folder, self._name)
        try:
            write_own(path, generate_latest(self._named), _MODE)
        except OSError as error:
            self._say(f"metrics are not written: writing {path} failed: {error.strerror or error}")

    def _push(self, url: str) -> None:
        # Added to what the gateway has of this command: so an earlier success stays where this run had none.
        group = {"command": self._command.name, "instance": socket.gethostname()}
        troubles: list[str] = []

        def push() -> None:
            try:
                pushadd_to_gateway(url, JOB, self._registry, grouping_key=group, timeout=PUSH_SECONDS)
            except OSError as error:
                reason = getattr(error, "reason", error)  # urllib wraps what the system says
                troubles.append(in_words(reason if isinstance(reason, OSError) else error))
            except (http.client.HTTPException, ValueError) as error:
                troubles.append(str(error))

        # The timeout counts from byte to byte, and not for names: who answers drop by drop would hold the command.
        thread = threading.Thread(target=push, daemon=True)
        thread.start()
        thread.join(PUSH_SECONDS)
        if thread.is_alive():
            troubles.append(f"no answer within {PUSH_SECONDS:.0f} s")
        for trouble in troubles[:1]:
            self._say(f"metrics are not pushed to {host_of(url)}: {trouble}")
