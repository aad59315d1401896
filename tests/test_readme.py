"""The README tells the truth: its commands are run, in order, and print what it shows.

Blocks marked `console` hold commands behind `$ ` and their output; blocks marked `python` are programs, and the `text`
block behind each is its output. All run in one shell and one directory. After a change of output, write it anew with

    python -m tests.test_readme --update
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from manifests.errors import DrystoneError, UsageError
from pipeline.cli.app import COMMANDS
from pipeline.errors import Interrupted

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DRYSTONE = Path(sys.executable).with_name("drystone")
#: Stand in the README for the working directory, the host and the user of whoever ran the commands.
PLACE, HOST, USER = "/home/me", "nas1", "me:me"
MARK = "\x1e"


@dataclass
class Step:
    """A command of the README and the lines that it shows. `at`: its first line of output in the README."""

    command: str
    at: int
    shown: list[str] = field(default_factory=list)


def steps_of(text: str, programs: Path) -> list[Step]:
    """The steps of a README; its Python programs are written below `programs`."""
    found: list[Step] = []
    language, program = "", []
    for number, line in enumerate(text.splitlines()):
        if line.startswith("```"):
            if language == "python":
                path = programs / f"step-{len(found)}.py"
                path.write_text("\n".join(program) + "\n")
                found.append(Step(f"python {shlex.quote(str(path))}", -1))
            language, program = ("" if language else line[3:] or "plain"), []
            if language == "text":
                assert found[-1].at < 0, f"line {number + 1}: a text block stands behind a python block"
                found[-1].at = number + 1
        elif language == "python":
            program.append(line)
        elif language == "console" and line.startswith("$ "):
            found.append(Step(line[2:], number + 1))
        elif language in ("console", "text"):
            found[-1].shown.append(line)
    return found


def play(steps: list[Step], scratch: Path) -> list[list[str]]:
    """Run the commands in one shell, in a directory below `scratch`; the lines that each printed."""
    work = scratch / "work"
    work.mkdir()
    script = ["umask 022"]
    for step in steps:
        # The exit status of a command must still be there for an `echo $?` behind it.
        script += [step.command, r"code=$?; printf '\036'; (exit $code)"]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(scratch),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    printed = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=100,
    ).stdout.decode()
    pieces = printed.split(MARK)
    assert len(pieces) == len(steps) + 1, f"the shell ended early:\n{pieces[-1]}"
    return [as_shown(piece, work).splitlines() for piece in pieces[:-1]]


def as_shown(text: str, work: Path) -> str:
    """Output with the README's place, host and user instead of this machine's."""
    user = f"{_name(pwd.getpwuid, os.getuid())}:{_name(grp.getgrgid, os.getgid())}"
    text = text.replace(str(work), PLACE).replace(f" {user} ", f" {USER} ")
    text = text.replace(f"Z  {socket.gethostname():<4}  ", f"Z  {HOST}  ")
    text = re.sub(rf"^(  of .*) on {re.escape(socket.gethostname())}$", rf"\1 on {HOST}", text, flags=re.MULTILINE)
    text = re.sub(
        rf"^(taking run .*) on {re.escape(socket.gethostname())},", rf"\1 on {HOST},", text, flags=re.MULTILINE
    )
    return re.sub(r'"(uid|gid)": \d+', r'"\1": 1000', text)


def _name(look_up: object, number: int) -> str:
    try:
        return str(look_up(number)[0])  # type: ignore[operator]
    except KeyError:
        return str(number)


SIZE = r"[\d.]+ (?:[KMGT]i)?B"
#: What differs from run to run and from machine to machine. All else must be as shown.
VARYING = [
    (r"[\d.]+ KiB on disk", "SIZE on disk"),  # pages of an index, by the order of its keys
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
    (r"^(run |taking run |last run |unfinished run |drystone: run )?[0-9a-f]{8}(?=[ ,:]|$)", r"\1ID"),
    (r"(as in run|ls -R) [0-9a-f]{8}$", r"\1 ID"),
    (r"packs/[0-9a-f]{2}/", "packs/XX/"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "TIME"),
    (rf"{SIZE}/s", "RATE"),
    (r"\b\d+\.\d s\b", "SECONDS"),
    (rf"^( *(?:stored|parity) bytes|manifests) +{SIZE}", r"\1 SIZE"),
    (rf"^(ID TIME {HOST} \d+ {SIZE}) {SIZE}", r"\1 SIZE"),
    (rf"^ unchanged \d+ not read, {SIZE}", " unchanged FILES not read, SIZE"),
    (rf"{SIZE} read\b", "SIZE read"),
    (rf"{SIZE} on disk\b", "SIZE on disk"),
    (r"compression ratio [\d.]+", "compression ratio RATIO"),
    (r"[\d,]+ chunks", "CHUNKS"),
    (r"^chunks [\d,]+", "chunks COUNT"),
    (r"packs/XX/ID\.\d", "packs/XX/ID.SHARD"),
    (r"lie on \d+ devices?", "lie on DEVICES"),
    (r"device:\d+", "DEVICE"),
    (rf"^(DEVICE (?:ok|absent) \d+) {SIZE} {SIZE} ", r"\1 SIZES "),
    (rf" {SIZE} {SIZE} \d+ % ", " ROOM "),
    (r"\d+ (?:s|min|h|d) ago", "AGE ago"),
    (r"failure domains?", "failure domain"),
    (r"^( \w+) \d+ [\d,]+ \d+% \d+%$", r"\1 FIGURES"),
]


#: Lines that depend on the machine's devices, or on chance.
PASSED_OVER = re.compile(
    r"warning: one device holds|next: (?:\S+ is nearly full|all backends are in one failure domain"
    r"|one failure domain holds)|decoded [\d,]+ missing|healed [\d,]+ damaged"
)


def normal(lines: list[str]) -> list[str]:
    """Lines without what may differ. What workers report in any order is sorted. Warnings about devices fall away, and
    so does the count of decoded cells: a pack that lost parity only, as its id has it, needs no decoding."""
    found = []
    for line in lines:
        line = re.sub(r"(?<=\S) +", " ", re.sub(r"^ +", " ", line)).rstrip()
        for pattern, instead in VARYING:
            line = re.sub(pattern, instead, line)
        if not PASSED_OVER.match(line):
            found.append(line)
    shards = iter(sorted(line for line in found if line.startswith("packs/")))
    return [next(shards) if line.startswith("packs/") else line for line in found]


def test_the_commands_print_what_the_readme_shows(tmp_path: Path) -> None:
    steps = steps_of(README.read_text(), tmp_path)
    for step, printed in zip(steps, play(steps, tmp_path), strict=True):
        assert normal(printed) == normal(step.shown), f"README line {step.at + 1}: $ {step.command}"


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("  files                    5  and 3 directories", "  files                    6  and 3 directories"),
        ("  new bytes          1.3 MiB  dedupe ratio 1.97", "  new bytes          1.4 MiB  dedupe ratio 1.97"),
        ("-rw-r--r--  me:me  15559  2024-05-06T07:08:09Z  a", "-rw-r--r--  me:me  15559  2024-05-06T07:08:08Z  a"),
        ("restored 5 files, 2.5 MiB in 0.3 s, 8.3 MiB/s", "restored 5 files, 2.6 MiB in 0.3 s, 8.3 MiB/s"),
        ("4", "3"),
        ("  read             1           6    31%      69%", "  chunk            1           6    31%      69%"),
    ],
)
def test_what_matters_is_not_normalised_away(shown: str, printed: str) -> None:
    assert normal([shown]) == normal([shown])
    assert normal([shown]) != normal([printed])


def test_every_command_is_shown(tmp_path: Path) -> None:
    shown = {step.command for step in steps_of(README.read_text(), tmp_path)}
    for command in COMMANDS:
        assert any(re.search(rf"\bdrystone {command}\b", line) for line in shown), f"no example of {command}"


def test_links_lead_somewhere() -> None:
    text = README.read_text()
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in text.splitlines()}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (ROOT / target).exists(), target


def exit_codes() -> dict[int, str]:
    """The table of exit codes in the README."""
    section = README.read_text().split("\n## Exit codes\n")[1].split("\n## ")[0]
    return {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", section, re.MULTILINE)}


def test_exit_codes_are_those_of_the_program(tmp_path: Path) -> None:
    codes = exit_codes()
    assert set(codes) == {0, 1, 2, 3, 4, 130, 143}
    assert codes[DrystoneError.exit_code].startswith("failed")
    assert codes[UsageError.exit_code].startswith("usage")
    for number in (signal.SIGINT, signal.SIGTERM):
        assert f"stopped by {number.name}" in codes[Interrupted(number).exit_code]
    # The others are seen in the tour: after each `echo $?` stands what the program really gave.
    steps = steps_of(README.read_text(), tmp_path)
    seen = {int(step.shown[0]) for step in steps if step.command == "echo $?"}
    assert seen == {1, 2, 3, 4}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_with_the_codes_of_the_readme(number: signal.Signals, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    subprocess.run([DRYSTONE, "init", store], check=True, capture_output=True)
    process = subprocess.Popen(
        [DRYSTONE, "-s", store, "ingest", "-", "--name", "stream"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdin is not None
        # More than a pipe holds: when it is written, the run is under way.
        process.stdin.write(bytes(1 << 20))
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    meaning = exit_codes()[process.returncode]
    assert f"stopped by {number.name}" in meaning
    assert f"stopped by {number.name}; nothing was committed" in errors.decode()


def update() -> None:
    """Write the README's outputs anew."""
    lines = README.read_text().splitlines()
    with tempfile.TemporaryDirectory() as scratch:
        steps = steps_of(README.read_text(), Path(scratch))
        results = play(steps, Path(scratch))
    for step, printed in reversed(list(zip(steps, results, strict=True))):
        lines[step.at : step.at + len(step.shown)] = printed
    README.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    assert sys.argv[1:] == ["--update"], __doc__
    update()
