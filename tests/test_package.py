"""What `pip install .` gives: wheel and source distribution, each in an environment that holds nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.timeout(600)  # dependencies may come from afar

PACKAGES = ("pipeline", "stages", "manifests")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

BUILD = """
from setuptools import build_meta
build_meta.build_wheel("dist")
build_meta.build_sdist("dist")
"""

#: Prints one line for each module: its name, and the file that it came from.
IMPORT_ALL = """
import importlib, pkgutil
for top in {packages!r}:
    package = importlib.import_module(top)
    for module in pkgutil.walk_packages(package.__path__, top + "."):
        importlib.import_module(module.name)
import sys
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] in {packages!r}:
        print(name, module.__file__)
"""


def files_of(folder: Path) -> set[str]:
    """All files of the packages below `folder`, but for what Python makes itself."""
    return {
        str(path.relative_to(folder))
        for package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(*line: str | Path, cwd: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(line, cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the build needs in `builder`, and in `dist` a wheel and a source distribution. They are
    made of a copy: a `build` directory of an earlier build would bring in what is no longer there."""
    place = tmp_path_factory.mktemp("package")
    tree = place / "tree"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    wanted = subprocess.run([*PIP, "install", "--target", place / "builder", *requires], capture_output=True, text=True)
    if wanted.returncode:
        pytest.skip(f"the package registry gives no {', '.join(requires)}: {wanted.stderr[-300:]}")
    run(sys.executable, "-c", BUILD, cwd=tree, PYTHONPATH=str(place / "builder"))
    shutil.move(tree / "dist", place / "dist")
    return place


def empty_environment(place: Path) -> Path:
    """An environment without anything, pip included; its site-packages."""
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent)
    (packages,) = place.glob("lib/python*/site-packages")
    assert not list(packages.iterdir())
    return packages


@pytest.fixture(scope="module")
def from_wheel(built: Path) -> Path:
    """The site-packages of an environment into which the wheel was installed, with all that it says it needs."""
    (wheel,) = (built / "dist").glob("*.whl")
    packages = empty_environment(built / "wheel")
    run(*PIP, "--python", built / "wheel", "install", wheel, cwd=built)
    return packages


def requirements(metadata: str) -> list[str]:
    return sorted(re.findall(r"^Requires-Dist: .*", metadata, re.MULTILINE))


def check(place: Path, packages: Path) -> None:
    """What was installed is all that the sources are; it imports, archives and restores."""
    assert files_of(packages) == files_of(ROOT)
    python = place / "bin" / "python"
    modules = dict(
        line.split() for line in run(python, "-c", IMPORT_ALL.format(packages=PACKAGES), cwd=place).splitlines()
    )
    expected = {re.sub(r"/__init__$", "", name.removesuffix(".py")) for name in files_of(ROOT) if name.endswith(".py")}
    assert modules.keys() == {name.replace("/", ".") for name in expected}
    assert all(Path(file).is_relative_to(packages) for file in modules.values())

    (place / "data").mkdir()
    (place / "data" / "words").write_text("a dry-stone wall\n" * 9999)
    line = [place / "bin" / "drystone", "-s", place / "store"]
    settings = {"DRYSTONE_CACHE": str(place / "cache")}
    assert "drystone, version" in run(line[0], "--version", cwd=place)
    run(line[0], "init", place / "store", cwd=place, **settings)
    run(*line, "ingest", "data", cwd=place, **settings)
    run(*line, "restore", "--to", "back", cwd=place, **settings)
    assert (place / "back" / "data" / "words").read_bytes() == (place / "data" / "words").read_bytes()


def test_the_wheel_in_an_empty_environment(built: Path, from_wheel: Path) -> None:
    check(built / "wheel", from_wheel)


def test_the_source_distribution_in_an_empty_environment(built: Path, from_wheel: Path) -> None:
    """What it says it needs is what the wheel says, and is used where the wheel had it put: that takes most of the
    time."""
    (source,) = (built / "dist").glob("*.tar.gz")
    packages = empty_environment(built / "source")
    line = [*PIP, "--python", built / "source", "install", "--no-deps", "--no-build-isolation", source]
    run(*line, cwd=built, PYTHONPATH=str(built / "builder"))
    (packages / "needed.pth").write_text(f"{from_wheel}\n")
    (mine,), (wheels,) = (folder.glob("drystone-*.dist-info/METADATA") for folder in (packages, from_wheel))
    assert requirements(mine.read_text()) == requirements(wheels.read_text()) != []
    check(built / "source", packages)
