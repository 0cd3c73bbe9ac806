"""Rows about accusations, votes and evidence, and about parts and aggregates on their way."""

from __future__ import annotations

from typing import Any

from tests.protocol.matrix import Cycle, F, Row, S

_DUO: dict[str, Any] = {"attackers": 2, "peers": 6}
SPOILED = Cycle(
    ("other", "short", "nan", "garbage", "inf", "denormal", "float64", "float16", "int", "matrix", "scalar", "empty")
)
"""What may come in place of a part, or of an aggregate."""

ROWS: tuple[Row, ...] = (
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
                "send": SPOILED,
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
                "send": SPOILED,
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
)
