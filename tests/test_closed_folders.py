"""Restoring into directories of one's own that deny their owner something: they are open while it writes, no longer."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A tree `s` in the store, of which `s/ro` and `s/ro/in` may not be written into, and restored as `o`, where a file
    of each is missing."""
    inner = tmp_path / "s" / "ro" / "in"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "f").write_bytes(b"1")
        (folder / "g").write_bytes(b"2")
    closed(tmp_path / "s")
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        store.ingest([str(tmp_path / "s")], options=IngestOptions(inline=True, workers=1))
        store.restore("latest", tmp_path / "o", request=RestoreRequest("", inline=True, workers=1))
    opened(tmp_path / "o" / "s")
    for folder in ("ro", "ro/in"):
        (tmp_path / "o" / "s" / folder / "f").unlink()
    closed(tmp_path / "o" / "s")
    yield tmp_path
    for tree in ("s", "o", "o/s"):
        opened(tmp_path / tree)


def closed(tree: Path) -> None:
    (tree / "ro" / "in").chmod(0o500)
    (tree / "ro").chmod(0o555)


def opened(tree: Path) -> None:
    for folder in (tree, tree / "ro", tree / "ro" / "in"):
        if folder.exists():
            folder.chmod(0o755)


def modes(tree: Path) -> list[int]:
    """Those of `ro` and of what lies in it; an inner one can be looked at by root alone, or by its owner."""
    return [stat.S_IMODE(os.stat(tree / "ro" / name).st_mode) for name in (".", "in")]


def as_nobody(place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """In a user namespace of which no file's owner is a member, even root's rights end at the mode."""
    command = ["unshare", "--user", COMMAND, "-s", place / "store", *words]
    environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
    done = subprocess.run(map(str, command), capture_output=True, text=True, timeout=60, env=environment)
    if "unshare failed" in done.stderr:
        pytest.skip("no user namespaces here")
    return done


@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
@pytest.mark.parametrize("before", one_in(3, [0o555, 0o500, 0o311, 0o000]))
def test_what_is_missing_in_them_comes_back(place: Path, overwrite: str, before: int) -> None:
    (place / "o" / "s" / "ro" / "in").chmod(before)
    (place / "o" / "s" / "ro").chmod(before)
    done = as_nobody(place, "restore", "--to", place / "o", "--overwrite", overwrite)
    assert done.returncode == 0 and "denied" not in done.stderr, done.stderr
    assert modes(place / "o" / "s") == [0o555, 0o500], "the archived ones"
    for folder in ("ro", "ro/in"):
        assert [(place / "o" / "s" / folder / name).read_bytes() for name in "fg"] == [b"1", b"2"]


def test_the_target_itself_is_open_while_the_restore_writes(place: Path) -> None:
    target = place / "o" / "s" / "ro"
    done = as_nobody(place, "restore", "latest:s/ro/f", "--to", target)
    assert done.returncode == 0 and "denied" not in done.stderr, done.stderr
    assert (target / "f").read_bytes() == b"1" and modes(place / "o" / "s") == [0o555, 0o500]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["error", "stop"])
def test_after_an_error_they_have_the_modes_that_they_had(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    hits = [0]

    def fails(*_: object, **more: object) -> str:
        hits[0] += 1
        assert modes(place / "o" / "s") == [0o711, 0o700], "they are open by now"
        raise error

    (place / "o" / "s" / "ro").chmod(0o011)
    monkeypatch.setattr(os, "access", lambda *_, **more: False)  # as for somebody who is not root
    monkeypatch.setattr("pipeline.restore.run._finish_folders", fails)
    with FileStore.open(place / "store", cache=place / "cache") as store, pytest.raises(type(error)):
        store.restore("latest", place / "o", request=RestoreRequest("", inline=True, workers=1))
    assert hits[0] == 1
    assert modes(place / "o" / "s") == [0o011, 0o500]


def test_what_cannot_be_opened_or_closed_again_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **more: False)

    def refuses(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("stages.closedfolders.change_mode", refuses)
    request = RestoreRequest("", inline=True, workers=1)
    with FileStore.open(place / "store", cache=place / "cache") as store:
        result = store.restore("latest", place / "o", request=request)
        assert result.exit_code == 3
        reason = "its owner may not write into it, and opening it failed: Operation not permitted; change its mode"
        assert [reason for failure in result.failures if reason in failure[1]] == [reason] * 2
        monkeypatch.undo()
        monkeypatch.setattr(os, "access", lambda *_, **more: False)
        closed(place / "o" / "s")

        def fails(*_: object, **more: object) -> str:
            monkeypatch.setattr("stages.targetfolders.change_mode", refuses)
            raise KeyboardInterrupt

        monkeypatch.setattr("pipeline.restore.run._finish_folders", fails)
        with pytest.raises(KeyboardInterrupt) as caught:
            store.restore("latest", place / "o", request=request)
    where = place / "o" / "s" / "ro"
    assert caught.value.__notes__[0] == (
        f"{where / 'in'} has the mode 0700 and had 0500: setting it failed: Operation not permitted"
    )
