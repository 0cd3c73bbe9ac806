"""What a peer's folder says after several lives of the run: which checkpoints it can go on from, and has passed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from btard.harness.run_folder import RunFolder, RunFolderError
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry, Ledger
from btard.swarm.life import after
from btard.swarm.member import Member
from btard.swarm.notes import LIVES, Notes
from tests.swarm.points import life
from tests.swarm.quadratic import Config


class Disk:
    """The folder of a peer; its lines and checkpoints differ from life to life."""

    def __init__(self, path: Path) -> None:
        self.member, self.path, self.said = Member.__new__(Member), path, list[str]()
        self.folder, self.notes = RunFolder(path, Config(), events=False), Notes(path)
        self.identity = Identity.from_seed("me")
        vars(self.member).update(
            folder=self.folder, notes=self.notes, identity=self.identity, first=0, out=path, say=self.said.append
        )

    def begin(self, number: int, step: int, before: int | None = None) -> None:
        """Begin life `number` at the checkpoint of `step`, of the life `before`."""
        left = self.notes.lives[1]
        self.notes.write_lives(life(number), left if before is None else after(left, life(before), step))
        self.folder.start(step, forget=False)

    def come_back(self, number: int, step: int, ledger: Sequence[Entry] = ()) -> None:
        """Come back to the others in life `number`."""
        self.notes.write_lives(life(number), self.notes.lives[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that were missed there are no metrics
            self.folder.start(step, forget=False)
        chain = Ledger()
        self.folder.replace_ledger([chain.append(entry) for entry in ledger])

    def do(self, first: int, last: int, number: int, saves: Sequence[int] = (2, 4)) -> None:
        """The steps from `first` to before `last`, in life `number`."""
        for step in range(first, last):
            self.folder.log(step, {"loss": float(number)})
            if step + 1 in saves:
                state = {"key": self.identity.public_key.hex(), "peer": {}, "life": life(number).hex()}
                tensors = {"training/parameters": torch.ones(2), **self.folder.vouch(step + 1, timings=True)}
                self.folder.save_checkpoint(step + 1, tensors, state)

    def found(self) -> tuple[set[int], list[int]]:
        """The steps of the checkpoints to go on from, and of those that the peer has passed."""
        self.folder.close()
        self.said.clear()
        self.member._points = {}
        self.member.find_stored()
        return {*self.member.stored}, [step for step, *_ in self.member.passed]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    found = Disk(tmp_path)
    found.begin(0, 0)
    return found


def test_a_checkpoint_outlasts_a_beginning_before_it(disk: Disk) -> None:
    """It is used again if nothing was done there; else once the folder's lines have given way to those it holds."""
    disk.do(0, 4, 0)
    assert disk.found() == ({2, 4}, [2])
    disk.come_back(0, 4)
    disk.do(4, 5, 0)
    assert disk.found() == ({2, 4}, [2, 4])
    disk.begin(1, 0)
    assert disk.found() == ({2, 4}, [])
    disk.begin(2, 0)
    disk.do(0, 1, 2)
    assert disk.found() == (set(), []) and len(disk.said) == 3
    assert disk.said[0] == "the others began before step 4: its checkpoint is kept, and is not used"
    for name in ("metrics.jsonl", "ledger.jsonl", "timings.jsonl"):
        (disk.path / name).unlink()
    assert disk.found() == ({2, 4}, [])


def test_what_was_passed_in_a_life_that_was_left_is_named_up_to_where_the_next_one_began(disk: Disk) -> None:
    disk.do(0, 5, 0)
    assert disk.found()[1] == [2, 4]
    disk.begin(1, 2, before=0)
    disk.do(2, 3, 1)
    assert disk.found() == ({2}, [2])


def test_who_came_back_to_another_life_has_passed_nothing_there(disk: Disk) -> None:
    """Its lines of before stay: they say which steps it did, and not in which life."""
    disk.do(0, 5, 0)
    disk.come_back(1, 7)
    disk.do(7, 8, 1)
    assert disk.found() == ({2, 4}, [])


def test_a_step_in_which_a_peer_was_away_was_not_passed(disk: Disk) -> None:
    disk.do(0, 4, 0)
    disk.come_back(0, 6)
    disk.do(6, 7, 0)
    assert disk.found() == ({2, 4}, [2])


def test_a_peer_that_is_killed_again_and_again_starts_again(disk: Disk) -> None:
    """In the middle of a checkpoint that is to replace one of the life before, and before the next one is written."""
    disk.do(0, 4, 0)
    disk.begin(1, 2, before=0)
    disk.do(2, 4, 1, saves=())
    assert disk.found() == ({2}, [2])
    disk.come_back(1, 6)
    disk.do(6, 7, 1)
    assert disk.found() == ({2}, [2])


def test_a_peer_that_came_back_to_another_ledger_starts_again(disk: Disk) -> None:
    disk.do(0, 3, 0, saves=(2,))
    disk.folder.log_ledger([Ledger().append(Entry(2, "silent", "public", 2, (), (2,), 2))])
    disk.do(3, 5, 0)
    disk.come_back(1, 7, [Entry(3, "silent", "public", 1, (), (1,), 3)])
    disk.do(7, 8, 1)
    assert disk.found() == ({2}, [])


def test_lines_of_another_run_are_refused(disk: Disk) -> None:
    """Without a note on the lives nobody can say which life has them: such a checkpoint is passed over."""
    disk.do(0, 4, 0)
    lines = (disk.path / "metrics.jsonl").read_text()
    (disk.path / "metrics.jsonl").write_text(lines.replace("0.0", "7.0"))
    with pytest.raises(RunFolderError, match="does not fit the checkpoint of step 4"):
        disk.found()
    for damage in ("", "[]", '{"life": "zz", "left": {}}', '{"life": "", "left": []}'):
        (disk.path / LIVES).write_text(damage)
        assert disk.notes.lives == (None, {}) and disk.found() == (set(), [])
