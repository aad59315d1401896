"""The demo: a real tree goes in, two of six backends are deleted, and it comes back byte for byte."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("drystone"))


def step(*arguments: str) -> str:
    """Run a drystone command, shown as a user would type it, and return its output. Raises CalledProcessError."""
    print(f"\n$ drystone {' '.join(arguments)}", flush=True)
    done = subprocess.run([COMMAND, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    return done.stdout


def differences(left: Path, right: Path) -> list[str]:
    """Paths that differ between two trees, compared byte for byte; links by their targets."""
    found = []
    for folder, names, files in os.walk(left):
        other = right / os.path.relpath(folder, left)
        expected = sorted(names + files)
        if not other.is_dir() or sorted(os.listdir(other)) != expected:
            found.append(f"{other}: other names")
            continue
        for name in expected:
            mine, theirs = Path(folder, name), other / name
            if mine.is_symlink():
                same = theirs.is_symlink() and os.readlink(mine) == os.readlink(theirs)
            else:
                same = mine.is_dir() or filecmp.cmp(mine, theirs, shallow=False)
            if not same:
                found.append(str(theirs))
    return found


def main() -> int:
    """Run the demo. Returns 0 when all came back."""
    tree = Path(sysconfig.get_paths()["stdlib"])
    with tempfile.TemporaryDirectory(prefix="drystone-demo-") as scratch:
        os.environ["DRYSTONE_STORE"] = store = f"{scratch}/store"
        os.environ["DRYSTONE_CACHE"] = f"{scratch}/cache"
        step("init", store)
        step("ingest", str(tree))
        for number in (1, 4):
            print(f"\n$ rm -r {store}/backend-{number}")
            shutil.rmtree(f"{store}/backend-{number}")
        step("restore", "latest", "--to", f"{scratch}/back")
        found = differences(tree, Path(scratch, "back", tree.name))
        if found:
            print("\n".join(["these came back different:", *found]))
            return 1
        print("compared byte for byte: equal")
        text = step("cat", f"latest:{tree.name}/os.py", "--range", "0-63")
        if text.encode() != (tree / "os.py").read_bytes()[:64]:
            print("the byte range differs")
            return 1
        step("stats")
    return 0


if __name__ == "__main__":
    sys.exit(main())
