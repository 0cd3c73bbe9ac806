"""How a peer gets in: it gathers with the other members, asks to join, or comes back after an absence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from btard.drivers.history import workers_of
from btard.drivers.loop import Fallen
from btard.harness.typed_yaml import ConfigError
from btard.protocol.download import WrongState
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Peer
from btard.protocol.snapshot import load_public
from btard.protocol.wire import shown
from btard.swarm.doors import Doors
from btard.swarm.fetch import STATUS, ask_status, ask_to_join, fetch_state
from btard.swarm.founding import NoFounders, founders_digest, give_founders, known_founders, learn_founders
from btard.swarm.keys import peer_id_of
from btard.swarm.life import BEGINNING, OVERDUE, SETTLED
from btard.swarm.links import Refused
from btard.swarm.member import Member
from btard.swarm.state import PREVIOUS

GRACE = 60.0
"""Seconds in which the peers that are there must agree on who is there, once deadlines.gather is over for all."""
POLL = 0.3
"""Seconds between two looks at the others while waiting for them."""
SHOWN = STATUS + 2 * POLL
"""Seconds for which a certificate is shown before its life begins, if others that are there do not say they have it: an
honest peer has seen it by then."""
BEGUN = (BEGINNING, "running", "returning")
"""What a peer says of itself once it has a certificate of a life."""


def arrive(member: Member) -> None:
    """Take the seat that the first peers' list or its own checkpoint gives, and catch up with the others.

    The node has been started.

    Errors: NoFounders, ConfigError; Fallen if the others have removed this peer.
    """
    founders = known_founders(member.config)
    if founders is None:
        founders = member.node.run(learn_founders(member.node, member.config, member.agreed, member.say))
    member.node.run(_tell_others(member, founders))
    doors = Doors(member.node, member.config.run_id, member.agreed | {"founders": founders_digest(founders)})
    known = member.take_seat(founders, doors)
    member.node.run(doors.open())
    number = member.peer.id if known else "(new)"
    member.say(f"peer {number}: {peer_id_of(member.identity.public_key).to_base58()}")
    if known:
        _gather(member)
    else:
        _join(member)


async def _tell_others(member: Member, founders: tuple[bytes, ...]) -> None:
    """Let newcomers find the run through this peer, too, and note where the others are for a later restart."""
    node, config = member.node, member.config
    await give_founders(node, config, member.agreed, founders)
    node.spawn(member.notes.keep(node, config.run_id, founders, lambda: member.keys or founders))


def _gather(member: Member) -> None:
    """Wait for the other members, then begin where enough of them can: at a step that they have on disk (`life.py`).

    The ledger of this peer's newest checkpoint says who is a member; without one, the first peers are. If most are in
    the middle of the run, go on with their state.

    A peer that has begun waits one phase for the others, not longer, and they may have started as far apart as
    deadlines.gather. So all begin together: they settle on a life when all say that they are ready, or enough that they
    wait no longer, and begin it with a certificate, as soon as all that are there say that they have one.
    """
    member.state = "gathering"
    deadline = time.monotonic() + member.config.deadlines.gather
    all_here = len({*member.members, member.peer.id})
    life = member.life
    life.voters, life.tolerated = all_here, member.tolerated
    half, told, certain = all_here / 2, 0, 0.0
    while True:
        said = ask_all(member)
        life.hear(said, member.points, member.passed)
        life.collect(said, member.members, member.config.run_id)
        begin, here, held = life.begin[0], 1 + len(said), life.holding > half
        going_on = [s.get("step", 0) for s in said.values() if s.get("state") in ("running", "returning")]
        running = sum(s.get("state") == "running" for s in said.values())
        if sum(step > begin or not life.begins for step in going_on) > half:
            return come_back(member, "the others are in the middle of the run")
        if here != told:
            told = here
            member.say(f"{here} of {all_here} peers are here")
        late = time.monotonic() > deadline
        if here == all_here and member.state == "gathering":
            member.state = "ready"
        if life.begins:
            member.state = BEGINNING
            certain = certain or time.monotonic() + SHOWN
            everybody = all(s.get("state") in BEGUN for s in said.values())
            if everybody or running > member.tolerated or time.monotonic() > certain:
                break
        elif not life.settled and running <= member.tolerated:  # with more an honest one is in another life already
            agreeing = life.agreeing(said)
            willing = life.agreeing({i: s for i, s in said.items() if s.get("state") in (OVERDUE, SETTLED, *BEGUN)})
            if late or willing > 1 + member.tolerated:  # then it is late for an honest one
                member.state = OVERDUE
            ready = member.state != "gathering" and all(s.get("state") != "gathering" for s in said.values())
            together = ready and agreeing >= max(life.enough, here - member.tolerated)
            if held and (together or (member.state == OVERDUE and willing >= life.enough)):
                life.settle(member.identity, member.config.run_id)
                member.state = SETTLED
        if late and not life.begins:
            _check_time(member, said, running, time.monotonic() - deadline)
        time.sleep(POLL)
    joined = member.peer.id >= member.config.peers  # at the start it was not there
    if life.begin not in member.points or (joined and not begin):
        return come_back(member, f"there is no checkpoint of step {member.first + begin} here, where the others go on")
    member.begin_life()
    member.state = "running"


def _check_time(member: Member, said: Mapping[int, dict[str, Any]], running: int, late: float) -> None:
    """Raise NoFounders if too few are here, or have agreed on a life, `late` seconds after deadlines.gather.

    `running`: peers that say that they are in the middle of the run.
    """
    life, gather, here = member.life, member.config.deadlines.gather, 1 + len(said)
    step, all_here = member.first + life.begin[0], life.voters
    if here < life.enough:
        raise NoFounders(
            f"only {here} of {all_here} peers are here after deadlines.gather = {gather:g} s, and {life.enough} are "
            "needed; start the others"
        )
    if late <= gather + GRACE:
        return
    after = gather + GRACE
    if running > member.tolerated and not life.settled:
        raise NoFounders(
            f"{running} of {all_here} peers are in the middle of the run, and no majority, {after:g} s after "
            "deadlines.gather: start this one again"
        )
    if not life.holding > all_here / 2:
        raise NoFounders(
            f"only {life.holding} of {all_here} peers say that they have the checkpoint of step {step}, {after:g} s "
            "after deadlines.gather; more than half are needed: start all again that have it"
        )
    count, what = (len(life.signatures), "have signed") if life.settled else (life.agreeing(said), "agree on")
    if life.certified:
        count, what = life.present, "have not been started again since they signed"
    raise NoFounders(
        f"only {count} of {here} peers {what} one list of who is here, to begin at step {step}, {after:g} s after "
        f"deadlines.gather, and {life.enough} are needed; start this one again"
    )


def ask_all(member: Member) -> dict[int, dict[str, Any]]:
    """The other members' statuses. Errors: Fallen if more of them than can lie have banned this peer."""
    doors, keys = member.driver.doors, member.members
    others = [number for number, key in keys.items() if key != member.identity.public_key]
    banned: list[str] = []

    async def ask(number: int) -> dict[str, Any] | None:
        try:
            return await ask_status(doors, keys[number])
        except Refused as refused:
            if str(refused).startswith("banned"):
                banned.append(str(refused))
            else:
                member.say_once(f"peer {number} refuses this one: {refused}")
        except Exception:
            pass  # not there yet
        return None

    async def ask_everybody() -> list[dict[str, Any] | None]:
        return await asyncio.gather(*(ask(number) for number in others))

    answers = member.node.run(ask_everybody())
    if len(banned) > member.tolerated:
        raise Fallen(f"{len(banned)} members refuse this peer: {banned[0]}")
    found = {
        number: said for number, said in zip(others, answers, strict=True) if said is not None and _is_status(said)
    }
    _compare_platforms(member, found)
    return found


