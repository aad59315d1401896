"""What `status` says of a store, against losses, rot and history; and single packs as their shards."""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest

from manifests import format as fmt
from manifests.backends import LocalDirectory
from manifests.errors import BackendError, CorruptRecord, NotFound, Unreadable
from manifests.inflight import Inflight
from manifests.presence import Pattern
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.status import age
from stages.shard import data_offset
from tests.corruptors import flip, shard_length

INLINE = IngestOptions(inline=True, workers=1)
MakeStore = Callable[..., FileStore]


@pytest.fixture
def store(make_store: MakeStore, tmp_path: Path) -> FileStore:
    """A store of a few packs, on six backends."""
    (tmp_path / "noise").write_bytes(random.Random(4).randbytes(9_000_000))
    made = make_store()
    made.ingest([str(tmp_path / "noise")], options=INLINE)
    return made


def reopened(tmp_path: Path) -> FileStore:
    return FileStore.open(tmp_path / "store", cache=tmp_path / "cache")


def shards(tmp_path: Path, backend: int) -> list[Path]:
    return sorted((tmp_path / "store" / f"backend-{backend}" / "packs").rglob("*.*"))


# --- what a pattern bears, against all ways to lose backends


def brute_force(pattern: Pattern, group_of: dict[int, object]) -> int:
    groups = {group_of.get(backend, backend) for _, backend in pattern.placed}
    for count in range(len(groups) + 1):
        for lost in combinations(groups, count):
            if len({s for s, b in pattern.placed if group_of.get(b, b) not in lost}) < pattern.k:
                return count - 1
    return len(groups)


def test_a_pattern_bears_what_trying_all_losses_says() -> None:
    chance = random.Random(7)
    for _ in range(400):
        k, m, backends = chance.randint(1, 5), chance.randint(0, 3), chance.randint(1, 7)
        placed = {(chance.randrange(k + m), chance.randrange(backends)) for _ in range(chance.randint(0, 12))}
        pattern = Pattern(k, m, tuple(sorted(placed)), 1, uuid.UUID(int=0))
        domains: dict[int, object] = {n: f"domain {chance.randrange(3)}" for n in range(backends)}
        assert pattern.bears({}) == brute_force(pattern, {})
        assert pattern.bears(domains) == brute_force(pattern, domains)
        for lost in pattern.lethal_sets(50):
            assert len(lost) == pattern.bears({}) + 1
            assert len({s for s, b in placed if b not in lost}) < k


def test_a_wide_pattern_with_copies_is_never_said_to_bear_too_much() -> None:
    placed = [(n, n) for n in range(60)] + [(0, 1)]
    assert Pattern(40, 20, tuple(sorted(placed)), 1, uuid.UUID(int=0)).bears({}) in (19, 20)


# --- whole stores


def test_a_whole_store_bears_what_it_promises(store: FileStore) -> None:
    status = store.status()
    assert (status.exit_code, status.bears_backends, status.should_bear, status.troubles) == (0, 2, 2, [])
    assert (status.domains, status.bears_domains) == (1, 0)
    assert status.packs and sum(share.shards for share in status.backends) == 6 * status.packs
    on_disk = sum(
        path.stat().st_size for n in range(6) for path in shards(Path(store.members.all[0].location).parents[1], n)
    )
    assert sum(share.shard_bytes for share in status.backends) == on_disk
    assert status.last_run is not None and status.last_verification is None
    assert any("verify --data" in each for each in status.advice)


@pytest.mark.parametrize(("lost", "bears", "code"), [((1,), 1, 4), ((0, 5), 0, 4), ((0, 2, 4), -1, 3)])
def test_lost_backends_are_counted(
    store: FileStore, tmp_path: Path, lost: tuple[int, ...], bears: int, code: int
) -> None:
    for number in lost:
        shutil.rmtree(tmp_path / "store" / f"backend-{number}")
    with reopened(tmp_path) as opened:
        status = opened.status()
    assert (status.bears_backends, status.exit_code) == (bears, code)
    assert status.missing_shards == len(lost) * status.packs == len(lost) * status.short_packs
    assert status.lost_packs == (status.packs if bears < 0 else 0)
    removals = [each for each in status.advice if "backend remove" in each]
    assert len(removals) == (len(lost) if bears >= 0 else 1)
    absent = [str(share.backend.id) for share in status.backends if not share.backend.present]
    assert all(any(identity in each for each in removals) for identity in absent)
    assert all(each.endswith(" --force") == (bears < 0) for each in removals)


