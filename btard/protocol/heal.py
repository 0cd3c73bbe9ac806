"""Healing: after a removal all peers check whether an earlier state was clearly better, and if so go back to it.

Clipping bounds what a step of an attack does, bans bound the number of its steps, and this undoes them. What is decided
follows from broadcasts. The batch is drawn with the coin of the step after the removal, which nobody knew when claims
were raised. More than half of the members of the step must find a state clearly better, so one of them is honest.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Effect, Idle, Losses, Measure
from btard.protocol.hashing import digest
from btard.protocol.law import survival_law
from btard.protocol.ledger import GRADUATED, Entry
from btard.protocol.messages import NOBODY, Measured
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat

HEALED = "heal"
"""The kind of ledger entries that say which state a step ended with; they remove nobody."""
STATES = 8
"""Number of earlier states in a window."""
CERTAIN = 3.0
"""Standard errors of the paired difference by which an earlier state must be better."""
QUANTILE = 0.9
"""auto: the share of attackers that are caught within the window."""
CEILING = 1e6
"""A loss above this value, or one that is not a number, counts as this value."""


@lru_cache
def window(config: ProtocolConfig) -> int:
    """W: how many steps back a state may lie; 0 if nothing is healed, or nobody is ever caught."""
    if config.heal == "off" or not config.validators:
        return 0
    if config.heal != "auto":
        return int(config.heal)
    steps = 16
    while True:
        caught = survival_law(config.peers, 1, config.validators, steps, start=1)[:, 0]
        if caught[-1] >= QUANTILE:
            return int(np.argmax(caught >= QUANTILE))
        steps *= 2


def spacing(config: ProtocolConfig) -> int:
    """Steps between two kept states."""
    return max(1, math.ceil(window(config) / STATES))


def is_kept(config: ProtocolConfig, entries: Iterable[Entry], step: int) -> bool:
    """Whether the run could go back to the state at the beginning of `step`. `entries`: the ledger, up to there."""
    if not window(config):
        return False
    return step % spacing(config) == 0 or step in [entry.step + 1 for entry in _returns(entries)[-1:]]


def oldest(config: ProtocolConfig, entries: Iterable[Entry], step: int) -> int:
    """The first step whose state may still be needed in `step` or later.

    No state is needed from before a healing that could go back as far as the window: it has undone what there was to
    undo. One for newcomers, who were members for a shorter time, could not, and counts for nothing here: else a Sybil
    that goes on purpose would have the harm of its fellows kept for ever.
    """
    entries, limit = list(entries), 0
    for entry in _returns(entries):
        first = _membership(config, entries, entry.step)
        if first is None or first <= max(entry.step - window(config), limit):
            limit = entry.step + 1
    return max(step - window(config), limit)


def candidates(config: ProtocolConfig, entries: Sequence[Entry], step: int) -> tuple[int, ...]:
    """The steps to whose beginnings `step` may go back, ascending; none unless the step before removed a member.

    Where too few had the states to choose among them, the next step chooses for those removed then, too.
    None is older than `oldest` says, or than the time since when those removed were members. `entries`: the ledger, at
    least up to `step`.
    """
    entries = [entry for entry in entries if entry.step < step]
    since = _membership(config, entries, step)
    if since is None or not window(config):
        return ()
    gap, first = spacing(config), max(oldest(config, entries, step), since)
    kept = {*range(-(-first // gap) * gap, step, gap), *(entry.step + 1 for entry in _returns(entries)[-1:])}
    return tuple(s for s in sorted(kept) if first <= s < step)


def _membership(config: ProtocolConfig, entries: Iterable[Entry], step: int) -> int | None:
    """The earliest step since which a peer whose removal led to the choice in `step` was a member; None if none was."""
    before = [entry for entry in entries if entry.step < step]
    open_at = {entry.step for entry in before if entry.kind == HEALED and not entry.losses}
    first = step - 1
    while first in open_at:
        first -= 1
    since = dict.fromkeys(range(config.peers), 0)
    since |= {entry.accused: entry.step + 1 for entry in before if entry.kind == GRADUATED}
    removed = {peer for entry in before if entry.step >= first for peer in entry.peers}
    return min((since[peer] for peer in removed & since.keys()), default=None)


def _returns(entries: Iterable[Entry]) -> list[Entry]:
    """The healings that went back, in order."""
    return [entry for entry in entries if entry.kind == HEALED and entry.about_step < entry.step]


def batch_seed(run_id: str, step: int, coin: bytes) -> bytes:
    """The seed, 32 bytes, of the batch on which states are compared at the end of `step`; `coin`: that of the step."""
    return digest("heal", run_id, step, coin)


def state_digest(tensors: Mapping[str, bytes]) -> bytes:
    """The digest of a state, 32 bytes; `tensors`: name -> `tensor_digest`."""
    return digest("trail", *(field for name in sorted(tensors) for field in (name, tensors[name])))


def measured(losses: Losses) -> Measured:
    """What an honest peer says about the states with these losses."""
    values = np.nan_to_num(losses.values.cpu().numpy(), nan=CEILING, posinf=CEILING, neginf=-CEILING)
    values = values.clip(-CEILING, CEILING)
    gaps = values[:-1] - values[-1]
    examples = gaps.shape[1]
    # One example says nothing of the error; a bound that is no number would look hostile.
    errors = gaps.std(axis=1, ddof=1) / math.sqrt(examples) if examples > 1 else CEILING
    bounds = gaps.mean(axis=1) + CERTAIN * errors
    return Measured(losses.digests, tuple(values.mean(axis=1).tolist()), tuple(bounds.tolist()))


class Choice(NamedTuple):
    """The outcome of what was said about some states."""

    step: int
    """The step to whose beginning the run goes."""
    losses: dict[int, float]
    """Step -> loss, for all states."""
    digests: tuple[bytes, ...]
    """Digests of all states, as most peers have them; none if there is no such majority."""


def choose(members: Sequence[int], steps: Sequence[int], said: Mapping[int, Measured]) -> Choice:
    """The state to continue from, by what `members` have said: the peers that are in the step to its end.

    `steps`: the candidates and, last, the step at hand, which is chosen unless more than half of `members` find an
    earlier state clearly better. Among several the one with the lowest loss is chosen, and the later one of equals.
    Losses are lower medians of what was said about the states that most peers have. There are none where nothing was
    decided: no earlier state has more than half of `members` for it, and some do not have them against it either.
    """
    present = steps[-1]
    views = [message.digests for message in said.values()]
    common = max(sorted(set(views)), key=views.count, default=())
    agreeing = [message for message in said.values() if message.digests == common]
    if 2 * len(agreeing) <= len(members):
        return Choice(present, {}, ())
    middle = (len(agreeing) - 1) // 2
    medians = {step: sorted(message.losses[i] for message in agreeing)[middle] for i, step in enumerate(steps)}
    votes = {step: sum(message.bounds[i] < 0 for message in agreeing) for i, step in enumerate(steps[:-1])}
    better = [step for step, found in votes.items() if 2 * found > len(members)]
    if not better and any(2 * (len(agreeing) - found) <= len(members) for found in votes.values()):
        return Choice(present, {}, ())  # nor is the present by the word of more than half as good
    chosen = min(better, key=lambda step: (medians[step], -step), default=present)
    return Choice(chosen, medians, common)


def heal(seat: Seat, record: StepRecord) -> Generator[Effect, Losses | None, None]:
    """After a step that removed a member: decide, in public, which state the next step begins with."""
    earlier = candidates(seat.config, seat.ledger.entries, record.step)
    if not earlier:
        return
    steps = (*earlier, record.step)
    losses: Losses | None = None
    if seat.id in record.members:
        losses = yield Measure(steps, batch_seed(seat.config.run_id, record.step, record.coin))
    else:
        yield Idle(Measure.phase, len(steps))
    mine = None if losses is None else measured(losses)
    messages = yield from seat.broadcast(record, HEALED, Measured, mine, expected=())
    said: dict[int, Measured] = {}
    for sender, message in messages.items():
        if message.fits(len(steps)):
            said[sender] = message
        else:
            seat.expel(record, sender, "malformed_heal")
    choice = choose(record.members, steps, said)
    hashed = choice.digests[steps.index(choice.step)].hex() if choice.digests else ""
    losses_of = {str(step): loss for step, loss in choice.losses.items()}
    entry = Entry(
        record.step, HEALED, "public", NOBODY, (), (), about_step=choice.step, evidence=hashed, losses=losses_of
    )
    seat.enter(record, entry)


def described(entry: Entry, first: int = 0) -> str:
    """A line for people about an entry of this kind. `first`: the step of the run at which the protocol began."""
    step = f"step {first + entry.step}"
    if not entry.losses:
        return f"{step}: too few peers have the same earlier states to compare them"
    if entry.about_step == entry.step:
        return f"{step}: no earlier state is clearly better"
    before, after = (entry.losses.get(str(at), math.nan) for at in (entry.step, entry.about_step))
    return f"{step}: back to step {first + entry.about_step}, loss {before:.3g} to {after:.3g}"


def went_back(entries: Sequence[Entry], step: int) -> int | None:
    """The step to whose beginning the finished `step` went back; None if it did not."""
    for entry in reversed(entries):
        if entry.step < step:
            break
        if entry.kind == HEALED and entry.step == step and entry.about_step < step:
            return entry.about_step
    return None
