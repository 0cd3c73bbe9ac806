"""The folders of a swarm: each file that is lost, cut or older is restored, or refused in a line.

The folders are those of one real swarm: finished, as they were in the middle of the run, and as they were before that.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from btard.audit.__main__ import main as audit
from btard.harness.pieces import LEDGER, METRICS, RunFolderError
from btard.harness.settings import config_text
from btard.harness.typed_yaml import ConfigError
from btard.protocol.identity import Identity
from btard.swarm import startup
from btard.swarm.config import NetworkConfig
from btard.swarm.coordinator import Coordinator
from btard.swarm.keys import write_identity
from btard.swarm.local import report
from btard.swarm.notes import Notes
from btard.swarm.trainer import Trainer
from btard.watch.folder import read_run
from tests.albert.watched import Watched
from tests.damage import DAMAGES, OLDER, cut, files
from tests.swarm.recorded import CONFIG, MIDDLE, STEPS, Recorded
from tests.swarm.test_heal import SOURCE

LINES = (METRICS, LEDGER, "timings.jsonl")
HONEST = "peer-0"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folders")
    swarm = Recorded(out, out)
    make = swarm.trainers.make

    def made(number: int, **changes: Any) -> Trainer:
        trainer = make(number, **changes)
        swarm.watch(trainer)
        return trainer

    swarm.trainers.make = made  # type: ignore[method-assign]
    try:
        summary = swarm.run()
        swarm.look()
    finally:
        swarm.trainers.close()
        swarm.stop()
    assert summary["byzantine_banned"] == 1 and summary["went_back"]
    return out


REFUSED, RESTORED, UNUSED = "refused", "restored", "nothing is lost"
FINISHED = {
    "*.jsonl": REFUSED,
    "config.yaml": REFUSED,
    "protocol_version": REFUSED,
    "protocol.json": REFUSED,
    "roster.json": REFUSED,
    "attestation.json": REFUSED,
    "evidence/*": REFUSED,
    "checkpoints/*": REFUSED,
    "status.json": REFUSED,
    "summary.json": RESTORED,
    "model.json": RESTORED,
    "address.txt": UNUSED,
    "lives.json": UNUSED,
    "swarm.json": UNUSED,
    ".lock": UNUSED,
    "tb/*": UNUSED,
}
"""What becomes of a damaged file of a finished run; but for a summary that is there and no JSON."""
INTERRUPTED = {
    "*.jsonl": RESTORED,
    "config.yaml": REFUSED,
    "protocol_version": REFUSED,
    f"checkpoints/step-{MIDDLE:08d}*": RESTORED,
    f"checkpoints/step-{OLDER:08d}*": UNUSED,
    "evidence/*": RESTORED,
    "status.json": RESTORED,
    "swarm.json": RESTORED,
    "model.json": RESTORED,
    "protocol.json": UNUSED,
    "roster.json": UNUSED,
    "address.txt": UNUSED,
    "lives.json": UNUSED,
    ".lock": UNUSED,
    "tb/*": UNUSED,
}
"""The same in the middle of a run. Protocol.json and roster.json are written again with the next step."""
ROLES = ("coordinator", HONEST)
BY_PEERS = ("steps", "byzantine", "byzantine_banned", "honest_banned", "bans", "went_back", "heads")
"""What of a coordinator's summary follows from what the peers did."""
CASES = [(role, pattern) for role in ROLES for pattern in FINISHED]


def program(folder: Path, said: list[str]) -> Coordinator | Trainer:
    kind = Coordinator if folder.name == "coordinator" else Trainer
    return kind(CONFIG, folder, SOURCE, say=said.append)


def damaged(recorded: Path, state: str, role: str, tmp_path: Path, pattern: str) -> Iterator[tuple[Path, Path, str]]:
    """Copies of a folder, each with one damage to one file: the folder, the file, the damage."""
    source = recorded / state / role
    for file in files(source, pattern):
        for name, damage in DAMAGES.items():
            folder = tmp_path / name / file.name / role
            shutil.copytree(source, folder)
            place = folder / file.relative_to(source)
            if damage(place, recorded / str(OLDER) / role):
                yield folder, place, name


@pytest.mark.parametrize("table", ["finished", "interrupted"])
def test_the_tables_have_every_file_of_the_folders(table: str, recorded: Path) -> None:
    known = FINISHED if table == "finished" else INTERRUPTED
    for role in ROLES:
        folder = recorded / ("whole" if table == "finished" else str(MIDDLE)) / role
        for file in files(folder):
            name = str(file.relative_to(folder))
            assert any(fnmatch.fnmatch(name, pattern) for pattern in known), f"{role}: {name}"
    folders = [recorded / ("whole" if table == "finished" else str(MIDDLE)) / role for role in ROLES]
    for pattern in known.keys() - {"swarm.json", "model.json"}:  # after some seconds; of tasks that say names
        assert any(files(folder, pattern) for folder in folders), pattern
    assert files(folders[1], "evidence/state-*"), "a run that went back keeps the states that it chose from"


