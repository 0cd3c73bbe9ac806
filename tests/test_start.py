"""A program reads its command line before it imports what takes long: --help and refusals need a tenth of a second.

All programs run one after another in one fresh process, so that the first one that brings such a package is named.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.programs import NOT_WRAPPED, PARTS, ROOT, modules

SLOW = ("torch", "torchvision", "transformers", "hivemind", "datasets", "matplotlib", "tensorboard", "scipy", "sklearn")
"""Packages that take most of a second to import, or several."""
STARTED = {name: f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name for name in modules() - PARTS}
"""Program -> the module with its `main`."""

CHILD = """
import contextlib, importlib, io, json, sys

cases, slow = json.loads(sys.stdin.read())
for module, words in cases:
    sys.argv = [module, *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(module).main()
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue(), sorted(set(slow) & set(sys.modules))]), flush=True)
"""


def started(
    cases: list[tuple[str, list[str]]], folder: Path, slow: tuple[str, ...] = SLOW
) -> list[tuple[int, str, str]]:
    """(code, output, errors) of each program with its words; asserts that none has imported one of `slow`."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([[(STARTED[name], words) for name, words in cases], slow]),
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    for (name, words), (*_, brought) in zip(cases, found, strict=False):
        assert not brought, f"python -m {name} {' '.join(words)} imports {', '.join(brought)} before it has read that"
    assert len(found) == len(cases), f"{cases[len(found)]}: {ended.stderr}"
    return [(code, out, err) for code, out, err, _ in found]


def test_help_waits_for_no_slow_package(tmp_path: Path) -> None:
    assert len(STARTED) > 35 and STARTED.keys() >= NOT_WRAPPED - PARTS
    cases = [(name, ["--help"]) for name in sorted(STARTED)]
    for (name, _), (code, out, err) in zip(cases, started(cases, tmp_path), strict=True):
        assert code == 0 and name.split(".")[-1] in out and not err, f"{name}: {code} {err}"


def test_neither_does_an_option_that_does_not_exist(tmp_path: Path) -> None:
    cases = [(name, ["--no-such-option=1"]) for name in sorted(STARTED)]
    for (name, _), (code, out, err) in zip(cases, started(cases, tmp_path), strict=True):
        assert code == 2 and not out, f"{name}: {code} {out}"
        assert len(err.splitlines()) == 1 and err.startswith(("error: ", "usage: ")), f"{name}: {err}"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A configuration, a grid, and a text that is no YAML."""
    attacked = {"peers": 4, "byzantine": 1, "steps": 8, "attack": {"name": "sign_flip", "start": 2}}
    (tmp_path / "swarm.yaml").write_text(yaml.safe_dump(attacked))
    (tmp_path / "grid.yaml").write_text("attacks: {}\ndefence: {}\n")
    (tmp_path / "series.yaml").write_text("baseline: {steps: 4}\nlead: 0\n")
    (tmp_path / "broken.yaml").write_text("peers: [1\n")
    return tmp_path


DIGITS = str(ROOT / "configs/resnet/digits.yaml")
REFUSED = {
    f"resnet.train {DIGITS}": "--out RUN_DIR is missing",
    "resnet.train nowhere.yaml --out a": "nowhere.yaml",
    "resnet.train broken.yaml --out a": "broken.yaml",
    f"resnet.train {DIGITS} --out a --momentun 1": "momentun",
    f"resnet.train {DIGITS} --out a --peers=-1": "--peers must be >= 1, got -1",
    f"resnet.train {DIGITS} --out a --byzantine 1 --attack.name sign_flop": "--attack.name must be null, module:Class",
    # What is wrong besides an attack does not wait for the attack's class.
    f"resnet.train {DIGITS} --out a --byzantine 9 --attack.name sign_flip": "--byzantine must be >= 0 and < peers / 2",
    f"resnet.train {DIGITS} --out a --byzantine 1 --attack.name alie --attack.start 900000": "--attack.start must be <",
    f"resnet.calibrate {DIGITS} --out a --points 0": "--points: must be an integer of at least 1, got 0",
    f"resnet.radii {DIGITS} --out a.json --widths 0": "must be an integer of at least 1",
    "resnet.sweep grid.yaml --out a": "unknown key 'defence'",
    "resnet.sweep grid.yaml": "--out DIR is missing",
    "resnet.figures a b --out a.png --labels one": "--labels: expected one per run, 2, got 1",
    "albert.trainer swarm.yaml --out a --peer 7": "--peer must be >= 0 and < peers = 4, or null, got 7",
    "albert.swarm swarm.yaml --out a --network.port 70000": "--network.port must be",
    "albert.coordinator swarm.yaml --out a --wandbb x": "wandbb",
    "albert.calibrate swarm.yaml --out a --samples 0": "at least 1",
    "albert.experiments series.yaml --out a": "series.yaml",
    "albert.prepare --source synthetic": "expected --source and --out, or --check",
    "albert.prepare --source synthetic --out a --sequence-length 1": "expected at least 8, got 1",
    "btard.watch a --serve --audit": "--audit is for a page that is written",
    "btard.export a": "give either --out FOLDER or --check",
    "scripts.ban_times --out a --attack silent": "invalid choice: 'silent'",
    "scripts.benchmark --out a --only speed": "invalid choice: 'speed'",
    "scripts.golden check --only nothing": "invalid choice: 'nothing'",
    "scripts.swarm_rounds --out a.json --cases 2x100": "--cases: expected PEERSxD",
    "scripts.soak --runs 0": "must be an integer of at least 1",
}
"""Command line -> part of the line that refuses it."""


def test_neither_does_a_value_that_is_refused(files: Path) -> None:
    cases = [(words[0], words[1:]) for words in map(str.split, REFUSED)]
    for command, (code, _, err) in zip(REFUSED, started(cases, files), strict=True):
        assert code == 2 and REFUSED[command] in err, f"{command}: {code} {err}"
        assert len(err.splitlines()) == 1 and err.startswith("error: "), f"{command}: {err}"


def test_a_slow_import_is_noticed(tmp_path: Path) -> None:
    """The settings need yaml, with which it takes no torch to see that."""
    with pytest.raises(AssertionError, match=r"python -m resnet.train --help imports yaml before it has read that"):
        started([("btard.audit", ["--help"]), ("resnet.train", ["--help"])], tmp_path, (*SLOW, "yaml"))
