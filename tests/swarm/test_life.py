"""Which life begins when peers gather: whatever single ones of them say, and however often they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import pytest
import torch

from btard.protocol.identity import Identity
from btard.swarm.life import MAX_LEFT, SETTLED, START, Life, after, checkpoint_digest, said_of
from tests.swarm.points import at
from tests.swarm.points import life as named
from tests.swarm.points import told as told_of

Statuses = dict[int, dict[str, Any]]
Lie = Callable[[int, int, dict[str, Any]], dict[str, Any]]
"""What a peer says to another one, in place of its status."""


def honestly(sender: int, to: int, status: dict[str, Any]) -> dict[str, Any]:
    return status


def gather(lives: Sequence[Life], rounds: int = 4, lie: Lie = honestly, state: str = "ready") -> list[Statuses]:
    """Let them ask each other again and again; returns what each has heard last."""
    last: list[Statuses] = []
    for _ in range(rounds):
        told = [{"state": state, **life.told()} for life in lives]
        last = [
            {other.me: lie(other.me, life.me, told[i]) for i, other in enumerate(lives) if other is not life}
            for life in lives
        ]
        for life, said in zip(lives, last, strict=True):
            life.hear(said)
    return last


def peers(count: int, of: int = 5) -> list[Life]:
    return [Life(number, of, 1) for number in range(count)]


def test_all_begin_the_same_life_and_no_life_begins_twice() -> None:
    names = set()
    for _ in range(3):
        lives = peers(5)
        heard = gather(lives)
        assert [life.agreeing(said) for life, said in zip(lives, heard, strict=True)] == [5] * 5
        names |= {life.epoch("run", bytes(32)) for life in lives}
    assert len(names) == 3
    assert lives[0].epoch("run", bytes(32)) not in {
        lives[0].epoch("other", bytes(32)),
        lives[0].epoch("run", b"x" * 32),
    }


def test_who_is_there_agrees_and_begins_if_enough_do() -> None:
    for count, begins in ((4, True), (3, False), (2, False)):
        lives = peers(count)
        heard = gather(lives)
        assert [life.agreeing(said) for life, said in zip(lives, heard, strict=True)] == [count] * count
        assert {count >= life.enough for life in lives} == {begins}


def test_liars_keep_no_honest_peer_out() -> None:
    """With one of 16 away, 8 honest peers are no majority; 7 liars say that they hear none of three of these."""
    lives = [Life(number, 16, 7) for number in range(15)]

    def deny(sender: int, to: int, status: dict[str, Any]) -> dict[str, Any]:
        heard = {peer: nonce for peer, nonce in status["heard"].items() if peer not in ("0", "1", "2")}
        return {**status, "heard": heard} if sender > 7 else status

    gather(lives, lie=deny)
    assert all({*life.gathered} == {*range(15)} for life in lives[:8])


def test_the_removed_are_not_waited_for() -> None:
    lives = peers(2)
    for life in lives:
        life.voters = 3  # of five, two have been removed
    heard = gather(lives)
    assert [life.agreeing(said) for life, said in zip(lives, heard, strict=True)] == [2, 2]


def test_statuses_of_an_earlier_life_do_not_bring_it_back() -> None:
    before = peers(5)
    gather(before)
    old = {life.me: {"state": SETTLED, **life.told()} for life in before}
    lives = [Life(0, 5, 1), *before[1:]]  # peer 0 was started anew, and is told what was said before
    lives[0].hear({number: said for number, said in old.items() if number})
    assert lives[0].agreeing(old) == 0


def test_two_faces_begin_no_two_lives_and_none_for_long() -> None:
    def two_faced(sender: int, to: int, status: dict[str, Any]) -> dict[str, Any]:
        return {**status, "nonce": f"{to % 2:032x}", "heard": {"4": f"{to % 2:032x}"}} if sender == 4 else status

    lives = peers(5)
    split = gather(lives, lie=two_faced)
    assert not any(life.agreeing(said) >= life.enough for life, said in zip(lives[:4], split, strict=False))
    heard = gather(lives)  # it has said enough
    begun = {
        life.epoch("run", b"")
        for life, said in zip(lives[:4], heard, strict=False)
        if life.agreeing(said) >= life.enough
    }
    assert len(begun) == 1


IDENTITIES = [Identity.from_seed("lives", peer) for peer in range(5)]
KEYS = {peer: identity.public_key for peer, identity in enumerate(IDENTITIES)}


def statuses_of(lives: Sequence[Life]) -> Statuses:
    return {life.me: {"state": SETTLED, **life.told()} for life in lives}


def test_a_certificate_takes_whoever_is_in_its_life_along() -> None:
    """Also one that had settled on another life. Nobody believes signatures that are not the members'."""
    lives = peers(5)
    gather(lives)
    for life in lives[:4]:
        life.settle(IDENTITIES[life.me], "run")
    slow, other = lives[4], lives[3]
    other.gathered = {**other.gathered, 4: bytes(16)}
    for life in lives[:3]:
        life.collect({i: said for i, said in statuses_of(lives).items() if i != life.me}, KEYS, "run")
    assert [life.certified for life in lives] == [False] * 5 and len(lives[0].signatures) == 3
    forged = {**statuses_of(lives[:1])[0], "settled": {str(peer): "00" * 64 for peer in range(5)}}
    slow.collect({0: forged}, KEYS, "run")
    assert not slow.settled
    slow.settle(IDENTITIES[4], "run")
    for life in lives:
        life.collect({i: said for i, said in statuses_of(lives).items() if i != life.me}, KEYS, "other run")
    assert not lives[0].certified
    for _ in range(2):
        for life in lives:
            life.collect({i: said for i, said in statuses_of(lives).items() if i != life.me}, KEYS, "run")
    assert [life.certified for life in lives] == [True] * 5
    assert len({life.epoch("run", b"") for life in lives}) == 1


