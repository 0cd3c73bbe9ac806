"""Broadcasts cannot be split: whatever senders and relayers do, all honest peers hold the same messages afterwards."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.attacks.registry import make_attack
from btard.drivers.letters import Letters
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.drivers.loop import Heard
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.certificate import certify
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Broadcast, Compare, Relay
from btard.protocol.hearing import Hearing
from btard.protocol.identity import Identity, Roster
from btard.protocol.memory import NOTHING, Memory
from btard.protocol.messages import CoinReveal
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from btard.protocol.signed import Relayed, Signed, Vouch, relay_digest
from btard.task import QuadraticTask
from tests.protocol.agreed import advance, agreed
from tests.protocol.cohort import run_cohort

LIMIT = 10_000


class Net:
    """Peers in one broadcast phase; `adversary` says what Byzantine ones send, honest ones run the protocol."""

    def __init__(self, peers: int, byzantine: frozenset[int], rounds: int | None = None) -> None:
        self.n, self.byzantine = peers, byzantine
        self.identities = [Identity.from_seed("net", i) for i in range(peers)]
        roster = Roster(tuple(identity.public_key for identity in self.identities))
        config = ProtocolConfig(peers=peers, byzantine=len(byzantine), validators=0, relays=rounds)
        self.rounds = config.rounds
        self.peers = {i: Peer(i, self.identities[i], roster, config, 100) for i in range(peers) if i not in byzantine}
        self.records = {
            i: StepRecord(3, tuple(range(peers)), {}, b"coin", context=b"context", byzantine=len(byzantine))
            for i in self.peers
        }
        self.settled: dict[int, int] = {}
        """Honest peer -> the first round from which it needed nothing."""

    def sign(self, sender: int, value: int, phase: str = "phase", context: bytes = b"context") -> Signed:
        payload = CoinReveal(bytes([value]) * 32, bytes(32))
        return Signed.create(self.identities[sender], context, sender, 3, phase, payload)

    def relayed(self, message: Signed, *relayers: int) -> Relayed:
        signed = relay_digest(message.digest(b"context"))
        return Relayed(message, tuple((r, self.identities[r].sign(signed)) for r in relayers))

    def certificate(self, of: int, *hands: int) -> Relayed:
        """The certificate of what honest peer `of` heard, with the signatures of all, passed on by these `hands`."""
        record = self.records[of]
        on = record.vouches[of].statement
        record = replace(record, vouches={i: Vouch(on, self.identities[i].sign(on)) for i in range(self.n)})
        return self.relayed(certify(record, "phase", hands[0], self.identities[hands[0]], range(self.n)), *hands[1:])

    def run(
        self,
        direct: Mapping[int, Mapping[int, Signed]],
        relays: Mapping[int, Mapping[int, Sequence[Any]]] | None = None,
        signed: Mapping[int, Collection[int]] | None = None,
    ) -> dict[int, Hearing]:
        """`direct`: recipient -> Byzantine sender -> message; `relays`: round -> recipient -> items of peer b.

        `signed`: recipient -> Byzantine peers that sign what it heard. An item may be a function that makes it, from
        what is known after the comparison.
        """
        deliverer = min(self.byzantine, default=-1)
        running = {i: agreed(peer, self.records[i], "phase", self.sign(i, i), LIMIT) for i, peer in self.peers.items()}
        answers: dict[int, Any] = dict.fromkeys(running)
        heard: dict[int, Hearing] = {}
        while running:
            effects = advance(running, answers, heard)
            if not effects:
                break
            assert len({effect.phase for effect in effects.values()}) == 1 and len(effects) == len(self.peers)
            some = next(iter(effects.values()))
            if isinstance(some, Broadcast):
                said = {i: effect.message for i, effect in effects.items()}
                answers = {i: {**said, **direct.get(i, {})} for i in effects}
            elif isinstance(some, Compare):
                vouches = {i: effect.vouch for i, effect in effects.items()}
                for i in effects:
                    on = vouches[i].statement
                    answers[i] = {
                        **vouches,
                        **{b: Vouch(b"", self.identities[b].sign(on)) for b in (signed or {}).get(i, ())},
                    }
            elif not isinstance(some, Relay):  # the silent, who are Byzantine here, are told
                assert some.phase == "phase/tell"
                answers = {i: {} for i in effects}
            else:
                round = int(some.phase.rpartition("/")[2])
                answers = {i: {s: e.packets[i] for s, e in effects.items() if i in e.packets} for i in effects}
                for i, effect in effects.items():
                    if effect.settled:
                        self.settled.setdefault(i, round)
                    else:
                        answers[i] |= {s: (e.proof.look(),) for s, e in effects.items() if e.proof is not None}
                for i, items in (relays or {}).get(round, {}).items():
                    answers[i][deliverer] = [item() if callable(item) else item for item in items]
        return heard


def views(heard: dict[int, Hearing]) -> set[tuple[tuple[int, int], ...]]:
    """The distinct views: how many faces of which sender."""
    return {tuple((sender, len(said)) for sender, said in sorted(h.said.items())) for h in heard.values()}


def test_honest_peers_hear_everybody_and_relay_nothing() -> None:
    net = Net(5, frozenset(), rounds=2)
    assert views(net.run({})) == {tuple((i, 1) for i in range(5))}
    assert net.settled == dict.fromkeys(range(5), 1), "all have a certificate"


@pytest.mark.parametrize("without", [(), (0,), (0, 1), (0, 1, 2)])
def test_whoever_lacks_a_signature_is_shown_the_certificate(without: tuple[int, ...]) -> None:
    net = Net(5, frozenset({3, 4}))
    said = {i: {3: net.sign(3, 7), 4: net.sign(4, 7)} for i in range(3)}
    heard = net.run(said, signed={i: (3,) if i in without else (3, 4) for i in range(3)})
    assert views(heard) == {tuple((i, 1) for i in range(5))}
    if len(without) < 3:
        assert net.settled == {i: 2 if i in without else 1 for i in range(3)}
    else:
        assert not net.settled, "nobody has one"


@pytest.mark.parametrize("round", [1, 2, 3])
@pytest.mark.parametrize("hands", [1, 2, 3])
def test_a_certificate_that_fellows_show_to_one_peer_in_any_round_splits_nobody(round: int, hands: int) -> None:
    """The last round in which it counts takes one hand more than there are liars."""
    net = Net(5, frozenset({3, 4}))
    both = {i: {3: net.sign(3, 7), 4: net.sign(4, 7)} for i in range(3)}

    def shown() -> Relayed:
        if hands < 3:
            return net.certificate(0, *(3, 4)[:hands])
        return net.relayed(net.certificate(0, 3, 4).message, 4, 3)  # one of them twice

    face = net.relayed(net.sign(3, 8), 4)
    heard = net.run(both, {1: {1: [face]}, round: {0: [shown], **({1: [face]} if round == 1 else {})}})
    assert len(views(heard)) == 1
    counts = hands >= round and hands < 3
    assert len(heard[0].said[3]) == (1 if counts else 2), "with a certificate nobody listens to a second face"


@pytest.mark.parametrize("what", ["one signature too few", "another view", "forged", "of a stranger", "other phase"])
def test_no_other_certificate_counts(what: str) -> None:
    net = Net(5, frozenset({3, 4}))
    both = {i: {3: net.sign(3, 7), 4: net.sign(4, 7)} for i in range(3)}

    def shown() -> Relayed:
        record, on = net.records[0], net.records[0].vouches[0].statement
        vouches = {i: Vouch(on, net.identities[i].sign(b"another" if what == "another view" else on)) for i in range(5)}
        if what == "forged":
            vouches[1] = Vouch(on, bytes(64))
        record = replace(record, vouches=vouches)
        needed = range(4) if what == "one signature too few" else range(5)
        hand = Identity.from_seed("stranger") if what == "of a stranger" else net.identities[3]
        return Relayed(certify(record, "else" if what == "other phase" else "phase", 3, hand, needed), ())

    heard = net.run(both, {1: {0: [shown], 1: [net.relayed(net.sign(3, 8), 4)]}})
    assert len(views(heard)) == 1 and not net.settled
    assert len(heard[0].said[3]) == 2


@pytest.mark.parametrize("reached", [(0,), (0, 2), (0, 1, 2)])
def test_a_message_that_reaches_one_honest_peer_reaches_all(reached: tuple[int, ...]) -> None:
    net = Net(5, frozenset({3, 4}))
    heard = net.run({i: {3: net.sign(3, 7)} for i in reached})
    assert views(heard) == {((0, 1), (1, 1), (2, 1), (3, 1))}
    assert len({next(iter(h.said[3])) for h in heard.values()}) == 1


def test_two_faces_meet() -> None:
    net = Net(5, frozenset({3, 4}))
    heard = net.run({0: {3: net.sign(3, 7)}, 1: {3: net.sign(3, 8)}, 2: {3: net.sign(3, 7)}})
    assert views(heard) == {((0, 1), (1, 1), (2, 1), (3, 2))}


def test_three_faces_are_two_too_many_for_everybody() -> None:
    net = Net(6, frozenset({4, 5}))
    heard = net.run({i: {4: net.sign(4, i)} for i in range(4)})
    assert {len(h.said[4]) for h in heard.values()} == {2}


@pytest.mark.parametrize("round", [1, 2, 3])
@pytest.mark.parametrize("direct", ["all", "none"])
def test_a_face_that_fellows_show_to_one_peer_in_any_round_reaches_all_or_none(round: int, direct: str) -> None:
    """Round r takes r relayers: with fewer it comes too late and is refused, with r of them everybody gets it."""
    byzantine = frozenset({4, 5, 6})
    for relayers in range(4):
        net = Net(7, byzantine)
        assert net.rounds == 3
        # One of them speaks and does not sign what it heard, or nobody would listen.
        first = {i: {5: net.sign(5, 1), **({4: net.sign(4, 1)} if direct == "all" else {})} for i in range(4)}
        hidden = net.relayed(net.sign(4, 2), *((5, 6)[:relayers] if relayers < 3 else (5, 6, 0)))
        if relayers == 3:  # no honest peer signs what it has not heard: they would have to forge it
            forged = tuple((r, s if r != 0 else bytes(64)) for r, s in hidden.chain)
            hidden = Relayed(hidden.message, forged)
        heard = net.run(first, {round: {0: [hidden]}})
        assert len(views(heard)) == 1, f"{relayers} relayers in round {round} split the honest peers"
        faces = len(heard[0].said.get(4, {})) - (direct == "all")
        assert faces == (1 if relayers in (1, 2) and relayers >= round else 0)


def test_one_false_signature_of_each_peer_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many messages liars forge, and whatever signatures they make up for them."""
    looked = list[bytes]()
    verify = Roster.verify

    def counted(self: Roster, peer: int, message: bytes, signature: bytes, *more: Any) -> bool:
        looked.append(signature)
        return verify(self, peer, message, signature, *more)

    net = Net(7, frozenset({4, 5, 6}))
    forged = [Relayed(replace(net.sign(4, value), signed=bytes([value]) * 64), ()) for value in range(2, 42)]
    forged = [Relayed(item.message, net.relayed(net.sign(4, 1), 5).chain) for item in forged]
    monkeypatch.setattr(Roster, "verify", counted)
    heard = net.run({i: {5: net.sign(5, 1)} for i in range(4)}, {round: {0: forged} for round in (1, 2, 3)})
    assert len(views(heard)) == 1
    made_up = [signature for signature in looked if len({*signature}) == 1]
    assert len(made_up) == 1, "a second round takes two relayers"


