"""What a peer asks another one for: its status, to be named to the others, and the state that most members vouch for.

Nothing of a state is taken before its digest is the one that more than half of the members have signed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from btard.protocol import wire
from btard.protocol.download import Download, Vouch, WrongState, agreed_digest, check_download
from btard.protocol.envelope import DTYPES
from btard.protocol.hashing import digest
from btard.protocol.messages import JoinRequest
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.cancel import cancel
from btard.swarm.deadlines import ANSWER, Deadlines
from btard.swarm.doors import Doors
from btard.swarm.links import Refused
from btard.swarm.state import MAX_STATUS, OVER

MAX_STATE = 2**28
"""Largest size of the state as JSON in bytes: 32 for each step, and some hundred for each ledger entry."""
MAX_NAMES = 2**12
SHORT, LISTED = 2**12, 2**18
"""Largest frames in bytes of an answer without tensors, and of one that lists them."""
MORE = 1.0
"""Seconds that more members have to vouch for a state that has enough already: the first could all be hostile."""
GRACE = 10.0
"""Seconds that a donor has in addition to the time that its bytes take."""
STATUS = 5.0
"""Seconds in which a peer must say how it is: all are asked again and again, and one that is slow holds up the rest."""
NEXT_DONOR = 10.0
"""Seconds after which another donor of a state is asked, too."""

Found = TypeVar("Found")
Template = Mapping[str, torch.Tensor]
"""Tensors with the names, shapes and dtypes that a download must have."""


@dataclass(frozen=True)
class Fetched:
    """The state at the beginning of `step`, checked, and the members that signed its digest, ascending."""

    step: int
    download: Download
    vouched_by: tuple[int, ...]


async def answer(reader: frames.Source, limit: int, kind: str, count: int) -> list[Any]:
    """The `count` fields of a frame of this kind. Errors: Refused, in the other's words; Malformed."""
    fields = await frames.receive(reader, limit, kind)
    if fields[:1] == ["refused"]:
        raise Refused.by(fields)
    fields = wire.check_fields(fields, kind, count)
    if fields[0] != kind:
        raise Malformed(f"{kind}: another answer than that")
    return fields


async def ask_status(doors: Doors, key: bytes, *, last: bool = False) -> dict[str, Any]:
    """What a peer says about itself, unverified. Errors: those of `Doors.knock`; Malformed.

    `last`: the asker needs nothing more of it, so it may end.
    """

    async def ask() -> dict[str, Any]:
        async with doors.visit(key, "status", *([OVER] if last else [])) as (reader, _):
            size = wire.check_int((await answer(reader, SHORT, "status", 2))[1], "size")
            if size > MAX_STATUS:
                raise Malformed(f"status: {size} bytes, at most {MAX_STATUS} are allowed")
            try:
                status = json.loads(bytes(await frames.receive_body(reader, size)))
            except (ValueError, RecursionError):
                raise Malformed("status: not JSON") from None
            if not isinstance(status, dict):
                raise Malformed("status: expected an object")
            return status

    return await asyncio.wait_for(ask(), STATUS)


async def ask_to_join(doors: Doors, key: bytes, request: JoinRequest) -> None:
    """Ask one member to name this peer to the others."""
    async with doors.visit(key, "join", request.signature) as (reader, _):
        await asyncio.wait_for(answer(reader, SHORT, "noted", 1), ANSWER)