def test_a_certificate_brings_back_nobody_that_was_started_anew() -> None:
    lives = peers(5)
    gather(lives)
    for life in lives:
        life.settle(IDENTITIES[life.me], "run")
    for life in lives:
        life.collect({i: said for i, said in statuses_of(lives).items() if i != life.me}, KEYS, "run")
    anew = Life(0, 5, 1)
    anew.collect({i: said for i, said in statuses_of(lives).items() if i}, KEYS, "run")
    assert lives[0].certified and not anew.settled


# Peers that have these checkpoints; peer 3 lies about its own.
DISKS = {0: [0, 80, 100], 1: [0, 80, 100], 2: [0, 60, 80], 3: [0, 80, 100]}


def restart(told: dict[int, list[int]], disks: Mapping[int, list[int]] = DISKS, rounds: int = 6) -> dict[int, int]:
    """Peer -> the step at which it begins, of those that do. `told`: whom the liar tells what of its disk."""
    lives = [Life(number, 4, 1) for number in range(4)]
    begun = dict[int, int]()
    for _ in range(rounds):
        statuses = [
            {"state": SETTLED if life.settled else "ready", "stored": told_of(*disks[life.me]), **life.told()}
            for life in lives
        ]
        for life in lives:
            heard = {other: status for other, status in enumerate(statuses) if other != life.me}
            if 3 in heard:
                heard[3] = {**heard[3], "stored": told_of(*told[life.me]), "begin": told_of(max(told[life.me]))[0]}
            life.hear(heard, at(*disks[life.me]), at(*sorted(disks[life.me])[-2:-1]))
            life.collect(heard, KEYS, "run")
            if not life.settled and life.agreeing(heard) >= 3:
                life.settle(IDENTITIES[life.me], "run")
            if life.certified:
                begun[life.me] = life.begin[0]
    return {peer: step for peer, step in begun.items() if peer != 3}


def test_all_begin_at_the_newest_step_that_most_have() -> None:
    assert restart(dict.fromkeys(range(3), DISKS[3])) == dict.fromkeys(range(3), 100), "peer 2 does not have it"


def test_who_tells_two_stories_of_its_disk_splits_nobody() -> None:
    assert restart({0: [0, 80, 100], 1: [0, 80], 2: [0, 80]}) == dict.fromkeys(range(3), 80)
    split = restart({0: [0, 80, 100], 1: [0, 80, 100], 2: [0, 80]})
    assert len(set(split.values())) <= 1


def test_nobody_goes_back_to_the_start_because_liars_do() -> None:
    disks = {peer: [0, 80, 100] for peer in range(4)}
    assert restart({peer: [0] for peer in range(3)}, disks) == dict.fromkeys(range(3), 100)


# 16 peers, 7 of which lie. What the 9 honest ones have, by number; which of these they have passed; what the liars say.
WHOLE = {i: [0, 950, 1000] for i in range(9)}
HALF_SAVED = {i: [0, 950, 1000] if i < 2 else [0, 900, 950] for i in range(9)}
NEW_DISK, AWAY = WHOLE | {8: [0]}, {i: [0, 950, 1000] for i in range(8)}