@pytest.mark.parametrize(("role", "pattern"), CASES)
def test_a_file_of_a_finished_run(role: str, pattern: str, recorded: Path, tmp_path: Path) -> None:
    whole = recorded / "whole" / role
    summary = json.loads((whole / "summary.json").read_text())
    for folder, file, how in damaged(recorded, "whole", role, tmp_path, pattern):
        said: list[str] = []
        if FINISHED[pattern] == REFUSED or (file.name == "summary.json" and how == "cut"):
            with pytest.raises((RunFolderError, ConfigError)) as refused:
                program(folder, said).run()
            line = str(refused.value)
            assert "\n" not in line and any(word in line for word in ("copy", "delete", "choose")), line
            assert str(folder) in line or file.name in line
        else:
            assert program(folder, said).run() == summary, f"{file}: {how}"
            again = ("summary.json", "model.json")
            assert file.name not in again or file.read_bytes() == (whole / file.name).read_bytes()


@pytest.mark.parametrize(("role", "pattern"), [(role, pattern) for role in ROLES for pattern in INTERRUPTED])
def test_a_file_of_a_run_that_goes_on(role: str, pattern: str, recorded: Path, tmp_path: Path) -> None:
    source = recorded / str(MIDDLE) / role
    for folder, file, how in damaged(recorded, str(MIDDLE), role, tmp_path, pattern):
        said: list[str] = []
        if INTERRUPTED[pattern] == REFUSED:
            with pytest.raises((RunFolderError, ConfigError), match=r"copy|delete|choose"):
                program(folder, said)
            continue
        going = program(folder, said)
        newest = going.kept.step if isinstance(going, Coordinator) else max(stored(going))
        if isinstance(going, Coordinator):
            going.put_back()
            assert going.view.attacks == {0: False, 1: False, 2: True, 3: False}
            assert len(going.notes.founders or going.kept.founders) == (4 if newest else 0)
        passed_over = INTERRUPTED[pattern] == RESTORED and file.parent.name in ("evidence", "checkpoints")
        later = file.parent.name == "evidence" and file.name.startswith("step-") and int(file.name[5:13]) >= MIDDLE
        assert newest == (OLDER if passed_over and not later else MIDDLE), f"{file}: {how}, {said}"
        if file.name in LINES:
            wanted, found = (lines(place / file.name) for place in (source, folder))
            assert found == wanted[: len(found)] and len(found) >= sum(step_of(line) < MIDDLE for line in wanted)
            assert said, f"{file}: {how}"
        elif file.name == "model.json":
            assert file.read_bytes() == (source / file.name).read_bytes()


def test_a_trainer_puts_back_what_it_says_after_summary_is_deleted(recorded: Path, tmp_path: Path) -> None:
    """As the line about a finished run says."""
    for name in LINES:
        folder = tmp_path / name / HONEST
        shutil.copytree(recorded / "whole" / HONEST, folder)
        (folder / name).write_text("")
        with pytest.raises(RunFolderError, match=r"delete summary\.json and run the command of the run again"):
            program(folder, []).run()
        (folder / "summary.json").unlink()
        summary = program(folder, []).run()
        assert (folder / name).read_bytes() == (recorded / "whole" / HONEST / name).read_bytes()
        assert summary == json.loads((recorded / "whole" / HONEST / "summary.json").read_text())


def test_a_served_page_follows_the_swarm(recorded: Path) -> None:
    """It has what the coordinator's folder had when it was asked: two times in the middle, and after the end."""
    shown = json.loads((recorded / "shown.json").read_text())
    folders = [recorded / str(OLDER) / "coordinator", recorded / str(MIDDLE) / "coordinator", recorded / "whole"]
    assert [page["finished"] for page in shown] == [False, False, True]
    for page, folder in zip(shown, folders, strict=True):
        run = read_run(folder)
        assert [row["step"] for row in page["steps"]] == [line["step"] for line in run.metrics]
        assert [entry["step"] for entry in page["entries"]] == [entry.step for entry in run.entries]
    steps = [page["steps_done"] for page in shown]
    assert steps[0] <= steps[1] <= steps[2] == STEPS and len(shown[2]["entries"]) > len(shown[0]["entries"])
    # Live, the state of each peer as it last told it. Between two steps it is in no phase.
    assert any(row.get("state") == "running" for row in shown[1]["now"]), shown[1]["now"]


