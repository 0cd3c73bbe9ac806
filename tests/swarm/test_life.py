"""Which life begins when peers gather: whatever single ones of them say, and however often they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from btard.protocol.identity import Identity
from btard.swarm.life import Life, checkpoint_digest

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


def test_a_majority_begins_without_the_others_and_a_minority_does_not() -> None:
    for count, expected in ((3, 3), (2, 0)):
        lives = peers(count)
        heard = gather(lives)
        assert [life.agreeing(said) for life, said in zip(lives, heard, strict=True)] == [expected] * count


def test_the_removed_are_not_waited_for() -> None:
    lives = peers(2)
    for life in lives:
        life.voters = 3  # of five, two have been removed
    heard = gather(lives)
    assert [life.agreeing(said) for life, said in zip(lives, heard, strict=True)] == [2, 2]


def test_statuses_of_an_earlier_life_do_not_bring_it_back() -> None:
    before = peers(5)
    gather(before)
    old = {life.me: {"state": "running", **life.told()} for life in before}
    lives = [Life(0, 5, 1), *before[1:]]  # peer 0 was started anew, and is told what was said before
    lives[0].hear({number: said for number, said in old.items() if number})
    assert lives[0].agreeing(old) == 0


def test_two_faces_begin_no_two_lives_and_none_for_long() -> None:
    def two_faced(sender: int, to: int, status: dict[str, Any]) -> dict[str, Any]:
        return {**status, "nonce": f"{to % 2:032x}", "heard": {"4": f"{to % 2:032x}"}} if sender == 4 else status

    lives = peers(5)
    split = gather(lives, lie=two_faced)
    assert not any(2 * life.agreeing(said) > 5 for life, said in zip(lives[:4], split, strict=False))
    heard = gather(lives)  # it has said enough
    begun = {
        life.epoch("run", b"") for life, said in zip(lives[:4], heard, strict=False) if 2 * life.agreeing(said) > 5
    }
    assert len(begun) == 1


def test_whoever_is_slower_begins_what_the_others_have_begun() -> None:
    lives = peers(4)
    gather(lives)
    running: Mapping[int, dict[str, Any]] = {life.me: {"state": "running", **life.told()} for life in lives[:3]}
    late = {"state": "ready", **Life(4, 5, 1).told()}
    slow = lives[3]
    slow.hear({**running, 4: late})
    assert slow.gathered == lives[0].gathered and slow.agreeing({**running, 4: late}) == 4


# Peers that have these checkpoints; peer 3 lies about its own.
DISKS = {0: [0, 80, 100], 1: [0, 80, 100], 2: [0, 60, 80], 3: [0, 80, 100]}


def restart(told: dict[int, list[int]], disks: Mapping[int, list[int]] = DISKS, rounds: int = 6) -> dict[int, int]:
    """Peer -> the step at which it begins, of those that do. `told`: whom the liar tells what of its disk."""
    lives = [Life(number, 4, 1) for number in range(4)]
    begun = dict[int, int]()
    for _ in range(rounds):
        statuses = [
            {"state": "running" if life.me in begun else "ready", "stored": disks[life.me], **life.told()}
            for life in lives
        ]
        for life in lives:
            said = {other: status for other, status in enumerate(statuses) if other != life.me}
            if 3 in said:
                said[3] = {**said[3], "stored": told[life.me], "begin": max(told[life.me])}
            if life.me not in begun:
                life.hear(said, disks[life.me])
                if life.agreeing(said) >= 3:
                    begun[life.me] = life.begin
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


def test_an_older_step_is_named_by_mistake_before_all_are_there() -> None:
    life = Life(0, 4, 1)
    early = {peer: {"state": "gathering", "stored": [0, 80, 100], "begin": 80} for peer in (1, 2, 3)}
    life.hear(early, [80, 100])
    assert life.begin == 100
    life.hear({peer: {**said, "state": "ready"} for peer, said in early.items()}, [80, 100])
    assert life.begin == 80


def test_a_peer_that_knows_fewer_members_sees_the_life_of_all() -> None:
    """Its checkpoint is older than those by which others have joined. It asks those that it knows."""
    lives = [Life(0, 3, 0), *(Life(number, 6, 0) for number in range(1, 6))]
    heard: list[Statuses] = []
    for _ in range(4):
        told = {life.me: {"state": "ready", "stored": [0, 80, 100], **life.told()} for life in lives}
        heard = [{n: told[n] for n in range(life.voters) if n != life.me} for life in lives]
        for life, said in zip(lives, heard, strict=True):
            life.hear(said, [80] if life.me == 0 else [80, 100])
    assert [life.agreeing(said) for life, said in zip(lives, heard, strict=True)] == [3, 6, 6, 6, 6, 6]
    assert len({life.epoch("run", b"") for life in lives}) == 1 and {life.begin for life in lives} == {100}


def test_nonsense_in_a_status_is_no_nonce() -> None:
    life = Life(0, 5, 1)
    nonsense: list[Any] = [None, 7, "zz" * 16, "00", {"x": 1}, ["00" * 16], {"1": 5, "2": "00", "99": "00" * 16}]
    for value in nonsense:
        told = dict.fromkeys(("nonce", "heard", "gathered", "begin", "stored"), value) | {"state": "running"}
        life.hear({1: told, 2: {**told, "stored": [value]}})
        assert life.heard == {0: life.nonce} and life.gathered == {} and life.begin == 0


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
