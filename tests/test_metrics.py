"""Metrics: what is counted, by whichever process does it, and how it reaches Prometheus.

One file, though long: the ingest under way and the reader of samples serve every test here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from manifests.config import ChunkerSpec, ECScheme
from manifests.errors import BackendError, KeyNotFound, UsageError
from manifests.localdirectory import LocalDirectory
from manifests.totals import ChunkTotals
from pipeline.arena import Arena, Layout, PoolSpec
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.metrics.backend import MeteredBackend
from pipeline.metrics.collector import CommandFigures, registry_of
from pipeline.metrics.figures import StoreFigures
from pipeline.metrics.meters import (
    BLOCK_SECONDS,
    COMPRESS,
    FAN_QUEUES,
    INGEST_QUEUES,
    Count,
    Meters,
    added,
    blocks_of,
    queue_depths,
    requests_of,
)
from pipeline.metrics.publication import Address, Publication
from pipeline.metrics.publish import Publisher
from pipeline.restore.run import RestoreRequest
from pipeline.topology import FanShape, VerifyShape, ingest_shape
from tests.corruptors import shards
from tests.trees import make_tree

DRYSTONE = Path(sys.executable).with_name("drystone")
DASHBOARD = Path(__file__).parents[1] / "pipeline" / "metrics" / "dashboard.json"
Values = dict[str, dict[tuple[tuple[str, str], ...], float]]


def values_of(text: str) -> Values:
    """Samples of an exposition, by name and labels. No series may be there twice."""
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in series, f"{sample.name}{labels} is there twice"
            series[labels] = sample.value
    return found


def exposed(figures: StoreFigures) -> Values:
    return values_of(generate_latest(registry_of(figures)).decode())


def total(values: Values, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels; there must be one."""
    chosen = [value for key, value in values[name].items() if labels.items() <= dict(key).items()]
    assert chosen, f"no sample of {name} with {labels}"
    return sum(chosen)


