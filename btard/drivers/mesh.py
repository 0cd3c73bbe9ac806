"""Ranks that talk to each other in rounds over `torch.distributed`: everybody to everybody, and nobody waits forever.

A round is an all-to-all of frames: a header, and room for a short letter, or for one as long as came after the same
phase before. What does not fit takes a second all-to-all. It knows nothing of the protocol.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import struct
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from btard.drivers.letters import Pieces
from btard.protocol.envelope import aligned

INLINE = 712
"""Letters of up to this many bytes always fit: broadcasts among 16 peers do."""

# Running, whether all letters fit, note, limit, length, room in the next frame, phase. Letters stay aligned.
_HEADER = struct.Struct("<BBB5xqqq32s")

RECENT = 3
"""Rounds after a phase that say how long letters are there. Two of them must have been long: one that has been so once
gets no room, and a peer that has checked another one, and said nothing for a step, keeps it."""

_RUNS = itertools.count()
"""Numbers for the runs of this process; all ranks make the same runs."""

SLICE = 0.5
"""Seconds between two checks, while waiting, whether another rank is in trouble."""
GRACE = 2.0
"""Seconds that the others have to say that they are still there."""


class RankLost(RuntimeError):
    """A rank ended or hangs: which one, at which step, in which phase. `missing`: those ranks.

    What was under way stays pending in the background, so a process that catches this should end by `os._exit`.
    """

    def __init__(self, finding: str, missing: Sequence[int]) -> None:
        super().__init__(finding)
        self.missing = tuple(missing)


@dataclass(frozen=True)
class Round:
    """What came in a round. `phases` says where the ranks are that are `running`; `notes` are of all ranks."""

    letters: dict[int, bytearray | memoryview]
    running: frozenset[int]
    phases: dict[int, str]
    notes: dict[int, int]


class Mesh:
    """The ranks that are still in the run, `ranks`, at first all `size`, and this process, `rank`, one of them.

    `store` is where they find each other, and where ranks in trouble find out who is missing. It has to outlive any of
    them, as torchrun's does. A rank that does not answer within `timeout` seconds ends the run.

    >>> import btard, torch
    >>> mesh = btard.Mesh(torch.distributed.HashStore(), rank=0, size=1, timeout=30)
    >>> mesh.gather("hello", b"said by everybody")
    {0: b'said by everybody'}
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float) -> None:
        """Returns when all `size` ranks are there. Errors: RankLost if some do not come in time."""
        self.rank = rank
        self.ranks = tuple(range(size))
        self.timeout = timeout
        self.step = 0
        self.interrupted = False
        self._following: dict[tuple[str, int], deque[int]] = defaultdict(lambda: deque(maxlen=RECENT))
        """(phase, recipient) -> lengths of the letters in the last rounds after that phase."""
        self._store = dist.PrefixStore("mesh", store)
        self._connect()

    @property
    def others(self) -> tuple[int, ...]:
        return tuple(rank for rank in self.ranks if rank != self.rank)

    def heed_termination(self) -> None:
        """On SIGTERM, which torchrun sends to all when one has ended, say who is missing instead of just dying.

        A process that is not waiting for the others, because it hangs, is killed after a few seconds.
        """

        def terminated(*_: object) -> None:
            self.interrupted = True
            signal.alarm(math.ceil(3 * GRACE))

        signal.signal(signal.SIGTERM, terminated)

    def regroup(self, ranks: Sequence[int]) -> None:
        """Continue among `ranks`, ascending, fewer than before; all of them call this. Errors: RankLost."""
        if tuple(ranks) != self.ranks:
            self.ranks = tuple(ranks)
            self._connect()

    def _connect(self) -> None:
        """New connections among `ranks`. Not by `dist.new_group`: its names depend on what else a process has done."""
        self._phase = "connect"
        # How much room frames have for a letter: those of this rank, by recipient, and those to it, by sender.
        self._room, self._room_here = dict.fromkeys(self.ranks, INLINE), dict.fromkeys(self.ranks, INLINE)
        store = dist.PrefixStore(f"group/{','.join(map(str, self.ranks))}", self._store)
        try:
            # What a collective may take is up to `_all_to_all`; gloo's own error would only say "timeout".
            self._group: Any = dist.ProcessGroupGloo(
                store, self.ranks.index(self.rank), len(self.ranks), timedelta(seconds=self.timeout)
            )
        except RuntimeError:
            self._name_the_missing(time.monotonic() + GRACE)
        # gloo is ready at one rank before it is at another: one that left now would break the others' connecting.
        self._all_to_all([bytes(len(self.ranks))], dict.fromkeys(self.ranks, 1), dict.fromkeys(self.ranks, 1))

    def gather(self, phase: str, value: bytes, limit: int = 2**24) -> dict[int, bytes]:
        """Everybody's `value`, not empty and at most `limit` bytes, by rank. Errors: RankLost."""
        came = self.round(phase, dict.fromkeys(self.others, (value,)), limit).letters
        return {rank: bytes(came[rank]) if rank != self.rank else value for rank in self.ranks}

    def round(
        self, phase: str, letters: Mapping[int, Pieces], limit: int, *, running: bool = True, note: int = 0
    ) -> Round:
        """Send each recipient its letter; returns this rank's letters, by sender, each of at most `limit` bytes.

        `note`: a number below 256 that all ranks learn beside the letters. An empty letter is none, and so is one that
        is longer than its recipient's limit.
        Errors: RankLost if a rank does not answer in time.
        """
        before, self._phase = self._phase, phase
        lengths = {to: sum(map(len, letters[to])) for to in self.others if to in letters}
        fitting = {to for to, length in lengths.items() if length <= self._room[to]}
        next_room = {to: self._expected(phase, to) for to in self.ranks}
        pieces: list[bytes | memoryview] = []
        for to in self.ranks:
            about = note, limit, lengths.get(to, 0), next_room[to]
            pieces.append(_HEADER.pack(running, len(fitting) == len(lengths), *about, phase.encode()[:32]))
            pieces += letters[to] if to in fitting else ()
            pieces.append(bytes(self._room[to] - (lengths[to] if to in fitting else 0)))
        size = _HEADER.size
        sizes, here = ({r: size + room for r, room in rooms.items()} for rooms in (self._room, self._room_here))
        frames = self._all_to_all(pieces, sizes, here)
        said = {rank: _HEADER.unpack_from(frame) for rank, frame in frames.items()}
        accepted = {to: length for to, length in lengths.items() if length <= said[to][3]}
        coming = {rank: header[4] for rank, header in said.items() if rank != self.rank and 0 < header[4] <= limit}
        result: dict[int, bytearray | memoryview] = {}
        for rank, length in coming.items():
            if length <= self._room_here[rank]:
                letter = frames[rank][size : size + length]
                result[rank] = bytearray(letter) if length <= INLINE else letter  # a short one must not keep the others
        if not all(header[1] for header in said.values()):
            late = {to: length for to, length in accepted.items() if to not in fitting}
            pieces = [piece for to in late for piece in letters[to]]
            result |= self._all_to_all(pieces, late, {rank: coming[rank] for rank in coming.keys() - result.keys()})
        for to in self.others:
            self._following[before, to].append(accepted.get(to, 0))
        self._room, self._room_here = next_room, {rank: header[5] for rank, header in said.items()}
        return Round(
            result,
            frozenset(rank for rank in self.ranks if said[rank][0]),
            {rank: said[rank][6].rstrip(b"\0").decode(errors="replace") for rank in self.ranks},
            {rank: said[rank][2] for rank in self.ranks},
        )

    def _expected(self, phase: str, to: int) -> int:
        """The room for the letter to `to` in the round after one of `phase`."""
        lengths = sorted(self._following[phase, to])
        return aligned(max(INLINE, lengths[-2])) if len(lengths) > 1 else INLINE

    def _all_to_all(self, out: Pieces, sizes: Mapping[int, int], here: Mapping[int, int]) -> dict[int, memoryview]:
        """Send `out`: so many bytes for each rank, in their order. Returns the bytes that came, from whom some came."""
        into = [here.get(rank, 0) for rank in self.ranks]
        # Not zeroed: it is overwritten, and may be as long as a model.
        received = torch.empty(sum(into), dtype=torch.uint8)
        joined = bytearray(b"").join(out)
        sent = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0, dtype=torch.uint8)
        self._transfer(received, sent, into, [sizes.get(rank, 0) for rank in self.ranks])
        parts = zip(self.ranks, received.split(into), strict=True)
        return {rank: part.numpy().data for rank, part in parts if len(part)}

    def _transfer(self, received: torch.Tensor, sent: torch.Tensor, into: list[int], out: list[int]) -> None:
        """The all-to-all itself, of bytes; so many come `into` here and go `out` for each rank. Errors: RankLost."""
        deadline = time.monotonic() + self.timeout
        try:
            work = self._group.alltoall_base(received, sent, into, out)
        except RuntimeError:
            self._name_the_missing(deadline)
        while True:
            try:
                work.wait(timedelta(seconds=SLICE))
                return
            except RuntimeError:
                # Nothing but the end of the slice, unless the work is over: then waiting again tells which.
                if work.is_completed():
                    try:
                        work.wait()
                        return
                    except RuntimeError:
                        self._name_the_missing(deadline)
            if self.interrupted or time.monotonic() > deadline or self._store.check(["trouble"]):
                self._name_the_missing(deadline)

    def _name_the_missing(self, deadline: float) -> NoReturn:
        """Raise RankLost with the ranks that do not come here before `deadline`; all use the first finding.

        gloo says only that a connection broke. So whoever notices says so in the store, where all others look.
        """
        missing: list[int]
        started = time.monotonic()
        deadline = max(deadline, started + min(GRACE, self.timeout))
        try:
            self._store.set(f"here/{self.rank}", "1")
            self._store.set("trouble", "1")
            while not self._store.check(["finding"]):
                missing = [rank for rank in self.ranks if not self._store.check([f"here/{rank}"])]
                if self.interrupted:
                    deadline = min(deadline, started + GRACE)
                if not missing or time.monotonic() > deadline:
                    self._store.compare_set("finding", "", json.dumps([self._finding(missing), missing]))
                    break
                time.sleep(0.05)
            finding, missing = json.loads(self._store.get("finding"))
        except RuntimeError:
            finding = f"step {self.step}, phase {self._phase}: the process that keeps the ranks' store has ended"
            missing = [rank for rank in self.ranks if rank < self.rank]
        raise RankLost(finding, missing)

    def _finding(self, missing: Sequence[int]) -> str:
        place = f"step {self.step}, phase {self._phase}"
        if not missing:
            return f"{place}: stopped" if self.interrupted else f"{place}: a connection between the ranks broke"
        who = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
        if self.interrupted:
            return f"{place}: {who} ended"
        return f"{place}: {who} did not answer within {self.timeout:g} s"


def torchrun_mesh(timeout: float) -> Mesh:
    """All processes that torchrun has started, as ranks that handle its SIGTERM.

    Errors: RuntimeError in a process that it has not started; RankLost if some do not come in time.
    """
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except KeyError as missing:
        raise RuntimeError(
            f"{missing} is not set: start a process for each peer by torchrun --nproc-per-node PEERS SCRIPT.py"
        ) from None
    # torchrun's own store, where there is one: it outlives the ranks. A prefix for each attempt of its to restart, and
    # for each run of a script that makes several: the addresses of an earlier one lead nowhere.
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        address,
        port,
        is_master=not agents and rank == 0,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    mesh = Mesh(dist.PrefixStore(f"attempt {attempt}, run {next(_RUNS)}", store), rank, size, timeout)
    mesh.heed_termination()
    return mesh
