"""The whole class against a dict: whatever is done in whatever order, the store holds what the dict holds."""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manifests.config import ChunkerSpec, ECScheme
from manifests.errors import ChunkInUse, NotFound, ObjectDeleted
from manifests.memory import PLACES
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.test_objects import FailingReader, noise

KEYS = st.sampled_from(["a", "a/b", "b", "ü"])
BUCKETS = st.sampled_from(["", "other"])
CODECS = st.sampled_from([None, "none", "lz4", "zstd:1"])
DATA = st.builds(noise, st.sampled_from([0, 1, 300, 5000, 40_000, 200_000]), st.integers(0, 3))


class StoreMachine(RuleBasedStateMachine):
    """`versions`: (bucket, key) → ids, the newest last; `objects`: id → content, None where it was deleted; `expired`:
    ids of objects whose time is over; `loose`: received chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory()
        self.place = Path(self.scratch.name)
        self.versions: dict[tuple[str, str], list[str]] = {}
        self.expired: set[str] = set()
        self.objects: dict[str, bytes | None] = {}
        self.loose: dict[bytes, bytes] = {}
        self.runs: list[bytes] = []

    @initialize(kind=st.sampled_from(["memory", "disk"]))
    def make(self, kind: str) -> None:
        self.store = FileStore.create(
            [f"memory:/model{self.place}"],
            scheme=ECScheme(2, 1),
            chunker=ChunkerSpec.parse("fastcdc:1KiB"),
            pack_size=64 << 10,
            index=kind,
            cache=self.place / "cache",
        )

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert self.store.verify(data=True, inline=True, workers=1).exit_code == 0
            for number, content in enumerate(self.runs):
                name = f"{self.store.runs()[number].run_id}:file"
                assert b"".join(self.store.open_range(name)) == content
            self.store.close()
        for location in [each for each in PLACES if each.startswith(f"/model{self.place}")]:
            del PLACES[location]
        self.scratch.cleanup()

    def _note(self, bucket: str, key: str, identity: str, data: bytes) -> None:
        self.versions.setdefault((bucket, key), []).append(identity)
        self.objects[identity] = data

    @rule(key=KEYS, bucket=BUCKETS, codec=CODECS, data=DATA, ttl=st.sampled_from([None, None, 3600, 0]))
    def put(self, key: str, bucket: str, codec: str | None, data: bytes, ttl: int | None) -> None:
        told = {"content_type": codec, "metadata": {key: bucket}, "ttl": ttl}
        ref = self.store.put_object(key, io.BytesIO(data), bucket=bucket, compression=codec, **told)  # type: ignore[arg-type]
        self._note(bucket, key, ref.id, data)
        if ttl == 0:
            self.expired.add(ref.id)
        else:
            assert ref == self.store.get_object(key, bucket=bucket)
        assert (ref.content_type, ref.metadata, ref.ttl) == tuple(told.values())
        assert ref.etag == hashlib.md5(data).hexdigest()

    @rule(puts=st.lists(st.tuples(KEYS, CODECS, DATA), max_size=6), fails=st.booleans(), aborts=st.booleans())
    def batch(self, puts: list[tuple[str, str | None, bytes]], fails: bool, aborts: bool) -> None:
        made = []
        try:
            with self.store.batch():
                for key, codec, data in puts:
                    if fails:
                        with pytest.raises(OSError, match="dead"):
                            self.store.put_object(key, FailingReader(len(data)))
                    made.append((key, self.store.put_object(key, io.BytesIO(data), compression=codec).id, data))
                if aborts:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            return
        for key, identity, data in made:
            self._note("", key, identity, data)

    @rule(key=KEYS, bucket=BUCKETS)
    def delete(self, key: str, bucket: str) -> None:
        identity = self.versions.get((bucket, key), [""])[-1]
        if not identity:
            with pytest.raises(NotFound):
                self.store.delete_object(key, bucket=bucket)
        elif self.objects[identity] is None:
            with pytest.raises(ObjectDeleted):
                self.store.delete_object(key, bucket=bucket)
        else:
            assert self.store.delete_object(key, bucket=bucket).id == identity
            self.objects[identity] = None

    @precondition(lambda self: self.objects)
    @rule(data=st.data(), offset=st.integers(0, 250_000), length=st.integers(0, 50_000))
    def read(self, data: Any, offset: int, length: int) -> None:
        identity = data.draw(st.sampled_from(sorted(self.objects)))
        content = self.objects[identity]
        if content is None:
            with pytest.raises(ObjectDeleted):
                self.store.get_object_data(identity)
        elif identity in self.expired:
            with pytest.raises(NotFound, match="expired"):
                self.store.get_object_data(identity)
        else:
            assert self.store.get_object_range(identity, offset, length) == content[offset : offset + length]
            assert self.store.get_object_data(identity).read() == content

    @rule(data=st.binary(min_size=1, max_size=3000))
    def receive(self, data: bytes) -> None:
        self.store.write_chunk(blake3(data).digest(), data)
        self.loose[blake3(data).digest()] = data

    @precondition(lambda self: self.loose)
    @rule(data=st.data())
    def delete_chunk(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.loose)))
        try:
            self.store.delete_chunk(name)
        except ChunkInUse:
            assert any(self.loose[name] in (content or b"") for content in [*self.objects.values(), *self.runs])
        else:
            del self.loose[name]
            with pytest.raises(NotFound):
                self.store.get_chunk(name)

    @rule(data=DATA)
    def ingest(self, data: bytes) -> None:
        (self.place / "file").write_bytes(data)
        self.store.ingest([str(self.place / "file")], options=IngestOptions(inline=True, workers=1))
        self.runs.append(data)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store.close()
        self.store = FileStore.open(f"memory:/model{self.place}", cache=self.place / "cache")

    @rule(kind=st.sampled_from(["memory", "disk"]))
    def rebuild(self, kind: str) -> None:
        self.store.rebuild_index(kind)

    @invariant()
    def lists_what_the_dict_lists(self) -> None:
        if not hasattr(self, "store"):
            return
        newest = {name: versions[-1] for name, versions in self.versions.items()}
        wanted = {
            name: identity
            for name, identity in newest.items()
            if self.objects[identity] is not None and identity not in self.expired
        }
        for (bucket, key), versions in self.versions.items():
            told = [
                (ref.id, ref.is_latest, ref.deleted is None) for ref in self.store.list_versions(key, bucket=bucket)
            ]
            alive = [(each, each == versions[-1], self.objects[each] is not None) for each in versions]
            assert told == alive[::-1]
        listed = {(ref.bucket, ref.key): ref for ref in self.store.list_objects()}
        assert {name: ref.id for name, ref in listed.items()} == wanted
        for name, ref in listed.items():
            content = self.objects[wanted[name]]
            assert content is not None and (ref.size, ref.digest) == (len(content), blake3(content).digest())
        for name, data in self.loose.items():
            assert self.store.get_chunk_data(name) == data
        rows = [row for batch in self.store.iterate_chunks() for row in batch.to_pylist()]
        stats = self.store.get_index_stats()
        assert (stats.total_chunks, stats.total_bytes) == (len(rows), sum(row["length"] for row in rows))


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=5, stateful_step_count=16, deadline=None)