def test_a_key_that_was_lost_or_changed_is_no_other_peer(recorded: Path, tmp_path: Path) -> None:
    own = replace(CONFIG, peer=None)
    for key in (None, "another"):
        folder = tmp_path / str(key) / HONEST
        shutil.copytree(recorded / str(MIDDLE) / HONEST, folder)
        (folder / "config.yaml").write_text(config_text(own))
        if key is None:
            with pytest.raises(ConfigError, match=r"identity\.key: is missing, and .* begun with that key; copy"):
                Trainer(own, folder, SOURCE)
            continue
        write_identity(Identity.generate(), folder / "identity.key")
        with pytest.raises(RunFolderError, match=r"its checkpoints are those of another key"):
            stored(Trainer(own, folder, SOURCE))


BUSY = """
import fcntl, sys
held = open(sys.argv[1], "ab")
fcntl.lockf(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def free(lock: Path) -> bool:
    """Whether another process could lock it."""
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return not subprocess.run(
        [sys.executable, "-c", code, str(lock)], stderr=subprocess.DEVNULL, check=False
    ).returncode


@pytest.mark.parametrize("what", ["a folder", "a key"])
@pytest.mark.parametrize("role", [Coordinator, Trainer])
def test_a_folder_and_a_key_are_used_by_one_process(
    role: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command given twice, or one key for two folders: they would be the same peer."""
    key = tmp_path / "own.key"
    own = replace(CONFIG, peer=None, network=NetworkConfig(identity=str(key)))
    used = key if what == "a key" else tmp_path / "run"
    lock = tmp_path / ("own.key.lock" if what == "a key" else "run/.lock")
    first = role(own, tmp_path / "run", SOURCE)
    assert not free(lock)  # also once it has read its key
    del first
    monkeypatch.setattr(startup, "HANDOVER", 0.0)
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"{used.name}: another process uses it; end that one, or choose"):
            role(own, tmp_path / "run", SOURCE)
        other.communicate()
    role(own, tmp_path / "run", SOURCE)


def test_a_swarm_goes_on_from_folders_that_lack_pieces(recorded: Path, tmp_path: Path) -> None:
    """It ends as the one did that was never interrupted, also where others have the coordinator's port by now."""
    out = tmp_path / "again"
    shutil.copytree(recorded / str(MIDDLE), out)
    (out / "peer-0" / METRICS).unlink()
    (out / "peer-0" / "protocol.json").unlink()
    cut(out / "peer-1" / LEDGER, out)
    for name in (METRICS, LEDGER, "status.json", "swarm.json"):
        (out / "coordinator" / name).unlink(missing_ok=True)
    swarm = Watched(CONFIG, out, SOURCE)
    with socket.create_server(("127.0.0.1", Notes(out / "coordinator").port)):
        try:
            summary = swarm.run()
        finally:
            swarm.trainers.close()
    before = json.loads((recorded / "whole/coordinator/summary.json").read_text())
    assert {key: summary[key] for key in BY_PEERS} == {key: before[key] for key in BY_PEERS}
    for name in ("peer-0", "peer-1"):
        end = json.loads((out / name / "summary.json").read_text())
        assert end["digest"] == json.loads((recorded / "whole" / name / "summary.json").read_text())["digest"]
        assert (out / name / LEDGER).read_bytes() == (recorded / "whole" / name / LEDGER).read_bytes()
        assert [json.loads(line)["step"] for line in lines(out / name / METRICS)] == list(range(STEPS))
        assert audit([str(out / name), "--task", "tests.swarm.test_heal:auditors_task"]) == 0
    assert (out / "coordinator" / LEDGER).read_bytes() == (recorded / "whole/coordinator" / LEDGER).read_bytes()


def test_the_table_of_a_swarm_is_not_shown_of_folders_that_do_not_fit(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "swarm"
    shutil.copytree(recorded / "whole", out)
    assert report(CONFIG, out) == 0
    assert "3 peers came to the end, with equal parameters and ledgers" in capsys.readouterr().out
    (out / "coordinator" / LEDGER).unlink()
    with pytest.raises(SystemExit, match="2"):
        report(CONFIG, out)
    (line,) = capsys.readouterr().err.splitlines()
    assert "coordinator/ledger.jsonl: is missing: expected the one that summary.json was made of" in line
    assert any("ledger.jsonl: is missing" in note for note in read_run(out).notes)


def stored(trainer: Trainer) -> dict[int, Any]:
    """The checkpoints that it can go on from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        trainer.find_stored()
    return trainer.stored or {0: None}


def lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.exists() else []


def step_of(line: bytes) -> int:
    return int(json.loads(line)["step"])