async def fetch_state(
    doors: Doors,
    me: bytes,
    members: Mapping[int, bytes],
    template: Template,
    deadlines: Deadlines,
    timeout: float,
    at: int | None = None,
    *,
    tolerated: int = 0,
) -> Fetched:
    """The state at the beginning of the next step, or of step `at`, which has not begun yet.

    `me`: my public key; `members`: number -> key of all that count. What step it is follows from the state itself: a
    donor may call it another. More than half of the members must vouch for it, and more than `tolerated`, or all:
    a peer that does not know yet that members have left and others have come takes too few for all of them. Errors:
    WrongState if no state has that many within `timeout` seconds, or nobody gives the one that has.

    Donors are asked in an order that is another one for each state and each asker, so that no member can be the first
    each time. A donor slower than `deadlines.uplink` is given up; and where one takes long the next is asked
    too, since the members soon drop what they vouched for.
    """
    wish = () if at is None else (at,)
    vouches: dict[int, tuple[int, Vouch]] = {}
    problems: dict[int, str] = {}

    async def ask(number: int, key: bytes) -> None:
        try:
            async with doors.visit(key, "vouch", *wish) as (reader, _):
                _, step, hashed, signature = await answer(reader, SHORT, "vouch", 4)
            if not isinstance(signature, bytes):
                raise Malformed("vouch: expected a signature")
            vouches[number] = wire.check_int(step, "step"), Vouch(number, hashed, signature)
        except Exception as error:
            problems[number] = wire.shown(str(error) or type(error).__name__, 300)

    def donors_of(agreed: bytes) -> dict[int, int]:
        return {
            number: step
            for number, (step, vouch) in sorted(vouches.items())
            if vouch.digest == agreed and vouch.authentic(members[number], doors.run_id, me)
        }

    others = {number: key for number, key in members.items() if key != me}
    asking = {asyncio.ensure_future(ask(number, key)) for number, key in others.items()}
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        while True:
            try:
                agreed = agreed_digest(doors.run_id, me, members, [vouch for _, vouch in vouches.values()])
                if (count := len(donors_of(agreed))) > min(tolerated, len(others) - 1):
                    break
                raise WrongState(f"only {count} members vouch for the state, and {tolerated} may be Byzantine")
            except WrongState as error:
                left = deadline - asyncio.get_running_loop().time()
                if not asking or left <= 0:
                    told = "; ".join(f"peer {i}: {why}" for i, why in sorted(problems.items()))
                    raise WrongState(f"{error}" + (f" ({told})" if told else "")) from None
            _, asking = await asyncio.wait(asking, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if asking:
            await asyncio.wait(asking, timeout=MORE)
    finally:
        await cancel(*asking)
    donors = donors_of(agreed)
    order = sorted(donors, key=lambda donor: digest("donor", agreed, me, members[donor]))

    async def load(donor: int) -> Download:
        download = await _load(doors, members[donor], donors[donor], template, deadlines)
        check_download(download, donor, agreed, doors.run_id)
        return download

    download = await first_of(order, load, problems)
    if download is None:
        told = "; ".join(f"peer {i}: {why}" for i, why in sorted(problems.items()))
        raise WrongState(f"nobody gives the state that the majority vouches for ({told}): ask again in the next step")
    return Fetched(len(json.loads(download.state)["coins"]) - 1, download, tuple(donors))


async def fetch_training(
    doors: Doors,
    members: Mapping[int, bytes],
    step: int,
    template: Template,
    is_right: Callable[[Template], bool],
    deadlines: Deadlines,
    timeout: float,
) -> Template | None:
    """The tensors at the beginning of `step` for which `is_right`, from any of `members`; None if nobody has them.

    For a peer that knows their digest: one member is enough, and where most are liars, or lack them as well, no more
    may give any. Members give them once they are in that step, which is to be within `timeout` seconds.
    """

    async def load(donor: int) -> Template:
        async with doors.visit(members[donor], "vouch", step) as (reader, _):
            await asyncio.wait_for(answer(reader, SHORT, "vouch", 4), timeout)
        tensors = (await _load(doors, members[donor], step, template, deadlines)).tensors
        if not is_right(tensors):
            raise WrongState("gives another state than the one that was agreed on")
        return tensors

    order = sorted(members, key=lambda donor: digest("donor", step, members[donor]))
    return await first_of(order, load, {})


async def first_of(
    order: Sequence[int],
    load: Callable[[int], Coroutine[Any, Any, Found]],
    problems: dict[int, str],
    pause: float = NEXT_DONOR,
) -> Found | None:
    """What `load` returns for the first donor that serves; None if none does. `problems`: why not, by donor.

    Where one takes longer than `pause` seconds the next is asked, too; from one to the next they double.
    """
    left = list(order)
    loading: dict[asyncio.Task[Found], int] = {}
    try:
        while left or loading:
            if left:
                donor = left.pop(0)
                loading[asyncio.ensure_future(load(donor))] = donor
            done, _ = await asyncio.wait(loading, timeout=pause if left else None, return_when=asyncio.FIRST_COMPLETED)
            pause *= 1 if done else 2
            for task in done:
                donor = loading.pop(task)
                try:
                    return task.result()
                except Exception as error:
                    problems[donor] = wire.shown(str(error) or type(error).__name__, 300)
    finally:
        await cancel(*loading)
    return None


class InTime:
    """A stream whose bytes must come as fast as `deadlines.uplink`, with `GRACE` seconds extra in total."""

    def __init__(self, reader: asyncio.StreamReader, deadlines: Deadlines) -> None:
        self._reader, self._deadlines, self._bytes = reader, deadlines, 0
        self._begun = time.monotonic()

    async def read(self, n: int) -> bytes:
        return await self._timed(self._reader.read(n), n)

    async def readexactly(self, n: int) -> bytes:
        return await self._timed(self._reader.readexactly(n), n)

    async def _timed(self, reading: Coroutine[Any, Any, bytes], n: int) -> bytes:
        left = self._begun + GRACE + self._deadlines.seconds(self._bytes + n) - time.monotonic()
        try:
            chunk = await asyncio.wait_for(reading, max(0.0, left))
        except asyncio.TimeoutError:
            raise WrongState(
                f"only {self._bytes} bytes in {time.monotonic() - self._begun:.0f} s, more slowly than deadlines.uplink"
            ) from None
        self._bytes += len(chunk)
        return chunk


async def _load(doors: Doors, key: bytes, step: int, template: Template, deadlines: Deadlines) -> Download:
    """One donor's state, unchecked except for sizes. Errors: WrongState, Malformed, Refused, those of the stream."""
    async with doors.visit(key, "state", step) as (stream, _):
        reader = InTime(stream, deadlines)
        _, said, size, shapes = await answer(reader, LISTED, "state", 4)
        wanted = [[name, DTYPES.index(x.dtype), list(x.shape)] for name, x in template.items()]
        if said != step or len(shapes) > MAX_NAMES or sorted(shapes) != sorted(wanted):
            raise Malformed("state: other tensors than those of this run")
        if not 0 <= wire.check_int(size, "size") <= MAX_STATE:
            raise Malformed(f"state: {size} bytes, at most {MAX_STATE} are allowed")
        state = bytes(await frames.receive_body(reader, size))
        tensors: dict[str, torch.Tensor] = {}
        for name, _, _ in shapes:
            like = template[name]
            await frames.receive(reader, 2**10, "tensor")
            body = await frames.receive_body(reader, like.nbytes)
            tensors[name] = torch.frombuffer(body, dtype=like.dtype).view(like.shape) if like.numel() else like.clone()
        return Download(state, tensors)