@pytest.mark.parametrize("how", ["gone", "short", "misnamed"])
def test_a_shard_that_is_not_there_whole_counts_as_lost(store: FileStore, tmp_path: Path, how: str) -> None:
    for backend in (2, 3):
        path = shards(tmp_path, backend)[0]
        if how == "gone":
            path.unlink()
        elif how == "short":
            os.truncate(path, path.stat().st_size - 1)
        else:
            path.rename(path.with_name(f"{path.name}0"))
    status = store.status()
    assert (status.exit_code, status.missing_shards) == (4, 2)
    assert status.bears_backends == 2 - max(1, 3 - status.short_packs)
    assert all(share.lacking == 0 for share in status.backends)


def test_a_copy_elsewhere_is_as_good(store: FileStore, tmp_path: Path) -> None:
    """A shard that repair put on another backend, or twice."""
    path = shards(tmp_path, 2)[0]
    target = tmp_path / "store" / "backend-3" / path.relative_to(tmp_path / "store" / "backend-2")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    assert (store.status().exit_code, store.status().bears_backends) == (0, 2)
    path.unlink()
    status = store.status()
    assert (status.exit_code, status.missing_shards, status.bears_backends) == (0, 0, 1)


def test_what_a_verification_found_bad_does_not_count(store: FileStore, tmp_path: Path) -> None:
    for backend in (0, 1, 2):
        path = shards(tmp_path, backend)[0]
        flip(path, data_offset(shard_length(path)) + backend * 3 * fmt.CELL_SIZE)
    assert store.status().exit_code == 0  # nobody has read it yet
    result = store.verify(data=True, inline=True, workers=1)
    assert (result.exit_code, result.unnoted) == (4, "")
    status = store.status()
    assert (status.exit_code, status.missing_shards) == (4, 3)
    assert status.bears_backends == 0 and status.lost_packs == 0  # as rows of cells go, nothing is lost
    assert status.last_data_verification is not None and status.last_data_verification.exit_code == 4
    with reopened(tmp_path) as opened:
        opened.catalog.use_all()
        rows = list(opened.catalog.rows("SELECT backend, bad_cells, missing FROM scrubs ORDER BY backend"))
    assert rows == [{"backend": n, "bad_cells": 1, "missing": False} for n in range(3)]


def test_what_a_verification_found_and_is_lost_wants_another_one(store: FileStore, tmp_path: Path) -> None:
    flip(shards(tmp_path, 0)[0], 20_000)
    assert store.verify(data=True, inline=True, workers=1).exit_code == 4
    for path in (tmp_path / "store").rglob("manifests/scrubs/*"):
        path.unlink()
    with reopened(tmp_path) as opened:
        status = opened.status()
        assert (status.exit_code, status.bears_backends) == (4, 2)  # nothing of it is needed to give all back
        assert any("what the last verification found is lost" in each for each in status.troubles)
        assert any("verify --data" in each for each in status.advice)


def test_a_manifest_that_is_on_no_backend_is_named(store: FileStore, tmp_path: Path) -> None:
    for path in (tmp_path / "store").rglob("manifests/extents/*"):
        path.unlink()
    command = [str(Path(sys.executable).with_name("drystone")), "-s", str(tmp_path / "store"), "status"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 3
    assert shown.stdout.startswith("safe: NO: records or manifest files are on no backend that answers")
    assert re.search(r"^amiss: manifests/extents/\S+ is on no backend that answers$", shown.stdout, re.MULTILINE)


def test_which_packs_there_are_must_be_known(store: FileStore, tmp_path: Path) -> None:
    for path in (tmp_path / "store").rglob("manifests/packs/*"):
        path.unlink()
    with (
        reopened(tmp_path) as opened,
        pytest.raises(Unreadable, match=r"which packs the store has is not known.*verify"),
    ):
        opened.status()


def test_a_record_or_manifest_on_too_few_backends_wants_mending(store: FileStore, tmp_path: Path) -> None:
    for backend in range(5):
        next((tmp_path / "store" / f"backend-{backend}" / "manifests" / "packs").iterdir()).unlink()
    status = store.status()
    assert (status.bears_backends, status.exit_code) == (0, 4)
    assert [share.lacking for share in status.backends] == [1, 1, 1, 1, 1, 0]


def test_domains_are_counted_apart_from_backends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"stone" * 1000)
    with FileStore.create([tmp_path / name for name in "abcdef"], cache=tmp_path / "cache") as store:
        for name, domain in zip("abcdef", "xxyyzz", strict=True):
            store.add_backend(tmp_path / name, domain=domain)
        store.ingest([str(tmp_path / "file")], options=INLINE)
        status = store.status()
        assert (status.bears_backends, status.bears_domains, status.domains) == (2, 1, 3)
        assert status.exit_code == 0


