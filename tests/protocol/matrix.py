"""The acceptance matrix: what Byzantine peers do, what must come of it, and a runner that says what did.

`tests/protocol/test_acceptance.py` checks every row over many seeds, `scripts/threat_model.py` writes down what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from btard.attacks import make_attack
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.ledger import Entry
from tests.protocol.cohort import Run, run_cohort

START = 1
"""First step of every attack: an honest step comes before it."""
SEEDS = 20
D = 31


class Cycle(tuple[Any, ...]):
    """Values of an option, one for each seed in turn."""


When = Literal["same step", "later", "maybe", "never"]


@dataclass(frozen=True)
class Row:
    """One behaviour of `attackers` of `peers` peers. With a `companion` the last attacker runs that one instead."""

    section: str
    attack: str
    kinds: str = ""
    """Ledger kinds that an attacker may be removed for, separated by blanks."""
    when: When = "same step"
    """same step: in the first step in which it can act; later: sooner or later; maybe: or not at all; never."""
    options: Mapping[str, Any] = field(default_factory=dict)
    attackers: int = 1
    peers: int = 5
    trade: bool = False
    """Whether an honest peer may be eliminated together with an attacker."""
    companion: tuple[str, Mapping[str, Any]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 3
    """How long it runs where attackers are not removed in the same step."""

    @property
    def label(self) -> str:
        """The behaviour in words of the registry."""

        def value(chosen: Any) -> str:
            return "/".join(map(str, chosen)) if isinstance(chosen, Cycle) else f"{chosen}"

        def told(attack: str, options: Mapping[str, Any]) -> str:
            said = ", ".join(f"{name}={value(chosen)}" for name, chosen in options.items())
            return f"{attack}({said})" if said else attack

        text = told(self.attack, self.options)
        if self.companion is not None:
            text += " with " + told(*self.companion)
        if self.settings:
            text += " under " + ", ".join(f"{name}={chosen}" for name, chosen in self.settings.items())
        return text

    @property
    def who(self) -> str:
        return f"{self.attackers} of {self.peers}"

    @property
    def expected(self) -> str:
        """What must happen, in words."""
        trade = "; one honest peer may go along" if self.trade else ""
        if self.when == "never":
            return "nobody removed"
        how = {"same step": "removed in the same step", "later": "removed sooner or later", "maybe": "removed or not"}
        return f"{how[self.when]}: {', '.join(self.kinds.split())}{trade}"

    def __str__(self) -> str:
        return f"{self.label} {self.who}"


@dataclass(frozen=True)
class Observation:
    """What one run came to: attackers that could act, who of them was removed after how many steps, and who else."""

    attackers: int
    bans: tuple[int, ...]
    """Steps from the first one in which the attack was on, one for each attacker that was removed."""
    kinds: frozenset[str]
    honest: int


def cohort_of(row: Row, seed: int) -> tuple[dict[int, Behaviour], Collusion]:
    """Who attacks differs by seed; peer 0 never does."""
    members = frozenset(1 + (seed + 2 * i) % (row.peers - 1) for i in range(row.attackers))
    assert len(members) == row.attackers, f"{row}: too many attackers for so few peers"
    collusion = Collusion(members, row.peers, seed)

    def make(attack: str, options: Mapping[str, Any]) -> Behaviour:
        chosen = {
            name: value[seed % len(value)] if isinstance(value, Cycle) else value for name, value in options.items()
        }
        return make_attack(attack, collusion, start=START, **chosen)

    attackers = {i: make(row.attack, row.options) for i in sorted(members)}
    if row.companion is not None:
        attackers[max(members)] = make(*row.companion)
    return attackers, collusion


def play(row: Row, seed: int, proofs: Path | None = None) -> tuple[Run, frozenset[int]]:
    """The row's run: until all attackers are gone where they have to go; its proofs go into the folder `proofs`.

    Errors: what the driver raises on a split.
    """
    attackers, collusion = cohort_of(row, seed)
    steps = {"same step": START + 4, "later": 150}.get(row.when, START + row.steps)
    run = run_cohort(
        attackers,
        peers=row.peers,
        d=D,
        steps=steps,
        seed=seed,
        collusion=collusion,
        until_banned=collusion.members,
        proofs=proofs,
        **row.settings,
    )
    return run, collusion.members


def observe(row: Row, seed: int) -> Observation:
    """Run and check. Errors: AssertionError naming row and seed if anything but the expected happened."""
    where = f"{row}, seed {seed}"
    try:
        run, members = play(row, seed)
    except Exception as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    removed = {peer: entry for peer, entry in run.removed.items() if peer in members}
    check_honest(where, run, members, trade=row.trade)
    kinds = frozenset(entry.kind for entry in removed.values())
    assert kinds <= set(row.kinds.split()), f"{where}: removed for {sorted(kinds)}"
    assert all(entry.step >= START for entry in run.entries), f"{where}: {run.entries}"
    if row.when in ("same step", "later"):
        assert set(removed) == members, f"{where}: {sorted(members - set(removed))} got away; {run.entries}"
    if row.when == "never":
        assert not run.entries, f"{where}: {run.entries}"
    if row.when == "same step":
        for peer, entry in removed.items():
            # A validator of the first step does not work in it, so it deviates later.
            worked = [result.step for result in run.results if result.step >= START and peer in result.workers]
            assert entry.step <= min(worked, default=entry.step), f"{where}: {peer} worked in {worked}: {entry}"
            assert entry.about_step == entry.step, f"{where}: {entry}"
    honest = len(set(run.removed) - members)
    return Observation(len(members), tuple(entry.step - START for entry in removed.values()), kinds, honest)


def check_honest(where: str, run: Run, members: frozenset[int], *, trade: bool) -> None:
    """What must hold whatever the attackers do: no honest peer removed but by ELIMINATE, one ledger, bounded steps."""
    for entry in run.entries:
        honest = set(entry.peers) - members
        assert not honest or (trade and is_trade(entry, members)), f"{where}: honest {sorted(honest)} removed: {entry}"
    heads = {peer.ledger.head for peer in run.driver.honest}
    assert len(heads) == 1, f"{where}: {len(heads)} different ledgers"
    # Clipping bounds what any attack does to the parameters: an aggregate that does not count would go far beyond.
    assert torch.isfinite(run.params).all(), f"{where}: the parameters are not finite"
    assert float(run.params.norm()) < 5 * float(torch.ones(D).norm()), f"{where}: |x| = {float(run.params.norm()):g}"


def is_trade(entry: Entry, members: frozenset[int]) -> bool:
    """Whether an honest peer left together with an attacker, by ELIMINATE."""
    return entry.verdict == "eliminated" and len(entry.peers) == 2 and len(set(entry.peers) & members) == 1


def summary(row: Row, observations: list[Observation]) -> str:
    """What was seen over all seeds, in words."""
    attackers = sum(seen.attackers for seen in observations)
    bans = [step for seen in observations for step in seen.bans]
    honest = sum(seen.honest for seen in observations)
    if not bans:
        text = f"none of {attackers} attackers removed"
    else:
        text = f"{len(bans)} of {attackers} attackers removed"
        if row.when == "same step":
            text += ", each in the first step in which it could act"
        else:
            text += f", after {median(bans):g} steps in the median, {max(bans)} at most"
        text += f" ({', '.join(sorted(set().union(*(seen.kinds for seen in observations))))})"
    return text + (f"; {honest} honest peers eliminated along" if honest else "; no honest peer removed")


G, A, R, F, S, B, C, H = (
    "Gradients",
    "Aggregates",
    "Reports",
    "Accusations, votes and evidence",
    "Parts and aggregates on their way",
    "Broadcasts",
    "Silence and the coin",
    "Healing",
)

_VALIDATED: dict[str, Any] = {"kinds": "wrong_gradient", "when": "later", "settings": {"validators": 2}}
_DUO: dict[str, Any] = {"attackers": 2, "peers": 6}
_SHOWN: tuple[tuple[str, When], ...] = (("last_round", "same step"), ("too_late", "never"))

ROWS: tuple[Row, ...] = (
    *(
        Row(G, attack, options=options, **_VALIDATED)
        for attack, options in (
            ("sign_flip", {}),
            ("random_direction", {}),
            ("label_flip", {}),
            ("delayed_gradient", {"delay": 1}),
            ("ipm", {"epsilon": Cycle((0.1, 0.6))}),
            ("alie", {"z": 1.0}),
            ("noise", {"mode": Cycle(("replace", "add"))}),
            ("zero", {}),
            ("copy", {}),
            ("min_max", {}),
            ("min_sum", {}),
            ("rop", {}),
            ("blind_spot", {}),
            ("alie_search", {"trials": 3}),
            ("ipm_search", {"trials": 3}),
            ("mimic", {"warmup": 2}),
            ("non_finite", {"value": "max", "entries": Cycle(("one", "all"))}),
            ("non_finite", {"value": "denormal", "entries": Cycle(("one", "all"))}),
        )
    ),
    Row(G, "sign_flip", "wrong_gradient", "later", attackers=2, peers=6),
    Row(G, "non_finite", "bad_part unexplained_exclusion", options={"value": Cycle(("nan", "inf"))}),
    Row(
        G,
        "non_finite",
        "bad_part unexplained_exclusion",
        options={"value": Cycle(("nan", "inf")), "entries": "all"},
        **_DUO,
    ),
    # Aggregates.
    Row(A, "wrong_aggregate", "wrong_aggregate", options={"scale": 0.1}),
    Row(A, "wrong_aggregate", "wrong_aggregate", options={"scale": 1000.0}, **_DUO),
    Row(A, "wrong_aggregate", "wrong_aggregate", options={"scale": 1.0}, settings={"tau": 0.01, "directions": 2}),
    Row(A, "wrong_aggregate", "wrong_aggregate", options={"how": "factor", "scale": Cycle((0.0, 1.1, 1000.0))}),
    Row(A, "wrong_aggregate", "wrong_aggregate", options={"how": "part"}),
    Row(A, "wrong_aggregate", when="never", options={"how": "edge", "scale": Cycle((0.9, 1.0, 1.5, 2.0, 2.1))}),
    Row(A, "wrong_aggregate", "wrong_aggregate", "later", options={"how": "edge", "scale": 1000.0}),
    Row(A, "unproven_aggregate", "wrong_aggregate", options={"show": Cycle(("nothing", "copies", "incomplete"))}),
    # Each of them aggregates wrongly, and 1 to 6 others cover for it: beyond V3's distance and within it.
    *(
        Row(
            A,
            "colluding_aggregate",
            "wrong_aggregate",
            options={"scale": 100.0, "cook": Cycle(("s", "both"))},
            attackers=colluders + 1,
            peers=2 * colluders + 4,
        )
        for colluders in range(1, 7)
    ),
    *(
        Row(
            A,
            "colluding_aggregate",
            "wrong_aggregate wrong_gradient",
            "later",
            options={"scale": 2.0, "cook": Cycle(("s", "both"))},
            attackers=colluders + 1,
            peers=2 * colluders + 3 + validators,
            settings={"validators": validators} if validators > 1 else {},
        )
        for colluders, validators in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 3))
    ),
    Row(
        A,
        "colluding_aggregate",
        "wrong_aggregate wrong_gradient",
        "later",
        options={"scale": 2.0},
        attackers=1,
        settings={"validators": 2},
    ),
    Row(A, "late_aggregate", "silent malformed_claims", "maybe", options={"then": "accuse"}, **_DUO),
    Row(
        A,
        "late_aggregate",
        "silent wrong_gradient misreport",
        "maybe",
        options={"then": "favour"},
        attackers=3,
        peers=8,
    ),
    Row(A, "favoured_holder", "silent misreport wrong_aggregate wrong_gradient", "maybe", attackers=3, peers=8),
    Row(
        A,
        "sole_sender",
        "withheld_part contradiction unexplained_exclusion wrong_gradient",
        options={"listed": Cycle(("self", "fellows"))},
        trade=True,
        **_DUO,
    ),
    Row(A, "sole_sender", "false_accusation", options={"claim": "bad_part"}),
    Row(
        A,
        "vanishing_aggregator",
        "silent",
        options={"phase": Cycle(("coin_commit", "coin_reveal", "report", "accuse"))},
    ),
    # Reports.
    *(Row(R, "misreport", "misreport", options={"what": what}) for what in ("norm", "s", "both", "size")),
    Row(R, "misreport", "misreport", options={"what": Cycle(("norm", "s", "both", "size")), "factor": 1e30}, **_DUO),
    Row(
        R,
        "misreport",
        when="never",
        options={"tolerances": Cycle((0.9, 1.0, 1.5)), "what": Cycle(("norm", "s", "both", "size"))},
    ),
    Row(
        R,
        "misreport",
        "misreport wrong_gradient",
        "maybe",
        options={"tolerances": 2.0, "what": Cycle(("norm", "s", "both", "size"))},
    ),
    Row(R, "misreport", "misreport", options={"tolerances": 2.1, "what": Cycle(("norm", "s", "both", "size"))}),
    Row(R, "cancelling_lies", "wrong_gradient", "maybe", attackers=3, peers=8, steps=8),
    # Accusations.
    *(
        Row(F, "false_accusation", "false_accusation contradiction", "later", options={"kind": kind})
        for kind in ("wrong_gradient", "misreport", "bad_part", "bad_aggregate")
    ),
    Row(F, "false_accusation", "malformed_claims", options={"kind": "wrong_aggregate"}),
    # It has a cause in the other's conviction, so that nobody pays for it.
    Row(
        F,
        "false_accusation",
        "wrong_gradient",
        "maybe",
        options={"kind": "wrong_aggregate", "about": "before"},
        companion=("zero", {}),
        settings={"validators": 2},
        steps=12,
        attackers=2,
        peers=7,
    ),
    Row(F, "false_accusation", "contradiction", "later", options={"kind": "withheld_part"}),
    Row(
        F,
        "false_accusation",
        "withheld_aggregate",
        "later",
        options={"kind": "withheld_aggregate"},
        trade=True,
    ),
    Row(
        F,
        "false_accusation",
        "false_accusation contradiction withheld_aggregate malformed_claims",
        "later",
        options={
            "kind": Cycle(
                (
                    "wrong_gradient",
                    "misreport",
                    "wrong_aggregate",
                    "bad_part",
                    "bad_aggregate",
                    "withheld_part",
                    "withheld_aggregate",
                )
            ),
            "together": Cycle((True, False)),
        },
        trade=True,
        attackers=7,
        peers=16,
    ),
    Row(
        F,
        "false_evidence",
        "false_accusation contradiction",
        "later",
        options={
            "kind": Cycle(("bad_part", "misreport", "bad_aggregate")),
            "show": Cycle(("nothing", "garbage", "forged", "genuine", "another")),
        },
    ),
    Row(
        F,
        "false_evidence",
        "wrong_aggregate false_accusation",
        "maybe",
        options={"kind": "misreport", "show": Cycle(("nothing", "garbage", "forged", "genuine", "another"))},
        companion=("wrong_aggregate", {}),
        **_DUO,
    ),
    Row(
        F,
        "lying_votes",
        "false_accusation",
        "maybe",
        options={"how": Cycle(("guilty", "false", "excused", "opposite", "fellows", "random"))},
        companion=("false_accusation", {"kind": Cycle(("wrong_gradient", "bad_aggregate", "misreport"))}),
        steps=12,
        **_DUO,
    ),
    Row(
        F,
        "lying_votes",
        "wrong_aggregate",
        "maybe",
        options={"how": Cycle(("guilty", "false", "excused", "opposite", "fellows", "random"))},
        companion=("wrong_aggregate", {}),
        **_DUO,
    ),
    Row(F, "never_accuse", when="never", **_DUO),
    # Parts and aggregates on their way.
    *(
        Row(
            S,
            "bad_part",
            "bad_part",
            options={
                "send": Cycle(
                    (
                        "other",
                        "short",
                        "nan",
                        "garbage",
                        "inf",
                        "denormal",
                        "float64",
                        "float16",
                        "int",
                        "matrix",
                        "scalar",
                        "empty",
                    )
                ),
                "recipients": recipients,
            },
        )
        for recipients in ("all", "one")
    ),
    Row(
        S,
        "bad_part",
        "bad_part unexplained_exclusion",
        options={
            "committed": True,
            "send": Cycle(("short", "nan", "garbage", "inf", "float64", "float16", "int", "matrix", "scalar", "empty")),
        },
        **_DUO,
    ),
    # Well formed and as committed: what is wrong are the reports, which are about the true gradient.
    Row(S, "bad_part", "misreport", options={"committed": True, "send": Cycle(("other", "denormal"))}),
    Row(S, "bad_part", "silent", options={"send": Cycle(("oversize", "unsigned")), "recipients": "all"}),
    Row(
        S,
        "bad_part",
        "withheld_part",
        options={"send": Cycle(("oversize", "unsigned")), "recipients": "one"},
        trade=True,
    ),
    Row(S, "withheld_part", "withheld_part", "later", options={"recipients": "one"}, trade=True, **_DUO),
    Row(
        S,
        "withheld_part",
        "withheld_part",
        "later",
        options={"recipients": "several"},
        trade=True,
        attackers=2,
        peers=8,
    ),
    Row(S, "withheld_part", "silent", options={"recipients": Cycle(("most", "all"))}, attackers=2, peers=8),
    *(
        Row(
            S,
            "bad_aggregate",
            "bad_aggregate",
            options={
                "send": Cycle(
                    (
                        "other",
                        "short",
                        "nan",
                        "garbage",
                        "inf",
                        "denormal",
                        "float64",
                        "float16",
                        "int",
                        "matrix",
                        "scalar",
                        "empty",
                    )
                ),
                "recipients": recipients,
            },
        )
        for recipients in ("all", "one")
    ),
    Row(
        S,
        "bad_aggregate",
        "bad_aggregate",
        options={
            "announced": True,
            "recipients": "all",
            "send": Cycle(("short", "nan", "garbage", "inf", "float64", "float16", "int", "matrix", "scalar", "empty")),
        },
        **_DUO,
    ),
    Row(S, "bad_aggregate", "silent", options={"send": "oversize", "recipients": "all"}),
    Row(S, "bad_aggregate", "withheld_aggregate", options={"send": "oversize", "recipients": "one"}, trade=True),
    Row(S, "withheld_aggregate", "withheld_aggregate", "later", options={"recipients": "one"}, trade=True, **_DUO),
    Row(
        S,
        "withheld_aggregate",
        "withheld_aggregate",
        "later",
        options={"recipients": "several"},
        trade=True,
        attackers=2,
        peers=8,
    ),
    Row(S, "withheld_aggregate", "silent", options={"recipients": Cycle(("most", "all"))}, attackers=2, peers=8),
    Row(S, "replay", "silent", "later", options={"what": "packets"}),
    # Broadcasts.
    *(
        Row(B, "equivocate", "equivocation", options={"phase": phase, "shown": Cycle(("half", "one"))})
        for phase in ("commit", "announce", "coin_commit", "coin_reveal", "report", "accuse")
    ),
    Row(
        B,
        "equivocate",
        "equivocation false_accusation",
        "maybe",
        options={"phase": "vote", "shown": Cycle(("half", "one", "last_round"))},
        companion=("false_accusation", {"kind": "bad_aggregate"}),
        **_DUO,
    ),
    *(
        Row(
            B,
            "equivocate",
            "equivocation",
            when,
            options={
                "phase": Cycle(("commit", "announce", "coin_commit", "coin_reveal", "report", "accuse")),
                "shown": shown,
            },
            attackers=attackers,
            peers=peers,
        )
        for shown, when in _SHOWN
        for attackers, peers in ((2, 6), (3, 8))
    ),
    Row(B, "selective_silence", when="never", options={"heard_by": Cycle(("one", "half"))}, **_DUO),
    Row(
        B,
        "replay",
        "silent",
        "later",
        options={"what": Cycle(("step", "phase")), "phase": Cycle(("announce", "coin_reveal", "report"))},
    ),
    Row(B, "replay", when="never", options={"what": "step", "phase": "commit"}),
    Row(B, "replay", when="never", options={"what": "others"}, **_DUO),
    Row(
        B,
        "forgery",
        "silent",
        options={
            "what": Cycle(("signature", "name")),
            "phase": Cycle(("announce", "coin_commit", "coin_reveal", "report", "accuse")),
        },
    ),
    Row(B, "forgery", "gone", "later", options={"what": "name", "phase": "commit"}, settings={"max_absences": 2}),
    Row(B, "forgery", when="never", options={"what": "relays", "phase": Cycle(("commit", "report", "accuse"))}, **_DUO),
    *(
        Row(
            B,
            "garbage",
            f"malformed_{phase if phase != 'accuse' else 'accuse'}",
            options={"phase": phase, "what": Cycle(("bytes", "nested", "foreign", "empty", "extension"))},
        )
        for phase in ("commit", "announce", "coin_commit", "coin_reveal", "report", "accuse")
    ),
    Row(
        B,
        "garbage",
        "silent",
        options={
            "what": "oversize",
            "phase": Cycle(("announce", "coin_commit", "coin_reveal", "report", "accuse")),
        },
    ),
    Row(B, "malformed_message", "malformed_commit", options={"how": "commit_short"}),
    Row(
        B,
        "malformed_message",
        "malformed_announce",
        options={
            "how": Cycle(
                (
                    "announce_foreign_part",
                    "announce_part_out_of_range",
                    "announce_twice",
                    "announce_unknown_sender",
                    "announce_unsorted",
                    "announce_nobody",
                )
            )
        },
    ),
    Row(
        B,
        "malformed_message",
        "unexplained_absence",
        options={"how": Cycle(("lacks_unknown_part", "lacks_part_often", "lacks_own_part"))},
    ),
    Row(
        B,
        "malformed_message",
        "malformed_report",
        options={
            "how": Cycle(("report_short", "report_negative", "report_nan", "report_directions", "report_pretext"))
        },
    ),
    Row(B, "malformed_message", "misreport", options={"how": "report_overflow"}, **_DUO),
    Row(
        B,
        "malformed_message",
        "malformed_claims malformed_accuse",
        options={
            "how": Cycle(
                ("claim_unknown_peer", "claim_part_out_of_range", "claim_oneself", "claim_future", "claim_too_many")
            )
        },
    ),
    # What another peer may claim, in its role and by what it said before, and this one may not.
    *(
        Row(B, "malformed_message", "malformed_claims", options={"how": how})
        for how in ("claim_not_lacked", "claim_of_owner", "claim_of_validator")
    ),
    Row(
        B,
        "malformed_message",
        "malformed_votes false_accusation",
        "maybe",
        options={"how": Cycle(("votes_short", "votes_long"))},
        companion=("false_accusation", {"kind": "bad_aggregate"}),
        **_DUO,
    ),
    Row(B, "no_certificate", when="never", options={"denied": Cycle(("all", "half", "one"))}, **_DUO),
    Row(B, "junk_relays", when="never", **_DUO),
    # Silence and the coin.
    *(
        Row(C, "silent", "silent", options={"phase": phase, "onwards": Cycle((False, True))})
        for phase in ("part", "announce", "aggregate", "coin_commit", "coin_reveal", "report", "accuse")
    ),
    Row(C, "silent", "gone", "later", options={"phase": "commit"}),
    # As a worker it is away from the roll call on, as one that is slow or cut off; a validator owes its duty.
    Row(C, "silent", "silent gone", "later", options={"phase": "commit", "onwards": True}, steps=5),
    Row(
        C,
        "silent",
        "silent false_accusation",
        "maybe",
        options={"phase": Cycle(("vote", "evidence"))},
        companion=("false_accusation", {"kind": "bad_aggregate"}),
        **_DUO,
    ),
    Row(
        C,
        "crash",
        "silent",
        options={
            "phase": Cycle(("part", "announce", "aggregate", "coin_commit", "coin_reveal", "report", "accuse")),
        },
    ),
    Row(C, "crash", "silent gone", "later", options={"phase": "commit"}, steps=5),
    Row(C, "wrong_reveal", "wrong_reveal"),
    Row(C, "late_reveal", "silent", "later", **_DUO),
    Row(C, "late_reveal", "silent", "later", attackers=3, peers=8),
    # Healing: who lies about states, and who goes by itself so that the others go back.
    Row(
        H,
        "healing_lies",
        "wrong_gradient",
        "maybe",
        options={"what": Cycle(("oldest", "present", "opposite", "huge", "digests", "silent"))},
        companion=("sign_flip", {}),
        settings={"heal": 4},
        steps=10,
        **_DUO,
    ),
    Row(
        H,
        "healing_lies",
        "malformed_heal wrong_gradient",
        "later",
        options={"what": Cycle(("short", "long", "empty", "nan", "infinite"))},
        companion=("sign_flip", {}),
        settings={"heal": 4},
        **_DUO,
    ),
    *(
        Row(
            H,
            "hit_and_run",
            kinds,
            "later",
            options={"hits": Cycle((0, 2)), "leave": leave},
            trade=leave == "eliminate",
            settings={"heal": 4},
            **_DUO,
        )
        for leave, kinds in (
            ("silent", "silent wrong_gradient"),
            ("absent", "gone wrong_gradient"),
            ("eliminate", "withheld_aggregate wrong_gradient"),
        )
    ),
    Row(
        H,
        "hit_and_run",
        "wrong_gradient",
        "later",
        options={"hits": 2, "leave": "betrayed"},
        settings={"heal": 4},
        **_DUO,
    ),
)