def _compare_platforms(member: Member, said: Mapping[int, Mapping[str, Any]]) -> None:
    """Warn of peers that may compute other bits: in exact validation the others would remove them, or this one."""
    for number, theirs in ((number, status.get("platform")) for number, status in said.items()):
        if member.protocol.validation == "exact" and isinstance(theirs, str) and theirs != member.platform:
            member.say_once(
                f"warning: peer {number} computes with {shown(theirs)}; this one with {member.platform}. Unless both "
                "come to the same bits, one will be removed: take equal machines and threads, or protocol.validation "
                "tolerant for all"
            )


def _join(member: Member) -> None:
    """Ask the members to be admitted, and take part from the step after that on."""
    member.state = "joining"
    member.say("this peer is no member yet: it asks to join")
    if member.protocol.probation is None:
        raise ConfigError("protocol.probation is null: nobody can join this run after its start")
    ask_all(member)
    _ask_to_join(member)
    come_back(member, "waiting to be admitted")


def _ask_to_join(member: Member) -> None:
    """Ask all members. Those that know of the request already keep the first one."""
    request = JoinRequest.create(member.identity, member.config.run_id)

    async def ask_everybody() -> None:
        keys = [member.peer.roster.keys[number] for number in member.driver.others]
        await asyncio.gather(*(ask_to_join(member.driver.doors, key, request) for key in keys), return_exceptions=True)

    member.node.run(ask_everybody())