@pytest.mark.parametrize(
    ("disks", "passed", "lie", "begin", "begins"),
    [
        (WHOLE, 1000, [0], 1000, True),
        (WHOLE, 950, [0], 950, True),
        (WHOLE, 950, [0, 950, 1000], 1000, True),
        (NEW_DISK, 1000, [0], 1000, False),
        (NEW_DISK, 1000, [0, 950, 1000], 1000, True),
        (NEW_DISK, 950, [0], 950, False),
        (AWAY, 1000, [0], 1000, False),
        (AWAY, 1000, [0, 950, 1000], 1000, True),
        (HALF_SAVED, 950, [0], 950, True),
        (HALF_SAVED, 950, [0, 950, 1000], 950, True),
        (HALF_SAVED, 950, [0, 2000], 950, True),
        ({i: [0] for i in range(9)}, 0, [0, 950, 1000], 0, True),
        ({i: [0, 50] if i < 2 else [0] for i in range(9)}, 0, [0, 50], 0, True),
    ],
)
def test_liars_choose_no_checkpoint(
    disks: Mapping[int, list[int]], passed: int, lie: list[int], begin: int, begins: bool
) -> None:
    """Begin where the honest peers that have the checkpoint outnumber all liars; where too few have it, not at all."""
    lives = [Life(number, 16, 7) for number in (*disks, *range(9, 16))]
    heard: list[Statuses] = []

    def done(peer: int) -> list[int]:
        return [step for step in disks.get(peer, lie) if peer > 8 or step <= passed]

    for _ in range(6):
        told = {
            life.me: {
                "state": "ready",
                "stored": told_of(*disks.get(life.me, lie)),
                "passed": told_of(*done(life.me)),
                **life.told(),
                **({"begin": told_of(max(lie))[0]} if life.me > 8 else {}),
            }
            for life in lives
        }
        heard = [{i: status for i, status in told.items() if i != life.me} for life in lives]
        for life, statuses in zip(lives, heard, strict=True):
            life.hear(statuses, at(*disks.get(life.me, lie)), at(*done(life.me)))
    honest = lives[: len(disks)]
    assert {life.begin for life in honest} == {*at(begin)} and {life.holding > 8 for life in honest} == {begins}
    assert not begins or sum(begin in disk for disk in disks.values()) > 7


@pytest.mark.parametrize("seed", range(60))
def test_whatever_liars_tell_whom_each_sees_a_step_that_enough_honest_peers_have(seed: int) -> None:
    """And no more than one checkpoint is lost. Peers stop as the checkpoint of step 100 is written, or soon after."""
    draw = Random(seed)
    lying = draw.randrange(4)
    count = 2 * lying + 1 + draw.randrange(4)
    honest = range(count - lying)
    written = {i for i in honest if seed % 2 or draw.random() < 0.5}
    disks = {i: [0, 80, 100] if i in written else [0, 60, 80] for i in honest}
    passed = {i: [60, 80, 100] if len(written) == len(honest) and draw.random() < 0.5 else [60, 80] for i in honest}
    lives = [Life(i, count, lying) for i in range(count)]

    def lie() -> dict[str, Any]:
        steps = [step for step in (0, 60, 80, 100, 120) if draw.random() < 0.5]
        return {
            "stored": told_of(*steps),
            "passed": told_of(*steps),
            "begin": told_of(draw.choice([0, 60, 80, 100, 120]))[0],
        }

    for _ in range(5):
        told = {
            i: {"state": "ready", "stored": told_of(*disks[i]), "passed": told_of(*passed[i]), **lives[i].told()}
            for i in honest
        }
        for i in honest:
            lies = {j: {"state": "ready", **lives[j].told(), **lie()} for j in range(len(honest), count)}
            statuses = {j: status for j, status in (told | lies).items() if j != i}
            lives[i].hear(statuses, at(*disks[i]), at(*passed[i]))
            begin = lives[i].begin[0]
            assert begin >= 80 and sum(begin in disk for disk in disks.values()) > lying


def test_a_peer_names_no_step_before_one_that_it_has_passed() -> None:
    life = Life(0, 16, 7)
    life.hear({peer: {"state": "ready", "stored": told_of(0)} for peer in range(1, 16)}, at(950, 1000), at(950))
    assert (life.begin, life.holding) == (at(950)[0], 1)


@pytest.mark.parametrize("liars", [0, 3])
def test_another_checkpoint_of_the_same_step_is_another_one(liars: int) -> None:
    """Four were off when the others began again before it: they hold that of the life before."""
    lives = [Life(number, 13, 3) for number in range(10 + liars)]
    old, new = [*at(950), *at(1000)], [*at(950), *at(1000, of=1)]
    disks = [old if life.me < 4 or life.me > 9 else new for life in lives]
    for _ in range(4):
        told = {life.me: {"stored": said_of(disks[life.me]), "passed": [], **life.told()} for life in lives}
        for life in lives:
            life.hear({i: status for i, status in told.items() if i != life.me}, disks[life.me])
    assert {life.begin for life in lives} == {*at(1000 if liars else 950)}
    assert {life.holding for life in lives} == {7 if liars else 10}