def test_with_fewer_rounds_than_colluders_a_late_face_would_split() -> None:
    """Why the default is as many rounds as there may be Byzantine peers."""
    net = Net(7, frozenset({4, 5, 6}), rounds=1)
    hidden = net.relayed(net.sign(4, 2), 5)
    heard = net.run({i: {4: net.sign(4, 1)} for i in range(4)}, {1: {0: [hidden]}})
    assert len(views(heard)) == 2


def forgeries(net: Net) -> dict[str, Any]:
    good = net.sign(4, 2)
    proper = net.relayed(good, 5)
    return {
        "no tuple": 7,
        "not relayed": good,
        "own chain": net.relayed(good, 4),
        "empty chain": Relayed(good, ()),
        "twice the same": Relayed(good, proper.chain * 2),
        "unknown relayer": Relayed(good, ((99, proper.chain[0][1]),)),
        "negative relayer": Relayed(good, ((-1, proper.chain[0][1]),)),
        "bad signature": Relayed(good, ((5, bytes(64)),)),
        "short signature": Relayed(good, ((5, b"x"),)),
        "other phase": net.relayed(net.sign(4, 2, phase="else"), 5),
        "other context": net.relayed(net.sign(4, 2, context=b"else"), 5),
        "in an honest name": net.relayed(Signed(1, 3, "phase", good.payload, good.signature), 5),
        "long chain": Relayed(good, proper.chain * 50),
        "no message": Relayed(None, proper.chain),  # type: ignore[arg-type]
        "too large": net.relayed(
            Signed.create(net.identities[4], b"context", 4, 3, "phase", CoinReveal(bytes(2 * LIMIT), b"")), 5
        ),
    }


