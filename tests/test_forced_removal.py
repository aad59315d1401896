"""Backends that never come back are taken out by the word of the user, however few are left; and what becomes of one
that comes back after all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from manifests.config import ECScheme
from manifests.errors import NotFound, TooFewBackends, UsageError
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))


class Disks:
    """A store on disks in directories of their own, so that no two lie beside each other, with a run."""

    def __init__(self, place: Path, count: int, scheme: ECScheme) -> None:
        self.place = place
        self.backends = [place / "disks" / str(number) / "a" for number in range(count)]
        self.tree = make_tree(place / "tree", 6, 20)
        with FileStore.create(self.backends, scheme=scheme, cache=place / "cache") as store:
            store.ingest([str(self.tree)], options=INLINE)

    def take_away(self, *numbers: int) -> None:
        for number in numbers:
            self.backends[number].rename(self.place / f"away-{number}")

    def bring_back(self, *numbers: int) -> None:
        for number in numbers:
            (self.place / f"away-{number}").rename(self.backends[number])

    def open(self, number: int) -> FileStore:
        return FileStore.open(self.backends[number], cache=self.place / "cache")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([COMMAND, *arguments], capture_output=True, text=True)


def restore(store: FileStore, run: str, place: Path) -> int:
    shutil.rmtree(place, ignore_errors=True)
    return store.restore(run, place, request=RestoreRequest("", inline=True)).exit_code


def require_usable(store: FileStore, disks: Disks, more: Path) -> None:
    """The store takes runs in and gives them back."""
    for tree in (disks.tree, more):
        run = store.ingest([str(tree)], options=INLINE)
        assert restore(store, str(run.run_id), disks.place / "out") == 0
        assert_equal_trees(tree, disks.place / "out" / tree.name)


@pytest.mark.parametrize(
    ("count", "gone"),
    one_in(3, [(8, (1, 3, 5)), (6, (0, 1, 2)), (6, (3, 4, 5)), (6, (1, 2, 3, 4, 5)), (7, (2, 3, 4, 5))], several=True),
)
@pytest.mark.parametrize("together", [True, False])
def test_a_store_is_written_to_again_when_all_that_are_gone_were_taken_out(
    tmp_path: Path, count: int, gone: tuple[int, ...], together: bool
) -> None:
    disks = Disks(tmp_path, count, ECScheme(4, 2))
    disks.take_away(*gone)
    left = next(number for number in range(count) if number not in gone)
    with disks.open(left) as store:
        ids = [info.backend_id for info in store.members.absent()]
        with pytest.raises(TooFewBackends, match=r"absent: .*backend remove BACKEND… --force"):
            store.ingest([str(disks.tree)], options=INLINE)
        with pytest.raises(TooFewBackends):
            store.remove_backend(*ids)
        with pytest.raises((TooFewBackends, UsageError)):  # that one answers: nobody may say that it never will
            store.remove_backend(store.members.all[left].backend_id, force=True)
        assert store.remove_backend(*ids, force=True, dry_run=True).unseen and len(store.members.all) == count
        if together:
            removal = store.remove_backend(*ids, force=True)
            assert [info.backend_id for info in removal.backends] == ids and removal.unseen
        elif len(gone) == 5:
            with pytest.raises(TooFewBackends, match=f"absent are also {disks.backends[2]}, .*all of them in one"):
                store.remove_backend(ids[0], force=True)
            return
        else:
            unseen = [store.remove_backend(each, force=True).unseen for each in ids]
            assert unseen[0] and not unseen[-1]
        assert [info.number for info in store.members.all] == [n for n in range(count) if n not in gone]
        require_usable(store, disks, make_tree(tmp_path / "more", 7, 20))
        assert store.add_backend(tmp_path / "new").present
        require_usable(store, disks, make_tree(tmp_path / "most", 8, 20))
    with disks.open(left) as store:
        assert len(store.members.all) == count - len(gone) + 1 and not store.members.absent()
        assert store.verify(data=True, inline=True).exit_code in (0, 3, 4)


def test_data_that_survived_is_still_given_back(tmp_path: Path) -> None:
    disks = Disks(tmp_path, 8, ECScheme(4, 2))
    holders = [number for number in range(8) if any((disks.backends[number] / "packs").rglob("*.*"))]
    gone = [*sorted(set(range(8)) - set(holders)), *holders][:3]
    disks.take_away(*gone)
    left = next(number for number in range(8) if number not in gone)
    with disks.open(left) as store:
        removal = store.remove_backend(*(str(disks.backends[number]) for number in gone), force=True)
        assert (removal.lost_packs, removal.bears) == (0, 1)
        assert restore(store, "latest", tmp_path / "out") == 0
        assert_equal_trees(disks.tree, tmp_path / "out" / "tree")
        assert store.ingest([str(disks.tree)], options=INLINE).tally.new_bytes == 0


def forget_last_run(disks: Disks, numbers: list[int]) -> None:
    """What the last run recorded is on none of these backends, as if they had failed when it was committed."""
    with disks.open(0) as store:
        record = next(each for each in store.log.records.values() if each.record_id == store.runs()[-1].run_id)
    for number in numbers:
        for key in (record.key, *(file.key for file in record.adds())):
            (disks.backends[number] / key).unlink()


@pytest.fixture
def split(tmp_path: Path) -> Disks:
    """A store whose second run was recorded on three disks alone, which are taken out, and come back."""
    disks = Disks(tmp_path, 6, ECScheme(4, 2))
    with disks.open(0) as store:
        store.ingest([str(make_tree(tmp_path / "second", 9, 20))], options=INLINE)
    forget_last_run(disks, [0, 1, 2])
    disks.take_away(3, 4, 5)
    with disks.open(0) as store:
        assert len(store.runs()) == 1
        store.remove_backend(*(str(place) for place in disks.backends[3:]), force=True)
        store.ingest([str(make_tree(tmp_path / "third", 10, 20))], options=INLINE)
    disks.bring_back(3, 4, 5)
    return disks


@pytest.mark.parametrize("named", [0, 4])
def test_a_removed_disk_that_comes_back_is_named_with_what_it_alone_knows(split: Disks, named: int) -> None:
    with split.open(named) as store:
        assert [info.number for info in store.members.all] == [0, 1, 2] and len(store.runs()) == 2
        for place in split.backends[3:]:
            assert [each for each in store.notices if each.startswith(f"{place} was removed from the store")] == [
                f"{place} was removed from the store, and is not read; it holds 1 record, 1 of them of runs, that no "
                f"other backend has; to take them in again: drystone backend add {place}"
            ]
    shown = split.run("-s", str(split.backends[named]), "runs")
    assert shown.stderr.count("was removed from the store") == 3 and shown.stdout.count("\n") == 3


def test_adding_a_removed_disk_takes_in_what_it_alone_knows(split: Disks) -> None:
    with split.open(0) as store:
        for place in split.backends[3:]:
            added = store.add_backend(place)
            assert added.number > 5
        assert not store.notices and len(store.runs()) == 3
        trees = ["tree", "second", "third"]
        for tree, run in zip(trees, store.runs(), strict=True):
            assert run.names == [tree]
            assert restore(store, str(run.run_id), split.place / "out") == 0
            assert_equal_trees(split.place / tree, split.place / "out" / tree)
    for place in split.backends[:3]:
        assert len(list((place / "log").glob("*.ingest.json"))) == 3


def test_a_removed_disk_alone_says_what_it_is(split: Disks) -> None:
    with split.open(0) as store:
        assert store.remove_backend(split.backends[2], force=True).backends[0].number == 2
    split.take_away(0, 1, 3, 4, 5)
    with pytest.raises(NotFound, match=f"{split.backends[2]} was removed from its store.*: {split.backends[0]}, "):
        split.open(2)


def test_what_no_backend_has_any_more_does_not_keep_a_store_shut(tmp_path: Path) -> None:
    disks = Disks(tmp_path, 6, ECScheme(4, 2))
    disks.take_away(3, 4, 5)
    for place in disks.backends[:3]:
        shutil.rmtree(place / "manifests" / "packs")
    with disks.open(0) as store:
        removal = store.remove_backend(*(str(place) for place in disks.backends[3:]), force=True)
        assert "manifests/packs" in removal.unknown
        run = store.ingest([str(disks.tree)], options=INLINE)
        assert restore(store, str(run.run_id), tmp_path / "out") == 3  # for what is lost, of the first run
        assert_equal_trees(disks.tree, tmp_path / "out" / "tree")


def test_the_command_takes_several_and_says_what_may_be_lost(tmp_path: Path) -> None:
    disks = Disks(tmp_path, 6, ECScheme(4, 2))
    disks.take_away(1, 3, 5)
    store = ("-s", str(disks.backends[0]))
    advice = [line for line in disks.run(*store, "status").stdout.splitlines() if "backend remove" in line]
    assert len(advice) == 1 and advice[0].endswith(" --force")
    words = advice[0].partition("drystone ")[2].split()
    done = disks.run(*store, *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"removed {disks.backends[n]}; its files are left there" for n in (1, 3, 5)]
    assert lines[3] == "LOST: 1 pack can't be recovered without them" and "on the removed ones alone" in lines[4]
    assert disks.run(*store, "ingest", str(disks.tree), "-q").returncode == 0
    shown = disks.run(*store, "backend", "remove", str(disks.backends[2]), "--dry-run", "--json")
    record = json.loads(shown.stdout) if shown.returncode == 0 else {}
    assert record.get("records_may_be_lost") is False and record["location"] == str(disks.backends[2]), shown.stderr
    assert [each["location"] for each in record["backends"]] == [str(disks.backends[2])]


def test_the_last_ones_stay(tmp_path: Path) -> None:
    disks = Disks(tmp_path, 3, ECScheme(2, 1))
    with disks.open(0) as store, pytest.raises(UsageError, match="add or attach another one first"):
        store.remove_backend(*(str(place) for place in disks.backends), force=True)


def test_what_is_not_there_may_be_on_backends_that_are_absent(tmp_path: Path) -> None:
    disks = Disks(tmp_path, 6, ECScheme(2, 2))
    place = tmp_path / "few"
    with FileStore.create([place / str(n) for n in range(6)], scheme=ECScheme(2, 2), cache=tmp_path / "cache") as store:
        for number in range(4):
            store.add_backend(place / str(number), read_only=True)
        store.ingest([str(disks.tree)], options=INLINE)
    (place / "4").rename(tmp_path / "4")
    (place / "5").rename(tmp_path / "5")
    away = f"; absent: {place}/4, {place}/5: attach them"
    for arguments in (
        ["ls"],
        ["restore", "--to", str(tmp_path / "out")],
        ["ls", "1234abcd"],
        ["compare", "latest", "."],
    ):
        done = disks.run("-s", str(place), *arguments)
        assert done.returncode == 1 and away in done.stderr and "holds no run yet" not in done.stderr, done
    shown = disks.run("-s", str(place), "runs")
    assert (shown.returncode, shown.stdout.count("\n")) == (0, 1) and away in shown.stderr
    with FileStore.open(place, cache=tmp_path / "cache") as store:
        for use in (
            lambda: store.get_object("key"),
            lambda: store.get_chunk_info(bytes(32)),
            lambda: store.get_ec_group(uuid.UUID(int=1)),
        ):
            with pytest.raises(NotFound, match=f"{place}/4, {place}/5"):
                use()
    disks.take_away(1)
    with disks.open(0) as store, pytest.raises(NotFound, match=f"holds no object .*; absent: {disks.backends[1]}"):
        store.find("latest:tree/nothing")
