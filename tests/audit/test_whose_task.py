"""A run's folder names the task that is to be made, and settings for it: a stranger's may name anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from btard.audit.__main__ import main
from btard.audit.files import CONFIG
from btard.audit.numerics import numeric_platform
from btard.audit.settings import read_settings, write_settings
from btard.audit.tasks import check_named, own_task
from btard.harness.recorded import MAX_CONFIG
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity, Roster
from tests.audit.runs import attackers, record

PEERS = 3


def folder_of(place: Path, task: str, config: str = "") -> Path:
    """A folder that names `task`, with these settings."""
    place.mkdir(parents=True, exist_ok=True)
    keys = tuple(Identity.from_seed("whose", peer).public_key for peer in range(PEERS))
    write_settings(place, ProtocolConfig(PEERS), 8, Roster(keys), task, numeric_platform())
    if config:
        (place / CONFIG).write_text(config)
    return place


def module(file: Path, *lines: str) -> None:
    """A module that must not be imported."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(("raise SystemExit('it was imported')", "import btard", *lines, "")))


def test_no_package_is_imported_on_the_way_to_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a.b runs a, so all of these would have run before their file was looked at."""
    folder = folder_of(tmp_path / "run", "")
    module(folder / "hostile_package/__init__.py")
    module(folder / "hostile_package/task.py")
    module(folder / "half_hostile/task.py")
    module(tmp_path / "mine/half_hostile/other.py")
    module(tmp_path / "mine/program/__main__.py")
    (tmp_path / "mine/spaces/deep").mkdir(parents=True)
    (tmp_path / "mine/spaces/deep/model.py").write_text("import btard\n")
    for place in (folder, tmp_path / "mine"):
        monkeypatch.syspath_prepend(str(place))
    for name, said in {
        "venv.__main__.x:make": "is of a program",
        "program.__main__:main": "is of a program",
        "__main__:main": "is of a program",
        "json.nothing:make": "no module json.nothing is found",
        "json.tool:main": "does not import btard",
        "sys:exit": "no module of yours",
        "hostile_package:make": "no module of yours",
        "hostile_package.task:make": "no module of yours",
        "hostile_package.none:make": "is found",
        "half_hostile.other:make": "no module of yours",
        "scripts.threat_model:main": "makes no task",
    }.items():
        with pytest.raises(ValueError, match=said):
            check_named(name, folder)
    for line in (
        "import btard",
        "import torch as t, numpy, btard.audit",
        "import torch, btard",
        "from btard import audit",
    ):
        (tmp_path / "mine/spaces/deep/model.py").write_text(line)
        check_named("spaces.deep.model:make", folder)
    ran = {"hostile_package", "half_hostile", "program", "spaces", "venv.__main__", "json.tool"}
    assert not ran & set(sys.modules)


def test_only_a_modules_own_functions_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/with_rmtree.py").write_text("from shutil import rmtree\nimport btard\n")
    folder = folder_of(tmp_path / "run", "with_rmtree:rmtree")
    assert own_task(folder) is None and folder.exists()
    assert "with_rmtree:rmtree is a function of shutil" in capsys.readouterr().err


def test_a_task_that_imports_finds_nothing_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The auditor has gone into the folder, where Python looks first."""
    folder = folder_of(tmp_path / "run", "innocent_model:make")
    module(folder / "innocent_helper.py")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/innocent_model.py").write_text("import btard\ndef make():\n    import innocent_helper\n")
    for place in (tmp_path / "mine", folder):
        monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(folder)
    assert own_task(Path()) is None
    assert "innocent_helper" not in sys.modules and str(folder) not in sys.path


HOSTILE = {
    "resnet.audit:task_of": ("aggregator: {name: 'hostile_class:X'}", "attack: {name: 'hostile_class:X'}"),
    "tests.swarm.quadratic:make": ("attack: {name: 'hostile_class:X', start: 0}",),
}


@pytest.mark.parametrize("task", HOSTILE)
def test_settings_import_nothing_and_are_read_within_bounds(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module(tmp_path / "mine/hostile_class.py")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    threads = torch.get_num_threads()
    for number, keys in enumerate(HOSTILE[task]):
        folder = folder_of(tmp_path / f"run {number}", task, f"peers: 3\nbyzantine: 1\nthreads: 1000000000\n{keys}\n")
        assert own_task(folder) is None and "hostile_class" not in sys.modules
        assert "threads must be <= 1024" in capsys.readouterr().err
    config = folder / CONFIG
    for text, said in {
        "base: /etc/hostname\n": "unknown key base",
        "a: &a [x, x]\nb: [*a, *a]\n": "an alias, which no run writes",
        f"run_id: {'x' * MAX_CONFIG}\n": "at most 262144 bytes are read",
        "3: x\n": "a key that is no text",
    }.items():
        config.write_text(text)
        assert own_task(folder) is None and said in (error := capsys.readouterr().err), error
    assert torch.get_num_threads() == threads


def test_a_task_that_fails_while_it_computes_leaves_the_votes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings such as a batch of 10^12 samples show only then."""
    record(tmp_path / "run", **attackers("sign_flip"), steps=12)
    (tmp_path / "failing_model.py").write_text(
        "import btard\n\nclass Task:\n    d = 53\n    def gradients(self, *a, **b): raise MemoryError('too much')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config, d, roster = read_settings(tmp_path / "run")
    write_settings(tmp_path / "run", config, d, roster, "failing_model:Task", numeric_platform())
    assert main([str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "the task fails: MemoryError: too much" in said.err and "votes only" in said.out