@pytest.mark.parametrize("what", list(forgeries(Net(7, frozenset({4, 5, 6})))))
def test_forged_relays_change_nothing(what: str) -> None:
    net = Net(7, frozenset({4, 5, 6}))
    heard = net.run({}, {1: {i: [forgeries(net)[what]] for i in range(4)}})
    assert views(heard) == {((0, 1), (1, 1), (2, 1), (3, 1))}


def test_a_message_from_another_step_or_run_is_none() -> None:
    net = Net(5, frozenset({4}))
    for stranger in (net.sign(4, 1, context=b"other run"), net.sign(4, 1, phase="earlier"), net.sign(3, 1), "text"):
        heard = net.run({i: {4: stranger} for i in range(4)})  # type: ignore[dict-item]
        assert views(heard) == {((0, 1), (1, 1), (2, 1), (3, 1))}


class TwoFaced(Behaviour):
    """Says something else to every second peer, in every phase that starts with `phase`."""

    byzantine = True

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def active(self, step: int) -> bool:
        return step == 1

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if not phase.startswith(self.phase) or message is None:
            return message, {}
        other = sign(CoinReveal(bytes(32), bytes(32)))
        return message, {i: other for i in ctx.record.active if i % 2}


@pytest.mark.parametrize("phase", ["commit", "announce", "coin_commit", "coin_reveal", "report", "accuse"])
@pytest.mark.parametrize("relays", [None, 1])
def test_equivocation_is_banned_in_its_step(phase: str, relays: int | None) -> None:
    run = run_cohort({3: TwoFaced(phase)}, peers=7, steps=4, relays=relays)
    assert set(run.removed) == {3}
    assert [(entry.step, entry.kind) for entry in run.entries] == [(1, "equivocation")]