def come_back(member: Member, why: str) -> None:
    """Continue with the state that most members vouch for, at the beginning of their next step.

    Errors: Fallen if it says that this peer is out; NoFounders if there is none in time.
    """
    member.state = "returning"
    member.say(f"{why}: asking for their state")
    deadline = time.monotonic() + member.config.deadlines.gather
    template = member.optimizer.state() | {PREVIOUS: member.optimizer.params}
    template = {name: tensor.cpu() for name, tensor in template.items()}
    while True:
        # This peer counts among them, as a member that says nothing.
        members = member.members
        try:
            found = member.node.run(
                fetch_state(
                    member.driver.doors,
                    member.identity.public_key,
                    members,
                    template,
                    member.config.deadlines,
                    member.patience,
                    tolerated=member.tolerated,
                )
            )
        except WrongState as error:
            ask_all(member)  # Fallen, if that is why
            if time.monotonic() > deadline:
                raise NoFounders(
                    f"no state came within deadlines.gather: {error}; nobody has removed this peer: start it again "
                    "when the others are there, or all of them if all have stopped"
                ) from None
            time.sleep(POLL)
            continue
        step, download = found.step, found.download
        fresh, _ = member.make_peer(member.peer.id, member.peer.roster)
        load_public(fresh, download.state)
        number = fresh.roster.keys.index(member.identity.public_key) if _is_in(member, fresh) else None
        if number is None and member.identity.public_key in fresh.roster.keys:
            raise Fallen(f"step {fresh.t}: the members' state says that this peer is out")
        if number is None:  # not admitted yet: some may not have been there, or have had too many requests
            _ask_to_join(member)
            time.sleep(POLL)
            continue
        if number != fresh.id:
            fresh, _ = member.make_peer(number, fresh.roster)
            load_public(fresh, download.state)
        member.optimizer.load({name: tensor.to(member.device) for name, tensor in download.tensors.items()})
        recent = {f"history/{step - 1}": download.tensors[PREVIOUS].to(member.device)}
        member.driver.past.history.restore(recent, workers_of(fresh.last))
        member.driver.restart(fresh, behind=True)
        member.note_life()
        member.recorder = None  # it has not seen the steps between
        member.state = "running"
        member.say(f"back at step {member.first + step}, with the state of the majority")
        return


def _is_status(said: dict[str, Any]) -> bool:
    """Whether the status can be compared with others: its sender may lie, but must not break anything."""
    stored = said.get("stored", [])
    return type(said.get("step", 0)) is int and isinstance(stored, list) and isinstance(said.get("state", ""), str)


def _is_in(member: Member, peer: Peer) -> bool:
    """Whether `member` is in the run in the view of `peer`."""
    keys = peer.roster.keys
    return any(keys[i] == member.identity.public_key for i in (*peer.active, *peer.probation))
