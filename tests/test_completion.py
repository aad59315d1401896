"""Shells complete the command line, in silence whatever stands on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("drystone"))


def complete(instruction: str, words: str = "", word: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "_DRYSTONE_COMPLETE": instruction, "COMP_WORDS": words, "COMP_CWORD": word}
    return subprocess.run([COMMAND], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell: str) -> None:
    done = complete(f"{shell}_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert "_DRYSTONE_COMPLETE=" + f"{shell}_complete" in done.stdout


@pytest.mark.parametrize(("shell", "word"), [("bash", "1"), ("zsh", "1"), ("fish", "rest")])
def test_a_command(shell: str, word: str) -> None:
    done = complete(f"{shell}_complete", "drystone rest", word)
    assert (done.returncode, done.stderr) == (0, "")
    assert "restore" in done.stdout.replace(",", "\t").replace("\n", "\t").split("\t")


@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("drystone restore --to a --to b --over", 6, "plain,--overwrite"),
        ("drystone restore --to '' --over", 4, "plain,--overwrite"),
        ("drystone runs --format c", 3, "plain,csv"),
        ("drystone index reb", 2, "plain,rebuild"),
        ("drystone nosuch --over", 2, ""),
        ("drystone ingest --workers many --for", 4, "plain,--force"),
    ],
)
def test_a_line_that_could_not_run_is_completed_all_the_same(words: str, number: int, offered: str) -> None:
    done = complete("bash_complete", words, str(number))
    assert (done.returncode, done.stderr) == (0, "")
    assert offered in done.stdout.splitlines() or not offered