@pytest.mark.parametrize("loss", [0.05, 0.3])
def test_lost_broadcasts_are_made_up_for(loss: float) -> None:
    reliable = run_cohort(peers=7, steps=6, relays=1)
    lossy = run_cohort(peers=7, steps=6, relays=1, links=Links(loss=loss, repeats=1, attempts=40))
    assert not lossy.entries
    assert torch.equal(lossy.params, reliable.params)


def test_lossy_links_need_relays() -> None:
    with pytest.raises(ValueError, match="set relays to 1 or more"):
        LocalDriver(ProtocolConfig(peers=5), QuadraticTask(20), links=Links(loss=0.1))


def test_slow_peers_are_absent_and_not_guilty() -> None:
    run = run_cohort(peers=9, steps=12, links=Links(slow=0.2), max_absences=12)
    assert not run.entries
    assert {len(result.workers) for result in run.results} - {8}, "somebody was late"


def test_whoever_is_away_is_not_drawn_as_a_validator() -> None:
    """It would be removed for a duty that it knows nothing of, long before `max_absences`."""
    steps = 30
    away = make_attack("silent", Collusion(frozenset({3}), 5, 0), start=1, phase="commit", onwards=True)
    run = run_cohort({3: away}, peers=5, steps=steps, seed=1, max_absences=steps + 1)
    assert not run.entries and run.results[-1].active == (0, 1, 2, 3, 4)


def test_bytes_are_counted() -> None:
    """Tensors: d (k - 1)/k floats out of every worker for its parts, and d/k to each peer for its aggregate."""
    d, n = 5600, 8
    small, large = (run_cohort(peers=n, steps=1, d=size, validators=0).results[0].sent for size in (d, 2 * d))
    grown = {i: large[i] - small[i] for i in small}
    assert set(grown.values()) == {2 * 4 * d * (n - 1) // n}


class Listener(LocalDriver):
    """Notes the phases in which it is asked to deliver something."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.phases: list[str] = []

    def talk(self, step: int, letters: Mapping[int, Letters]) -> Heard:
        self.phases.append(next(iter(letters.values())).phase)
        return super().talk(step, letters)


class Relayer(Behaviour):
    """What it passes on is its own business, so all rounds are kept for it."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        return outgoing


def test_rounds_in_which_nobody_can_have_news_are_skipped_in_one_process() -> None:
    found = []
    for behaviour, memory in ((HONEST, Memory()), (HONEST, NOTHING), (Relayer(), Memory())):
        config = ProtocolConfig(peers=7, byzantine=3, run_id="quiet rounds")
        driver = Listener(config, QuadraticTask(20), behaviours={3: behaviour}, memory=memory)
        results = [driver.step(torch.ones(20)) for _ in range(2)]
        rounds = [phase for phase in driver.phases if phase.startswith("commit/relay/")]
        found.append((rounds, [(r.gradient.tolist(), r.coin) for r in results], driver.peers[0].ledger.head))
    (skipped, *same), (alone, *too), (watched, *also) = found
    assert skipped == alone == ["commit/relay/1"] * 2
    assert watched == [f"commit/relay/{round}" for round in (1, 2, 3, 4)] * 2
    assert same == too == also