def drystone(*line: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DRYSTONE, *map(str, line)], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def make_site(place: Path) -> Path:
    """Make a tree in a directory, and a store that holds one run of it."""
    make_tree(place / "tree", files=30)
    (place / "tree" / "text").write_text("stone\n" * 5000)
    with FileStore.create(
        [place / "store"], scheme=ECScheme(2, 1), chunker=ChunkerSpec.parse("fastcdc:4KiB"), pack_size=256 << 10,
        cache=place / "cache",
    ) as store:  # fmt: skip
        store.ingest([str(place / "tree")], options=IngestOptions(inline=True, workers=1))
    return place


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tree, and a store of it that all tests leave whole."""
    return make_site(tmp_path_factory.mktemp("metrics"))


# --- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False])
def test_what_an_ingest_did(make_store: Callable[..., FileStore], tmp_path: Path, inline: bool) -> None:
    place = make_store(scheme="2+1").members.present[0].storage.location
    figures = StoreFigures()
    options = IngestOptions(inline=inline, workers=1)
    with FileStore.open(place, cache=tmp_path / "cache", figures=figures) as store:
        tally = store.ingest([str(make_tree(tmp_path / "tree"))], options=options).tally
        values = exposed(figures)
    sizes = [path.stat().st_size for path in shards(tmp_path / "store")]
    assert total(values, "drystone_chunks") == tally.new_chunks
    assert total(values, "drystone_chunks_bytes") == tally.new_bytes
    assert total(values, "drystone_chunk_operations_total", operation="create") == tally.new_chunks
    hits = total(values, "drystone_chunk_operations_total", operation="deduplicate")
    assert total(values, "drystone_chunk_dedupe_hits_total") == hits > 0
    chunked = total(values, "drystone_stage_items_total", operation="ingest", stage="chunk")
    assert chunked == tally.new_chunks + hits
    assert total(values, "drystone_stage_bytes_total", stage="read") == tally.bytes
    assert total(values, "drystone_stage_busy_seconds_total", stage="compress") > 0
    assert total(values, "drystone_stage_waiting_seconds_total", stage="dedupe") > 0
    assert total(values, "drystone_queue_depth", operation="ingest") == 0
    assert total(values, "drystone_compression_in_bytes_total", direction="compress") == tally.new_bytes
    stored = total(values, "drystone_compression_out_bytes_total", algorithm="zstd", direction="compress")
    assert 0 < stored < tally.stored < stored + 64 * tally.new_chunks + 64 * tally.packs
    blocks = total(values, "drystone_stage_items_total", stage="compress")
    for histogram in ("compression_ratio", "compression_duration_seconds"):
        assert total(values, f"drystone_{histogram}_count") == blocks
        assert total(values, f"drystone_{histogram}_bucket", le="+Inf") == blocks
    assert total(values, "drystone_backend_bytes_total", operation="write") > sum(sizes)
    assert total(values, "drystone_backend_operations_total", operation="write") > len(sizes)
    assert total(values, "drystone_backend_errors_total") == 0
    assert len(values["drystone_backend_info"]) == 3


def test_blocks_that_do_not_shrink_are_skipped(make_store: Callable[..., FileStore], tmp_path: Path) -> None:
    store = make_store()
    (tmp_path / "random").write_bytes(os.urandom(3 << 20))
    store.ingest([str(tmp_path / "random")], options=IngestOptions(inline=True, workers=1))
    blocks = total(exposed(store.figures), "drystone_compression_ratio_bucket", le="1.0")
    assert total(exposed(store.figures), "drystone_compression_skipped_total", algorithm="zstd") == blocks > 0


def test_runs_add_up_and_none_is_counted_twice(make_store: Callable[..., FileStore], tmp_path: Path) -> None:
    store, tree = make_store(), str(make_tree(tmp_path / "tree", files=10))
    options = IngestOptions(inline=True, workers=1)
    sums = []
    for _ in range(3):
        store.ingest([tree], options=options)
        sums.append(total(exposed(store.figures), "drystone_stage_items_total", stage="scan"))
    assert sums == [sums[0], 2 * sums[0], 3 * sums[0]]
    assert total(exposed(store.figures), "drystone_chunks") == store.runs()[0].summary["new_chunks"]


@pytest.mark.parametrize("inline", [True, False])
def test_what_was_healed_and_decompressed(tmp_path: Path, inline: bool) -> None:
    make_site(tmp_path)
    for path in shards(tmp_path / "store", 0):
        path.unlink()
    figures = StoreFigures()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache", figures=figures) as store:
        request = RestoreRequest("", workers=1, inline=inline)
        result = store.restore("latest", tmp_path / "back", request=request)
        values = exposed(figures)
        assert not result.failed and result.healed_cells > 0
        assert total(values, "drystone_cells_healed_total") == result.healed_cells
        assert total(values, "drystone_stage_bytes_total", operation="restore", stage="assemble") == result.bytes
        plain = total(values, "drystone_compression_out_bytes_total", direction="decompress")
        assert plain == total(values, "drystone_stage_bytes_total", stage="decompress")
        assert plain > total(values, "drystone_compression_in_bytes_total", direction="decompress") > 0
        reads = total(values, "drystone_backend_operations_total", operation="read")
        assert total(values, "drystone_backend_operation_duration_seconds_count", operation="read") == reads > 0
        # A range is read by this process alone.
        before = total(values, "drystone_compression_ratio_count", direction="decompress")
        largest = max(store.list("latest", recursive=True), key=lambda info: info.size)
        pieces = list(store.open_range(f"latest:{os.fsdecode(largest.path)}"))
        assert sum(map(len, pieces)) == largest.size
        after = exposed(figures)
        assert total(after, "drystone_compression_ratio_count", direction="decompress") > before
        assert total(after, "drystone_cells_healed_total") > result.healed_cells
        store.verify(data=True, workers=1, inline=inline)
        assert total(exposed(figures), "drystone_stage_bytes_total", operation="verify", stage="fetch") > 0


def test_a_backend_that_fails_is_seen(make_store: Callable[..., FileStore], tmp_path: Path) -> None:
    make_store(scheme="2+2")
    place = tmp_path / "store" / "backend-2" / "packs"
    shutil.rmtree(place, ignore_errors=True)
    place.write_bytes(b"in the way")
    figures = StoreFigures()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache", figures=figures) as opened:
        tree = str(make_tree(tmp_path / "tree", files=10))
        result = opened.ingest([tree], options=IngestOptions(inline=True, workers=1))
        assert result.tally.missing_shards == result.tally.packs
        bad = str(opened.members.all[2].backend_id)
    values = exposed(figures)
    assert total(values, "drystone_backend_errors_total", operation="write", backend=bad) >= 1
    assert total(values, "drystone_backend_errors_total") == total(
        values, "drystone_backend_errors_total", operation="write", backend=bad
    )


def test_an_absent_key_is_no_error(tmp_path: Path) -> None:
    meters = Meters.private()
    meters.grow(2)
    backend = MeteredBackend(LocalDirectory(tmp_path), meters, 1)
    with pytest.raises(KeyNotFound):
        backend.read("packs/ab/nothing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BackendError):
        backend.write("file/below", [b"x"])
    counted = {(each.backend, each.operation): each for each in requests_of(meters.words())}
    assert (counted[1, "read"].errors, sum(counted[1, "read"].seconds.buckets)) == (0, 1)
    assert (counted[1, "write"].errors, sum(counted[1, "write"].seconds.buckets)) == (1, 1)
    assert not any(sum(each.seconds.buckets) for (number, _), each in counted.items() if number == 0)


def test_threads_of_a_process_lose_no_request() -> None:
    meters = Meters.private()
    meters.grow(1)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(lambda: [meters.note_request(0, 0, 1, 3, failed=True) for _ in range(2000)])
    write = next(requests_of(meters.words()))
    assert (write.errors, write.bytes, sum(write.seconds.buckets)) == (16_000, 48_000, 16_000)


def test_a_bound_belongs_to_its_bucket() -> None:
    meters = Meters.private()
    for ns in (int(BLOCK_SECONDS[0] * 1e9), int(BLOCK_SECONDS[0] * 1e9) + 1, int(1e12)):
        meters.note_block(COMPRESS, 2, 1000, 1000, ns, skipped=True)
    zstd = next(each for each in blocks_of(meters.words()) if each.codec == "zstd")
    assert zstd.seconds.buckets == [1, 1, *[0] * (len(BLOCK_SECONDS) - 2), 1]
    assert zstd.ratios.buckets[0] == 3 and zstd.ratios.total == 3.0 and zstd.skipped == 3


def test_rows_of_different_numbers_of_backends_add_up() -> None:
    few, many = Meters.private(), Meters.private()
    many.grow(3)
    few.add(Count.DELETED, 2)
    many.add(Count.DELETED, 3)
    many.note_request(2, 1, 5, 7, failed=False)
    for words in (added(few.words(), many.words()), added(many.words(), few.words())):
        assert words[Count.DELETED] == 5
        assert [each.bytes for each in requests_of(words) if each.bytes] == [7]


def test_what_a_process_counts_by_itself() -> None:
    figures = StoreFigures()
    figures.count_chunks(Count.DELETED, 4)
    figures.count_chunks(Count.RECEIVED, 5)
    values = exposed(figures)
    assert total(values, "drystone_chunk_operations_total", operation="delete") == 4
    assert total(values, "drystone_chunk_operations_total", operation="receive") == 5


def test_a_queue_is_as_deep_as_its_sealed_slots() -> None:
    layout = Layout((PoolSpec("data/0", 3, 1), PoolSpec("data/1", 3, 1), PoolSpec("rows/0", 2, 1)), (), 1, 1)
    layout = layout.with_meters(0)
    fd = Arena.create_fd(layout)
    arena = Arena(layout, fd)
    os.close(fd)
    for pool, state in (("data/0", b"\2\1\2"), ("data/1", b"\0\2\0"), ("rows/0", b"\1\0")):
        arena.state(pool)[:] = state
    meters = arena.meters(0)
    meters.note_queues(arena)
    depths = queue_depths(meters.words())
    assert depths == dict.fromkeys(INGEST_QUEUES + FAN_QUEUES, 0) | {"data": 3}
    del meters
    arena.close()


def test_each_pool_is_a_queue_by_name(site: Path) -> None:
    with FileStore.open(site / "store", cache=site / "cache") as store:
        ingest = ingest_shape(store.config, 2, 1 << 30, None).layout()
    fans = (FanShape("restore", 2, 5, 0).layout(), VerifyShape("verify", 2, 5, 0).layout())
    assert {pool.name.partition("/")[0] for pool in ingest.pools} == set(INGEST_QUEUES)
    assert {pool.name.partition("/")[0] for fan in fans for pool in fan.pools} == set(FAN_QUEUES)


def test_nothing_but_the_store_is_told() -> None:
    names = exposed(StoreFigures())
    assert "drystone_chunks" not in names, "nobody knows yet"
    assert names and all(name.startswith("drystone_") for name in names)


# --- files -----------------------------------------------------------------------------------------------------------


def published(directory: Path, command: str) -> Values:
    return values_of((directory / f"drystone_{command}.prom").read_text())


def test_a_file_tells_how_a_command_ended_and_when_it_last_succeeded(site: Path, tmp_path: Path) -> None:
    line = ("-s", site / "store", "cat", "--metrics-dir", tmp_path)
    assert drystone(*line, "latest:nothing").returncode == 1
    values = published(tmp_path, "cat")
    assert total(values, "drystone_command_exit_code", command="cat") == 1
    assert "drystone_command_last_success_timestamp_seconds" not in values, "it never succeeded"
    before = time.time()
    assert drystone(*line, "latest:tree/text").returncode == 0
    values = published(tmp_path, "cat")
    success = total(values, "drystone_command_last_success_timestamp_seconds", command="cat")
    assert before <= success <= time.time()
    assert 0 < total(values, "drystone_command_duration_seconds", command="cat") < 60
    assert total(values, "drystone_chunks") > 0
    assert drystone(*line, "latest:nothing").returncode == 1
    values = published(tmp_path, "cat")
    assert total(values, "drystone_command_exit_code", command="cat") == 1
    assert total(values, "drystone_command_last_success_timestamp_seconds", command="cat") == success
    assert os.listdir(tmp_path) == ["drystone_cat.prom"], "nothing temporary is left"


def test_a_dry_run_is_no_success(site: Path, tmp_path: Path) -> None:
    done = drystone("-s", site / "store", "ingest", site / "tree", "--dry-run", "--metrics-dir", tmp_path)
    assert done.returncode == 0 and not list(tmp_path.iterdir())


def test_a_run_that_is_stopped_tells_how_far_it_came(site: Path, tmp_path: Path) -> None:
    with ingest_under_way(site / "store", "--metrics-dir", str(tmp_path), ends_with=143) as (process, url):
        until(lambda: created(url), "a chunk")
        process.terminate()
    values = published(tmp_path, "ingest")
    assert total(values, "drystone_command_exit_code", command="ingest") == 143
    assert total(values, "drystone_stage_bytes_total", stage="chunk") >= 4 << 20
    assert total(values, "drystone_queue_depth") == 0


def test_files_of_several_commands_stand_side_by_side(tmp_path: Path) -> None:
    make_site(tmp_path)
    shutil.rmtree(tmp_path / "store" / "backend-0")
    (tmp_path / "prom").mkdir()
    environment = {"DRYSTONE_METRICS_DIR": str(tmp_path / "prom"), "DRYSTONE_STORE": str(tmp_path / "store")}
    codes = [
        drystone(*line, **environment).returncode
        for line in (
            ["verify"],
            ["status"],
            ["restore", "--to", tmp_path / "back", "-q"],
            ["cat", "latest:tree/text"],
            ["backend", "add", tmp_path / "more"],
        )
    ]
    files = sorted((tmp_path / "prom").iterdir())
    assert [file.name for file in files] == [
        f"drystone_{command}.prom" for command in ("backend_add", "cat", "restore", "status", "verify")
    ]
    # Node-exporter refuses a series that is in two files; values_of does, too.
    values = values_of("\n".join(file.read_text() for file in files))
    ended = {dict(key)["command"]: code for key, code in values["drystone_command_exit_code"].items()}
    assert ended == dict(zip(("verify", "status", "restore", "cat", "backend_add"), codes, strict=True))
    assert ended["verify"] == 4


def test_what_can_not_be_written_is_said_and_costs_nothing(site: Path, tmp_path: Path) -> None:
    (tmp_path / "drystone_verify.prom").mkdir()
    done = drystone("-s", site / "store", "verify", "--metrics-dir", tmp_path)
    assert done.returncode == 0 and "whole" in done.stdout
    assert f"metrics are not written: writing {tmp_path}/drystone_verify.prom failed: Is a directory" in done.stderr
    assert os.listdir(tmp_path) == ["drystone_verify.prom"]


@pytest.mark.parametrize("planted", ["symlink", "hardlink", "fifo"])
def test_what_another_user_put_in_the_place_of_the_file_is_replaced_and_never_followed(
    site: Path, tmp_path: Path, planted: str
) -> None:
    (folder := tmp_path / "prom").mkdir()
    (victim := tmp_path / "victim").write_bytes(b"precious")
    place = folder / "drystone_cat.prom"
    match planted:
        case "symlink":
            place.symlink_to(victim)
        case "hardlink":
            place.hardlink_to(victim)
        case _:
            os.mkfifo(place)
    done = drystone("-s", site / "store", "cat", "--metrics-dir", folder, "latest:tree/text")
    assert (done.returncode, done.stderr) == (0, "")
    assert victim.read_bytes() == b"precious"
    assert stat.S_ISREG(place.lstat().st_mode)
    assert total(published(folder, "cat"), "drystone_command_exit_code", command="cat") == 0
    assert os.listdir(folder) == [place.name]


def test_a_collector_of_another_user_reads_the_file_whatever_the_umask(site: Path, tmp_path: Path) -> None:
    line = [str(DRYSTONE), "-s", str(site / "store"), "cat", "--metrics-dir", str(tmp_path), "latest:tree/text"]
    assert subprocess.run(line, umask=0o077, stdout=subprocess.DEVNULL, timeout=120).returncode == 0
    assert stat.S_IMODE((tmp_path / "drystone_cat.prom").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--metrics-dir", "/nowhere/at/all"], "/nowhere/at/all is no directory"),
        (["--metrics-push", "ftp://host"], "'ftp://host' is no URL"),
        (["--metrics-push", "http://"], "'http://' is no URL"),
        (["--metrics-port", "http"], "'http' is no port"),
        (["--metrics-port", "70000"], "'70000' is no port"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(site: Path, options: list[str], complaint: str) -> None:
    done = drystone("-s", site / "store", "ingest", site / "tree", *options)
    assert done.returncode == 2 and complaint in done.stderr


def promtool(text: str) -> set[str]:
    """The metrics that promtool complains of."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not there; it is in Debian's package prometheus")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    lines = (done.stdout + done.stderr).splitlines()
    assert all(re.match(r"drystone_\w+ ", line) for line in lines), lines
    return {line.split()[0] for line in lines}