def test_domains_that_share_a_device_are_named(tmp_path: Path) -> None:
    with FileStore.create([tmp_path / name for name in "abc"], cache=tmp_path / "cache") as store:
        assert not any("one device holds" in each for each in store.status().advice)
        store.add_backend(tmp_path / "b", domain="elsewhere")
        [said] = [each for each in store.status().advice if "one device holds" in each]
        assert all(str(tmp_path / name) in said for name in "abc")
        assert store.status().exit_code == 0


def test_what_was_taken_over_is_nobodys_any_more(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(random.Random(4).randbytes(900_000))
    store = make_store()
    result = store.ingest([str(tmp_path / "noise")], options=INLINE)
    packs = [uuid.UUID(path.name.partition(".")[0]) for path in shards(tmp_path, 0)]
    dead = Inflight(store.members, uuid.UUID("01890000-0000-7000-8000-000000000001"))
    dead.begin()
    for pack in packs:
        dead.note_pack(pack)
    dead.flush()
    status = store.status()
    assert result.tally.packs and [packs for _, packs in status.unfinished] == [0]
    assert not any("take over" in each for each in status.advice)
    dead.note_pack(uuid.UUID(int=5))
    dead.give_up()
    assert [(run.state, packs) for run, packs in store.status().unfinished] == [("stopped", 1)]
    assert any("take over" in each for each in store.status().advice)


def test_verifications_are_remembered_and_a_whole_one_clears_the_last(store: FileStore, tmp_path: Path) -> None:
    path = shards(tmp_path, 4)[0]
    path.rename(tmp_path / "aside")
    assert store.verify().exit_code == 4
    assert store.status().last_verification.exit_code == 4  # type: ignore[union-attr]
    shutil.copyfile(tmp_path / "aside", path)
    assert "found damage" in " ".join(store.status().troubles)
    assert store.verify().exit_code == 0
    with reopened(tmp_path) as opened:
        status = opened.status()
        assert status.exit_code == 0 and status.last_data_verification is None
        assert len(opened.state.verifications) == 2


def test_a_verification_that_can_not_be_noted_says_so_and_is_done_all_the_same(
    store: FileStore, tmp_path: Path
) -> None:
    for number in (0, 1, 2):
        shutil.rmtree(tmp_path / "store" / f"backend-{number}")
    with reopened(tmp_path) as opened:
        result = opened.verify()
        assert result.exit_code == 3 and "writing needs" in result.unnoted


def test_ages_are_those_of_this_clock() -> None:
    an_hour_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    assert 3590 < age(an_hour_ago.isoformat()).total_seconds() < 3700
    assert age("2999-01-01T00:00:00.000Z") == datetime.timedelta()


def test_the_command_ends_with_4_and_names_what_to_do(store: FileStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store" / "backend-3")
    (tmp_path / "store/backend-0/inflight/01890000-0000-7000-8000-000000000001").mkdir(parents=True)
    marker = tmp_path / "store/backend-0/inflight/01890000-0000-7000-8000-000000000001/marker.json"
    marker.write_text("{}")

    def drystone(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("drystone")), "-s", str(tmp_path / "store"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    shown = drystone("status")
    assert shown.returncode == 4 and shown.stdout.startswith("safe: any 1 more of 6 backends")
    assert "unfinished run 00000001" in shown.stdout and "backend remove" in shown.stdout
    record = json.loads(drystone("status", "--json").stdout)
    assert (record["exit_code"], record["backends_that_may_be_lost"], record["lost_packs"]) == (4, 1, 0)
    (left,) = record["unfinished"]
    assert (left["run"], left["state"], left["packs"]) == ("01890000-0000-7000-8000-000000000001", "unknown", 0)
    assert [backend["state"] for backend in record["backends"]].count("absent") == 1
    risk = drystone("status", "--risk")
    assert risk.returncode == 4 and "any 2 of 0 1 2 4 5" in risk.stdout
    rows = [json.loads(line) for line in drystone("status", "--risk", "--format", "jsonl").stdout.splitlines()]
    assert len(rows) == record["packs"] and all(len(row["lost_with"]) == 10 for row in rows)
    assert not any(row["lost_with_more"] for row in rows)


# --- a pack as its shards


def test_a_pack_is_shown_as_its_shards(store: FileStore, tmp_path: Path) -> None:
    pack_id = uuid.UUID(shards(tmp_path, 0)[0].name.partition(".")[0])
    group = store.get_ec_group(pack_id)
    assert str(group.scheme) == "4+2" and group.can_recover and not group.missing_shards
    assert [shard.is_parity for shard in group.shards] == [False] * 4 + [True] * 2
    assert {shard.backend for shard in group.shards} == {info.backend_id for info in store.members.all}
    files = {int(path.suffix[1:]): path for path in (tmp_path / "store").rglob(f"{pack_id}.*")}
    assert all(shard.size == files[shard.index].stat().st_size for shard in group.shards)
    files[0].unlink()
    flip(files[3], data_offset(shard_length(files[3])) + 5)
    flip(files[4], 3)
    group = store.get_ec_group(pack_id)
    assert [shard.index for shard in group.missing_shards] == [0, 3, 4]
    assert [shard.present for shard in group.shards] == [False, True, True, True, True, True]
    assert not group.can_recover and "1 bad cell" in group.shards[3].trouble
    assert len(group.data_shards) == 4 and len(group.parity_shards) == 2
    with pytest.raises(NotFound):
        store.get_ec_group(uuid.UUID(int=9))


def test_shards_that_cannot_be_opened_are_remembered(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are listed with their lengths, so that a listing alone takes them for good ones."""
    plain = LocalDirectory.read_range

    def refuse(self: LocalDirectory, key: str, offset: int, length: int) -> bytes:
        if key.startswith("packs/") and self.location.endswith(("backend-1", "backend-2")):
            raise BackendError(f"reading {self.location}/{key}: Permission denied")
        return plain(self, key, offset, length)

    assert store.status().bears_backends == 2
    with monkeypatch.context() as patch:
        patch.setattr(LocalDirectory, "read_range", refuse)
        assert store.verify(data=True, inline=True).exit_code == 4
    assert store.status().bears_backends == 0


def test_records_that_may_not_be_read_are_not_called_damaged(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalDirectory, key: str) -> bytes:
        if key.endswith(".ingest.json"):
            raise BackendError(f"reading {self.location}/{key}: Permission denied")
        return plain(self, key)

    plain = LocalDirectory.read
    monkeypatch.setattr(LocalDirectory, "read", refuse)
    with pytest.raises(
        CorruptRecord, match=r"1 log record can't be read .* Permission denied.* Let this user"
    ) as found:
        reopened(tmp_path)
    assert "damaged" not in str(found.value)


def test_a_backend_that_fails_is_not_called_absent_without_its_reason(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalDirectory, key: str, offset: int, length: int | None) -> bytes:
        if self.location.endswith("backend-2"):
            raise BackendError(f"reading {self.location}/{key}: Input/output error")
        return plain(self, key, offset, length)

    def gone(self: LocalDirectory, prefix: str) -> Iterator[str]:
        return iter(()) if self.location.endswith("backend-2") else listing(self, prefix)

    plain, listing = LocalDirectory._read, LocalDirectory.list
    monkeypatch.setattr(LocalDirectory, "_read", refuse)
    monkeypatch.setattr(LocalDirectory, "list", gone)
    again = reopened(tmp_path)
    [trouble] = [each.trouble for each in again.list_backends() if each.path.endswith("backend-2")]
    assert "Input/output error" in trouble
    assert not any("attach" in line for line in again.status().advice)


# --- what to do next


def drystone(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("drystone")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_backend_that_was_away_gets_back_what_it_lacks_by_the_command_that_is_named(
    store: FileStore, tmp_path: Path
) -> None:
    place, away = tmp_path / "store" / "backend-2", tmp_path / "drawer"
    place.rename(away)
    (tmp_path / "more").write_bytes(random.Random(5).randbytes(900_000))
    assert store.ingest([str(tmp_path / "more")], options=INLINE).exit_code == 3
    away.rename(place)
    done = drystone("-s", tmp_path / "store", "ingest", tmp_path / "noise", "-q")
    wanted = f"drystone backend add {place}"
    assert [line for line in done.stderr.splitlines() if line.startswith("behind: ") and line.endswith(wanted)]
    status = store.status()
    assert any(each.endswith(wanted) for each in status.advice) and status.backends[2].lacking > 2
    added = drystone("-s", tmp_path / "store", *wanted.split()[1:])
    assert added.returncode == 0 and "records and manifest files that it lacked" in added.stdout
    with reopened(tmp_path) as opened:
        status = opened.status()
        assert all(share.lacking == 0 for share in status.backends) and not opened.log.behind(opened.members)
        assert not any("backend add" in each for each in status.advice)
        assert status.missing_shards and any("no command brings back" in each for each in status.advice)
        assert any("verify -v" in each for each in status.advice)
        assert opened.verify().exit_code == 4
        advice = opened.status().advice
    assert any("no command brings back" in each for each in advice)
    assert not any("verify -v" in each for each in advice)  # it was done, and would name the same again
    again = drystone("-s", tmp_path / "store", *wanted.split()[1:])
    assert again.stdout.startswith("part of the store already") and len(again.stdout.splitlines()) == 1


def test_damage_that_was_mended_since_the_verification_is_looked_at_again(store: FileStore, tmp_path: Path) -> None:
    for path in (tmp_path / "store" / "backend-1" / "manifests").rglob("*.parquet"):
        path.unlink()
    assert store.verify().exit_code == 4
    store.add_backend(tmp_path / "store" / "backend-1")
    status = store.status()
    assert (status.exit_code, len(status.troubles)) == (4, 1)
    assert status.advice[0] == "look whether that is mended: drystone verify"
    assert store.verify().exit_code == 0 and store.status().exit_code == 0


def on_domains(tmp_path: Path, domains: str) -> FileStore:
    """A store of a backend in each domain, with a run."""
    (tmp_path / "file").write_bytes(random.Random(6).randbytes(900_000))
    store = FileStore.create([tmp_path / f"disk-{n}" for n in range(6)], cache=tmp_path / "cache", pack_size=256 << 10)
    for number, domain in enumerate(domains):
        store.add_backend(tmp_path / f"disk-{number}", domain=domain)
    store.ingest([str(tmp_path / "file")], options=INLINE)
    return store


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        ("aaaaaa", "all backends are in one failure domain, a, and its loss loses everything"),
        (
            "aaabbb",
            "one failure domain holds 3 shards of a pack and 2 may be lost, so the loss of that domain loses data",
        ),
        ("aabbcc", ""),
        ("abcdef", ""),
    ],
)
def test_what_the_loss_of_a_domain_would_mean_follows_from_what_there_is(
    tmp_path: Path, domains: str, said: str
) -> None:
    with on_domains(tmp_path, domains) as store:
        about = [each for each in store.status().advice if "failure domain" in each]
    assert (about == []) if not said else (len(about) == 1 and about[0].startswith(said))


def test_disks_of_their_own_are_not_to_be_put_on_disks_of_their_own(tmp_path: Path) -> None:
    """One was away for a run, and another one is gone: some packs bear one loss, others none."""
    with on_domains(tmp_path, "abcdef") as store:
        (tmp_path / "drawer").mkdir()
        (tmp_path / "disk-3").rename(tmp_path / "drawer" / "away")
        (tmp_path / "more").write_bytes(random.Random(7).randbytes(900_000))
        assert store.ingest([str(tmp_path / "more")], options=INLINE).exit_code == 3
        (tmp_path / "drawer" / "away").rename(tmp_path / "disk-3")
        store.remove_backend(tmp_path / "disk-0")
        status = store.status()
        short = [each for each in status.advice if "failure domain" in each]
    assert status.bears_domains == 0 and 0 < status.frail_packs < status.packs
    packs = "1 pack lacks" if status.frail_packs == 1 else f"{status.frail_packs} packs lack"
    assert short == [
        f"{packs} shards, and would not survive the loss of some one failure domain; which: drystone status --risk"
    ]


def test_packs_that_nobody_can_take_over_are_counted_apart(store: FileStore, tmp_path: Path) -> None:
    """As a run leaves them that failed before enough shards of a pack were written."""
    for number in range(3):
        pack = uuid.UUID(int=0x01890000_0000_7000_8000_000000000000 + number)
        for backend in range(number + 1):
            folder = tmp_path / "store" / f"backend-{backend}" / "packs" / f"{number:02x}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{pack}.{backend}").write_bytes(b"x")
    status = store.status()
    assert (status.unnamed_packs, status.stranded_packs, status.unfinished) == (0, 3, [])
    said = drystone("-s", tmp_path / "store", "status").stdout
    assert "left by failed runs: 3 packs that no run can take over; gc of a later version" in said
    assert "under way" not in said
    running = Inflight(store.members, uuid.UUID("01890000-0000-7000-8000-000000000001"))
    running.begin()
    status = store.status()  # they may be its
    assert (status.unnamed_packs, status.stranded_packs) == (3, 0)
    running.give_up()
    status = store.status()
    assert (status.unnamed_packs, status.stranded_packs) == (0, 3)
    said = drystone("-s", tmp_path / "store", "status").stdout
    assert re.search(r"^unfinished run 00000001: stopped: process \d+ on \S+; it stored no whole pack$", said, re.M)
    assert "take over what unfinished" not in said
