"""The runs of the golden record, and how each is put into JSON values. Only this file here knows the project's code."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from btard.protocol.peer import Peer
from scripts import soak
from tests.protocol import matrix
from tests.protocol.cohort import Run

SECTIONS = ("matrix", "soak")
SOAK_SEEDS = 50

Fields = dict[str, Any]
Said = dict[int, dict[int, list[str]]]
"""Step -> peer -> the names of its effects, in order."""


@dataclass(frozen=True)
class Case:
    """One run of the record; `play` makes it and returns its fields, JSON values."""

    section: str
    name: str
    seed: int
    play: Callable[[Path], Fields]
    """Given an empty folder that is removed afterwards."""


def cases(sections: Sequence[str], seeds: int) -> Iterator[Case]:
    """All runs of `sections`; each row of the matrix with `seeds` seeds."""
    if "matrix" in sections:
        for row in matrix.ROWS:
            for seed in range(seeds):
                yield Case("matrix", str(row), seed, _matrix(row, seed))
    if "soak" in sections:
        for seed in range(SOAK_SEEDS):
            yield Case("soak", "mixture", seed, _soak(seed))


def record(case: Case) -> Fields:
    """What the run came to; where it failed, the error and the effects up to it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return case.play(Path(folder))
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}".replace(folder, "FOLDER")}


def _matrix(row: matrix.Row, seed: int) -> Callable[[Path], Fields]:
    return lambda folder: _cohort(lambda: matrix.play(row, seed, folder)[0], folder)


def _soak(seed: int) -> Callable[[Path], Fields]:
    """Every sixth mixture has up to 32 peers, the others, which take less time, up to 12."""
    largest = 32 if seed % 6 == 5 else 12
    return lambda folder: _cohort(lambda: soak.play(soak.draw(seed, largest=largest), proofs=folder), folder)


def _cohort(play: Callable[[], Run], proofs: Path) -> Fields:
    with effects_named() as said:
        run = play()
    ledger = run.driver.honest[0].ledger
    return {
        "steps": len(run.results),
        "head": ledger.head.hex(),
        "entries": [asdict(entry) for entry in ledger.entries],
        "coins": [result.coin.hex() for result in run.results],
        "parameters": blake3(run.params.numpy().tobytes()).hexdigest(),
        "sent": sent_by_peer([result.sent for result in run.results]),
        "effects": grouped(said),
        "proofs": digests(proofs),
    }


@contextmanager
def effects_named() -> Iterator[Said]:
    """Every peer's effects of all steps that are made inside, seen from outside of the peer."""
    said: Said = {}
    original = Peer.step

    def step(self: Peer) -> Generator[Any, Any, Any]:
        names = said.setdefault(self.t, {}).setdefault(self.id, [])
        running, answer = original(self), None
        while True:
            try:
                effect = running.send(answer)
            except StopIteration as end:
                return end.value
            names.append(f"{type(effect).__name__} {effect.phase}")
            answer = yield effect

    Peer.step = step  # type: ignore[method-assign]
    try:
        yield said
    finally:
        Peer.step = original  # type: ignore[method-assign]


def grouped(said: Said) -> list[dict[str, str]]:
    """For each step: its sequences of effects, and which peers had them (`0 1 3`)."""
    steps = []
    for step in sorted(said):
        peers: dict[str, list[int]] = {}
        for peer, names in sorted(said[step].items()):
            peers.setdefault(", ".join(names), []).append(peer)
        steps.append({" ".join(map(str, who)): names for names, who in peers.items()})
    return steps


def sent_by_peer(steps: Sequence[dict[int, int]]) -> dict[str, list[int]]:
    """Peer -> bytes it sent in each step in which it was there."""
    peers = sorted({peer for sent in steps for peer in sent})
    return {str(peer): [sent[peer] for sent in steps if peer in sent] for peer in peers}


def digests(folder: Path, names: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """File below `folder` -> BLAKE3 of its bytes, of those whose relative path satisfies `names`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    paths = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: blake3(file.read_bytes()).hexdigest() for name, file in paths.items() if names(name)}
