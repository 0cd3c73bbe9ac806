"""The protocol in words for a page: what happens in each phase, what is fixed once it is over, what a kind means."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from btard.protocol.claims import KINDS


@dataclass(frozen=True)
class Phase:
    """One phase of a step. `names`: as timings and messages call it, rounds and attempts aside."""

    title: str
    names: tuple[str, ...]
    owed_by: str
    """Letters of the roles whose peers owe a message in it; the others are not asked."""
    happens: str
    fixed: str
    """What nobody can change any more once it is over."""


PHASES = (
    Phase(
        "compute",
        ("compute", "gradients"),
        "wvp",
        "Workers compute the gradients of their public batches. A validator recomputes one of the step before.",
        "The batches: they follow from the coin of the step before.",
    ),
    Phase(
        "commit",
        ("commit",),
        "wvip",
        "Everybody broadcasts a hash of each part of its gradient. A peer that is not heard is out of the step.",
        "Every gradient, and who takes part.",
    ),
    Phase(
        "exchange",
        ("part",),
        "w",
        "Each worker sends part j to the peer that owns part j, which compares it with the hash.",
        "",
    ),
    Phase(
        "aggregate",
        ("announce", "aggregate", "recover"),
        "w",
        "Owners aggregate their part by CenteredClip, broadcast the hash of the result, and send the result to all.",
        "Every aggregate, and whose parts went in.",
    ),
    Phase(
        "coin",
        ("coin_commit", "coin_reveal"),
        "wvi",
        "Everybody commits to a random value, then reveals it. The coin is the hash of all of them.",
        "The random directions of the check, the next batches, and who is checked: too late to prepare for any of it.",
    ),
    Phase(
        "report",
        ("report",),
        "w",
        "Each worker says how far its part is from each aggregate, and along the random direction.",
        "The sums by which everybody sees whether an aggregate is wrong.",
    ),
    Phase(
        "disclose",
        ("disclose",),
        "w",
        "Tolerant validation alone: targets show their validator what they committed to.",
        "",
    ),
    Phase(
        "accuse",
        ("accuse", "evidence", "lacking", "pass", "judge", "vote"),
        "wvi",
        "Claims are broadcast, evidence is shown and passed on, and all that were there vote.",
        "Who is removed: an entry of the ledger, the same at all honest peers.",
    ),
    Phase(
        "heal",
        ("heal",),
        "wvi",
        "Only after a removal: everybody measures earlier states on a public batch drawn by the coin.",
        "The state from which the run continues.",
    ),
    Phase(
        "join",
        ("join", "bring_up", "ask", "forward"),
        "wvi",
        "Members give aggregates to those that were away. Where peers may join, they name the requests that they hold.",
        "",
    ),
    Phase("choose", ("choose",), "", "From the coin follow the next validators and their targets.", ""),
    Phase("other", ("other",), "", "What the program does beside the protocol, such as the optimizer's step.", ""),
)

MEANINGS = {
    "wrong_gradient": "Its committed gradient, or a report on it, is not that of its public batch.",
    "undisclosed": "It did not show its validator what it had committed to.",
    "misreport": "It reported another norm or product than its part gives.",
    "wrong_aggregate": "The aggregate that it announced is not CenteredClip of the parts that went in.",
    "bad_part": "It signed a part with another hash than it had committed to, or one that is malformed.",
    "bad_aggregate": "It signed an aggregate with another hash than it had announced, or one that is malformed.",
    "withheld_part": "Its part never came: nobody can tell which of the two lies, so both go.",
    "withheld_aggregate": "Its aggregate never came: nobody can tell which of the two lies, so both go.",
    "undelivered": "What it had to show did not reach most of the voters.",
    "false_accusation": "It accused a peer of what the evidence does not show.",
    "silent": "It said nothing in a broadcast that it owed.",
    "gone": "It missed too many steps.",
    "equivocation": "It said different things to different peers in one broadcast.",
    "unexplained_exclusion": "It left out the part of a worker and accused nobody for it.",
    "unexplained_absence": "It said that it lacks an aggregate and accused nobody for it.",
    "contradiction": "It claimed that a part never came, and had counted it.",
    "wrong_reveal": "It revealed another value for the coin than it had committed to.",
    "heal": "After a removal the peers compared earlier states.",
    "join": "A newcomer was admitted, on probation.",
    "member": "A newcomer has served its probation.",
}


def meaning(kind: str) -> str:
    """What an entry of this kind says, in a sentence; empty for an unknown kind."""
    if kind.startswith("malformed_"):
        return "Its message in this phase cannot be what an honest peer says."
    return MEANINGS.get(kind, "")


def how_decided(kind: str, verdict: str, recomputed: bool) -> str:
    """What decided a removal. `recomputed`: whether the claim that was tried is one that judges recompute."""
    if verdict == "public":
        return "No vote: all peers saw it in the broadcasts."
    if verdict == "eliminated":
        return "No vote: it is the word of one against the other's."
    if recomputed:
        return "Each voter recomputed the gradient of the public batch before it voted."
    if kind in KINDS or verdict in ("guilty", "false", "undelivered"):
        return "No gradient was recomputed: the voters judged by the messages and the pieces that they were shown."
    return ""


def phase_of(name: str) -> str:
    """The title of the phase that timings or messages call `name`, such as vote/0; itself if it is not known."""
    short = name.partition("/")[0]
    return next((phase.title for phase in PHASES if short in phase.names), short)


def phases() -> list[dict[str, object]]:
    """All of them as JSON values, in order."""
    return [asdict(phase) for phase in PHASES]