@pytest.mark.parametrize(("count", "liars"), [(3, 0), (5, 0), (5, 2), (7, 2), (7, 3), (16, 2)])
@pytest.mark.parametrize("knowing", [True, False])
def test_a_checkpoint_of_a_life_that_was_left_is_no_beginning(count: int, liars: int, knowing: bool) -> None:
    """A peer has passed that of step 100. The others have begun another life at 80 since, without it, and stopped.

    The liars say that they have that of 100. In the other case all have it, and too few know that it was left.
    """
    lives = [Life(number, count, liars) for number in range(count)]
    honest = range(count - liars)
    knows = honest[1 : None if knowing else 1 + liars // 2]
    for i in knows:
        lives[i].left = {named(0): 80}
    disks = [at(80, 100) if i == 0 or i not in honest or not knowing else at(60, 80) for i in range(count)]
    passed = [at(80, 100) if i == 0 or i not in honest else at(60, 80) for i in range(count)]
    for _ in range(5):
        told = {
            i: {"state": "ready", "stored": said_of(disks[i]), "passed": said_of(passed[i]), **lives[i].told()}
            for i in range(count)
        }
        for i in honest:
            lives[i].hear({j: said for j, said in told.items() if j != i}, disks[i], passed[i])
    believed = len(knows) > liars
    assert [lives[i].begin[0] for i in honest] == [80 if i in knows or believed else 100 for i in honest]


def test_the_lives_that_a_peer_has_left_are_the_newest_ones() -> None:
    left: dict[bytes, int] = {}
    for number in range(30):
        left = after(after(left, named(number), 50), named(number), number)
    assert left == {named(number): number for number in range(30 - MAX_LEFT, 30)}


def test_a_step_that_more_than_can_lie_name_is_one() -> None:
    life = Life(0, 4, 1)
    status = {"state": "gathering", "stored": told_of(0, 80, 100), "begin": told_of(80)[0]}
    other = {**status, "begin": told_of(100)[0]}
    life.hear({1: {**other, "stored": told_of(0)}, 2: status}, at(80, 100), at(80))
    assert life.begin == at(80)[0]
    life.hear({1: {**other, "stored": told_of(0)}, 2: other}, at(80, 100), at(80))
    assert life.begin == at(100)[0]


def test_a_peer_that_knows_fewer_members_sees_the_life_of_all() -> None:
    """Its checkpoint is older than those by which others have joined. It asks those that it knows."""
    lives = [Life(0, 3, 0), *(Life(number, 6, 0) for number in range(1, 6))]
    heard: list[Statuses] = []
    for _ in range(4):
        told = {life.me: {"state": "ready", "stored": told_of(0, 80, 100), **life.told()} for life in lives}
        heard = [{n: told[n] for n in range(life.voters) if n != life.me} for life in lives]
        for life, statuses in zip(lives, heard, strict=True):
            life.hear(statuses, at(80) if life.me == 0 else at(80, 100))
    assert [life.agreeing(statuses) for life, statuses in zip(lives, heard, strict=True)] == [3, 6, 6, 6, 6, 6]
    assert len({life.epoch("run", b"") for life in lives}) == 1 and {life.begin for life in lives} == {*at(100)}


def test_nonsense_in_a_status_is_no_nonce() -> None:
    life = Life(0, 5, 2)
    nonsense: list[Any] = [None, 7, "zz" * 16, "00", {"x": 1}, ["00" * 16], {"1": 5, "2": "00", "99": "00" * 16}]
    nonsense += [[5, "00", "00"], [5, "00" * 32, ""], [-1, "00" * 32, "00" * 32], [["00" * 32, -1]], [[5, "00" * 32]]]
    nonsense += [[5, "00"], [-1, "00" * 32], [2**40, "00" * 32], ["5", "00" * 32], [True, ""], [[5, "00" * 32]] * 2]
    for value in nonsense:
        told = dict.fromkeys(("nonce", "heard", "gathered", "begin", "stored", "left", "settled"), value) | {
            "state": "running"
        }
        statuses = {1: told, 2: {**told, "stored": [value]}}
        life.hear(statuses)
        life.collect(statuses, {}, "run")
        assert life.heard == {0: life.nonce} and life.gathered == {} and life.begin == START and not life.settled


def test_the_digest_of_a_checkpoint_is_that_of_what_all_hold() -> None:
    params = torch.arange(4.0)
    mine = checkpoint_digest({"coins": ["ab"], "requests": [["cd", "ef"]]}, params)
    assert mine == checkpoint_digest({"coins": ["ab"], "requests": []}, params)
    assert mine != checkpoint_digest({"coins": ["ac"], "requests": []}, params)
    assert mine != checkpoint_digest({"coins": ["ab"], "requests": []}, params + 1)


def test_secrets_do_not_repeat_but_in_simulations() -> None:
    real, simulated = Identity.generate(), Identity.from_seed("peer")
    lives = [life.to_bytes(32, "little") for life in range(2)]
    for identity, count in ((real, 2), (simulated, 1)):
        assert len({identity.secret("coin", "run", 5, epoch=epoch) for epoch in lives}) == count
