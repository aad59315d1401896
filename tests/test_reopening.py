"""A store that is open looks for its backends anew when one of them is not in its place any more: it goes on with those
that are left, and takes nothing else for a part of itself."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from manifests.config import ECScheme
from manifests.errors import CopiedStore, NotFound
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
Use = Callable[[FileStore], object]
USES: dict[str, Use] = {
    "put": lambda store: store.put_object("precious", io.BytesIO(b"stone")),
    "batch": lambda store: _put_in_batch(store),
    "chunk": lambda store: store.write_chunk(blake3(b"grit").digest(), b"grit"),
    "ingest": lambda store: store.ingest([os.path.dirname(__file__) + "/golden"], options=INLINE),
    "refresh": lambda store: store.refresh(),
    "verify": lambda store: store.verify(data=True, inline=True),
    "status": lambda store: store.status(),
    "index": lambda store: store.rebuild_index("disk"),
    "add": lambda store: store.add_backend(store.members.all[1].location + "-new"),
    "remove": lambda store: store.remove_backend(store.members.all[1].location),
}


def _put_in_batch(store: FileStore) -> None:
    with store.batch():
        store.put_object("precious", io.BytesIO(b"stone"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Disks:
    """Six disks in directories of their own, and another store of one backend."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.backends = [place / "disks" / str(number) / "a" for number in range(6)]
        self.tree = make_tree(place / "tree", 6, 20)
        with FileStore.create(self.backends, cache=place / "cache") as store:
            self.store_id = store.config.store_id
            store.ingest([str(self.tree)], options=INLINE)
        self.other = place / "other" / "a"
        with FileStore.create([self.other], scheme=ECScheme(1, 0), cache=place / "cache") as store:
            self.other = Path(store.members.all[0].location)
            store.put_object("theirs", io.BytesIO(b"pebble"))

    def take_away(self, number: int) -> Path:
        aside = self.place / f"away-{number}"
        self.backends[number].rename(aside)
        return aside

    def replace(self, number: int) -> None:
        """Another store's backend is at the place of one of this."""
        self.take_away(number)
        shutil.copytree(self.other, self.backends[number])

    def open(self, how: str) -> FileStore:
        return FileStore.open(self.place / "disks" / how, cache=self.place / "cache")


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


def require_whole(store: FileStore, disks: Disks) -> None:
    run = str(store.runs()[0].run_id)
    assert store.restore(run, disks.place / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(disks.tree, disks.place / "out" / "tree")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("named", one_in(2, ["0/a", "2/a"]))
def test_a_backend_of_another_store_in_the_place_of_ours_is_no_part_of_it(disks: Disks, named: str, use: str) -> None:
    with disks.open(named) as store:
        disks.replace(0)
        before = contents(disks.backends[0])
        USES[use](store)
        assert store.config.store_id == disks.store_id
        assert contents(disks.backends[0]) == before
        if use == "put":
            assert store.get_object_data("precious").read() == b"stone"
        require_whole(store, disks)
    with disks.open("3/a") as store:
        assert store.config.store_id == disks.store_id and store.members.absent()[0].number == 0
        assert [ref.key for ref in store.list_objects()] == ["precious"] * (use in ("put", "batch"))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("gone", one_in(2, [0, 2]))
def test_a_store_goes_on_without_a_backend_whichever_it_is(disks: Disks, gone: int, use: str) -> None:
    with disks.open("0/a") as store:
        aside = disks.take_away(gone)
        before = contents(aside)
        USES[use](store)
        require_whole(store, disks)
        assert [info.number for info in store.members.absent()] == [gone]
        assert contents(aside) == before
        aside.rename(disks.backends[gone])
        store.refresh()
        assert not store.members.absent()


def test_a_store_whose_backends_are_all_gone_is_named_as_the_user_named_it(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disks.place)
    with FileStore.open("disks/1/a", cache=disks.place / "cache") as store:
        monkeypatch.chdir("/")  # a relative path means what it meant when it was given
        (disks.place / "disks").rename(disks.place / "elsewhere")
        with pytest.raises(NotFound, match=f"no store at {disks.place}/disks/1/a any more: .*disks/0/a, ") as caught:
            store.refresh()
        assert "\n" not in str(caught.value)
        (disks.place / "elsewhere").rename(disks.place / "disks")
        store.refresh()
        require_whole(store, disks)


def test_a_directory_that_gets_a_backend_of_another_store_stays_what_it_was(disks: Disks) -> None:
    for number in range(6):
        disks.backends[number].rename(disks.place / "disks" / f"d{number}")
    with disks.open("") as store:
        shutil.copytree(disks.other, disks.place / "disks" / "a-stranger")
        (disks.place / "disks" / "d0").rename(disks.place / "away")
        store.put_object("precious", io.BytesIO(b"stone"))
        assert store.config.store_id == disks.store_id and len(store.members.present) == 5


def test_a_copy_that_is_open_stays_one_when_its_original_goes(disks: Disks) -> None:
    shutil.copytree(disks.place / "disks", disks.place / "copy")
    before = contents(disks.place / "copy")
    with FileStore.open(disks.place / "copy" / "1" / "a", cache=disks.place / "cache") as store:
        assert store.members.copied
        (disks.place / "disks").rename(disks.place / "away")
        (disks.place / "copy" / "0").rename(disks.place / "copy-0")
        with pytest.raises(CopiedStore):
            store.put_object("precious", io.BytesIO(b"stone"))
        (disks.place / "copy-0").rename(disks.place / "copy" / "0")
    assert contents(disks.place / "copy") == before


def test_an_adopted_copy_in_the_place_of_a_backend_is_another_store(disks: Disks) -> None:
    shutil.copytree(disks.place / "disks", disks.place / "copy")
    with disks.open("0/a") as store:
        with FileStore.open(disks.place / "copy/0/a", cache=disks.place / "cache", adopt_copy=True) as copy:
            assert copy.config.store_id != disks.store_id
        disks.take_away(0)
        (disks.place / "copy/0/a").rename(disks.backends[0])
        before = contents(disks.backends[0])
        store.put_object("precious", io.BytesIO(b"stone"))
        assert [info.number for info in store.members.absent()] == [0]
        assert contents(disks.backends[0]) == before
