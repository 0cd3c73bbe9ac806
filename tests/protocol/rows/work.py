"""Rows about gradients, aggregates and reports."""

from __future__ import annotations

from typing import Any

from tests.protocol.matrix import A, Cycle, G, R, Row

_VALIDATED: dict[str, Any] = {"kinds": "wrong_gradient", "when": "later", "settings": {"validators": 2}}
_DUO: dict[str, Any] = {"attackers": 2, "peers": 6}

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
)
