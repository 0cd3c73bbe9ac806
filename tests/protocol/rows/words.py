"""Rows about broadcasts, silence and the coin, and healing."""

from __future__ import annotations

from typing import Any

from tests.protocol.matrix import B, C, Cycle, H, Row, When

_DUO: dict[str, Any] = {"attackers": 2, "peers": 6}
_SHOWN: tuple[tuple[str, When], ...] = (("last_round", "same step"), ("too_late", "never"))

ROWS: tuple[Row, ...] = (
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
