"""The wheel that machines can install instead of the repository: all packages, their files, and what they need."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.albert.cloud.test_machine import script, settings

ROOT = Path(__file__).parents[3]
PACKAGES = ("btard", "albert", "resnet")
FILES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "requirements.txt",
    "requirements-swarm.txt",
    "requirements-watch.txt",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because building leaves folders behind; without network."""
    try:
        version = importlib.metadata.version("setuptools")
        importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"a wheel is built with {error.name}, which is not installed")
    if int(version.partition(".")[0]) < 77:
        pytest.skip(f"a wheel is built with setuptools >= 77, this is {version}")
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(folder / "source")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("btard-*.whl"))


def test_it_has_every_file_of_the_packages_and_nothing_else(wheel):
    source = wheel.parent / "source"
    expected = {
        str(path.relative_to(source))
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert "albert/cloud/machine/setup.sh" in names and "btard/py.typed" in names


@pytest.mark.parametrize(
    ("extra", "file"),
    [
        ("swarm", "requirements-swarm.txt"),
        ("watch", "requirements-watch.txt"),
        ("experiments", "requirements.txt"),
    ],
)
def test_its_extras_are_what_the_files_say(wheel, extra, file):
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    metadata = Parser().parsestr(text)
    assert metadata.get_all("Provides-Extra") == ["swarm", "watch", "experiments"]
    needed = {
        entry.partition(";")[0].strip() for entry in metadata.get_all("Requires-Dist") if f'extra == "{extra}"' in entry
    }

    def parts(requirement: str) -> tuple[str, ...]:
        name = requirement[: next(i for i, letter in enumerate(requirement) if letter in "<>=")]
        return (name, *sorted(requirement.removeprefix(name).split(",")))

    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text("utf-8").splitlines()]
    assert {parts(entry) for entry in needed} == {parts(line) for line in lines if line}


@pytest.mark.parametrize("file", ["requirements-swarm.txt", "requirements-watch.txt"])
def test_who_installs_everything_has_what_every_extra_brings(file):
    def needed(name: str) -> set[str]:
        return {line.partition("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines()} - {""}

    assert needed(file) <= needed("requirements.txt")


def test_what_is_in_it_runs_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import albert.cloud.__main__, btard, resnet\n"
        "from albert.cloud.user_data import MACHINE, SCRIPTS, UNITS\n"
        "print(MACHINE.parents[2], [name for name in (*SCRIPTS, *UNITS) if not (MACHINE / name).is_file()])"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{tmp_path / 'site'} []\n", done.stderr


def test_the_programs_that_machines_run_are_in_it(wheel, tmp_path):
    """Those of the script that a machine is started with, in the role that it has."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    programs = set()
    for role in ("coordinator", "honest", "byzantine"):
        text = script(settings(tmp_path), role)
        kind = re.search(r"^KIND=(\w+)$", text, re.MULTILINE).group(1)
        found = re.findall(r'"\$PYTHON" -m "?([\w.$]+)', text)
        assert len(found) == 2, found
        programs |= {name.replace("$KIND", kind) for name in found}
    assert programs == {"albert.coordinator", "albert.trainer", "btard.swarm.identity"}
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", HELP, *sorted(programs)]  # one process for all: their imports take seconds
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for program in programs:
        assert f"usage: python -m {program} " in done.stdout
    assert done.stdout.count(f"ended with 0, from {tmp_path / 'site'}") == 3


HELP = """
import importlib.util, runpy, sys
for program in sys.argv[1:]:
    sys.argv = [program, "--help"]
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print(f"ended with {end.code}, from {importlib.util.find_spec(program).origin}")
"""