@pytest.fixture(scope="module")
def files(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what an ingest and a restore wrote."""
    place = tmp_path_factory.mktemp("files")
    for line in (["ingest", "-q", site / "tree"], ["restore", "-q", "--to", place / "back"]):
        assert drystone("-s", site / "store", *line, "--metrics-dir", place).returncode == 0
    shutil.rmtree(place / "back")
    return place


def test_promtool_finds_fault_with_nothing(files: Path) -> None:
    for file in files.iterdir():
        assert promtool(file.read_text()) == set()
    figures = StoreFigures()
    figures.held = ChunkTotals(1, 2)
    assert promtool(generate_latest(registry_of(figures, CommandFigures("ingest"))).decode()) == set()


# --- pushes ----------------------------------------------------------------------------------------------------------


class Gateway(BaseHTTPRequestHandler):
    """A Pushgateway on the loopback, that keeps what it gets."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.got.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(self.server.answer)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def gateway(answer: int = 202) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Its URL, and what was pushed to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    server.got, server.answer = [], answer  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.got  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_metrics_are_pushed(site: Path) -> None:
    with gateway() as (url, got):
        done = drystone("-s", site / "store", "verify", "--metrics-push", url)
        failed = drystone("-s", site / "store", "cat", "latest:nothing", "--metrics-push", url)
    assert (done.returncode, failed.returncode) == (0, 1)
    (path, body), (other, later) = got
    assert re.fullmatch(r"/metrics/job/drystone/command/verify/instance/[^/]+", path)
    assert re.fullmatch(r"/metrics/job/drystone/command/cat/instance/[^/]+", other)
    assert total(values_of(body), "drystone_command_exit_code", command="verify") == 0
    assert total(values_of(later), "drystone_command_exit_code", command="cat") == 1
    # What is not in a push stays as it is at the gateway: so an earlier success is not lost.
    assert "drystone_command_last_success_timestamp_seconds{" in body
    assert "drystone_command_last_success_timestamp_seconds{" not in later


def test_a_push_that_fails_is_a_warning(site: Path) -> None:
    with gateway(answer=500) as (url, got):
        refused = drystone("-s", site / "store", "verify", "--metrics-push", url.replace("//", "//me:secret@"))
        assert "HTTP Error 500" in drystone("-s", site / "store", "verify", "--metrics-push", url).stderr
    nobody = drystone("-s", site / "store", "verify", DRYSTONE_METRICS_PUSH=url)
    for done in (refused, nobody):
        assert done.returncode == 0 and "whole" in done.stdout
        assert f"metrics are not pushed to {url.removeprefix('http://')}: " in done.stderr
        assert "secret" not in done.stderr
    assert got


@pytest.mark.parametrize("drops", [b"", b"HTTP/1.1 200 OK\r\n" + b"X" * 100], ids=["silent", "drop by drop"])
def test_a_gateway_that_does_not_come_to_an_end_is_given_up(drops: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.metrics.publish.PUSH_SECONDS", 0.5)
    said: list[str] = []
    given_up = threading.Event()

    def answer() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            for drop in drops:
                connection.sendall(bytes([drop]))
                if given_up.wait(0.05):
                    return
            given_up.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        Publisher(Publication(push=url), "verify", StoreFigures(), said.append).end(0)
        took = time.monotonic() - began
        given_up.set()
        thread.join()
    assert took < 3
    assert len(said) == 1 and said[0].startswith(f"metrics are not pushed to {url.removeprefix('http://')}: ")


# --- scrapes ---------------------------------------------------------------------------------------------------------


@contextmanager
def ingest_under_way(store: Path, *more: str, ends_with: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An ingest that waits for more input, and where it serves its metrics. It must end with the exit code told."""
    process = subprocess.Popen(
        [DRYSTONE, "-s", store, "ingest", "-", "--name", "stream", "--metrics-port", "0", "-q", *more],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdin is not None and process.stderr is not None
        said = process.stderr.readline().decode()
        url = re.fullmatch(r"metrics: (http://127\.0\.0\.1:\d+/metrics)\n", said)
        assert url, said
        try:
            process.stdin.write(os.urandom(12 << 20))
            process.stdin.flush()
            yield process, url[1]
            process.stdin.close()
            assert process.wait(30) == ends_with, process.stderr.read().decode()
        finally:
            process.kill()


def until(look: Callable[[], float], what: str) -> float:
    """What `look` sees, once that is not 0."""
    deadline = time.monotonic() + 20
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} does not come"
        time.sleep(0.05)
    return found


def scrape(url: str) -> Values:
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return values_of(answer.read().decode())


def created(url: str) -> float:
    """Chunks that a command has stored for the first time, so far."""
    return total(scrape(url), "drystone_chunk_operations_total", operation="create")


def test_metrics_are_served_while_a_command_runs(site: Path) -> None:
    with ingest_under_way(site / "store") as (process, url):
        until(lambda: created(url), "a chunk")
        values = scrape(url)
        assert total(values, "drystone_stage_bytes_total", stage="chunk") >= 4 << 20
        assert total(values, "drystone_command_duration_seconds", command="ingest") > 0
        assert "drystone_command_exit_code" not in values
        taken = drystone("-s", site / "store", "verify", "--metrics-port", url.split(":")[2].split("/")[0])
        assert taken.returncode == 0 and f"metrics are not served at {url}: Address already in use" in taken.stderr
        assert process.poll() is None
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_prometheus_itself_scrapes_an_ingest(site: Path, tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not there; it is a package of Debian's")
    with ingest_under_way(site / "store") as (_, url):
        target = urllib.parse.urlsplit(url).netloc
        (tmp_path / "prometheus.yml").write_text(
            "scrape_configs: [{job_name: drystone, scrape_interval: 200ms, scrape_timeout: 200ms, "
            f"static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        with prometheus(tmp_path) as api:

            def ask(query: str) -> float:
                line = f"{api}/api/v1/query?query={urllib.parse.quote(query)}"
                with urllib.request.urlopen(line, timeout=10) as answer:
                    result = json.load(answer)["data"]["result"]
                return float(result[0]["value"][1]) if result else 0

            assert until(lambda: ask('sum(drystone_stage_bytes_total{stage="chunk"})'), "a scrape") >= 4 << 20
            assert ask("up") == 1
            assert ask('drystone_chunk_operations_total{operation="create",job="drystone"}') > 0
            assert ask('count(drystone_compression_ratio_bucket{le="+Inf"})') == 1


@contextmanager
def prometheus(place: Path) -> Iterator[str]:
    """A Prometheus server by the configuration in `place`, and the address of its API."""
    log = place / "prometheus.log"
    with open(log, "wb") as out, subprocess.Popen(
        ["prometheus", f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data",
         "--web.listen-address=127.0.0.1:0"],
        stdout=out, stderr=subprocess.STDOUT,
    ) as server:  # fmt: skip
        try:

            def port() -> int:
                assert server.poll() is None, log.read_text()
                found = re.search(r"address=127\.0\.0\.1:([1-9]\d*)", log.read_text())
                return int(found[1]) if found else 0

            api = f"http://127.0.0.1:{until(port, 'the server'):.0f}"

            def ready() -> bool:
                try:
                    with urllib.request.urlopen(f"{api}/-/ready", timeout=10) as answer:
                        return bool(answer.status == 200)
                except OSError:
                    return False

            until(ready, "the server")
            yield api
        finally:
            server.terminate()
            server.wait(20)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", Address("127.0.0.1", 9100)),
        ("0.0.0.0:9100", Address("0.0.0.0", 9100)),
        ("[::1]:0", Address("::1", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["", ":", ":80", "host:", "host", "1:2:x", "-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no port"):
        Address.parse(text)


def test_nowhere_is_said_by_nothing() -> None:
    assert Publication() == Publication(None, None, None)


# --- dashboard -------------------------------------------------------------------------------------------------------


def test_each_metric_of_the_dashboard_exists(files: Path) -> None:
    exist = published(files, "ingest") | published(files, "restore")
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    named = {name for expression in expressions for name in re.findall(r"drystone_\w+", expression)}
    assert named and named <= set(exist), named - set(exist)
    # And nothing is counted that it does not show.
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in exist} == shown


def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"rule:{number}", "expr": expression}
        for number, expression in enumerate(
            target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*")
            for panel in json.loads(DASHBOARD.read_text())["panels"]
            for target in panel["targets"]
        )
    ]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not there; it is in Debian's package prometheus")
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
