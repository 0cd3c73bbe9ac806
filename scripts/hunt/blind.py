"""A hold-out of switches, made from the protocol and its documentation without a look at the hunt's grammar.

That the hunt finds those of `switches.py` may be because it was built along with them.
"""

from __future__ import annotations

from scripts.hunt.edits import switch

BLIND = {
    "removed_accusers": switch(
        "accusers that fell out in the same step help to a majority that removes honest owners without a trade",
        ("accuse", "set()).update(present & set(accusers))", "set()).update(accusers)"),
    ),
    "lacked_by_one": switch(
        "one voter says that it lacks everything: honest senders go as undelivered, with an owner that hid its row",
        ("accuse", "2 * len(voters & lacked[piece]) > len(voters)", "voters & lacked[piece]"),
    ),
    "absent_answer": switch(
        "an honest sender that is away, and cannot show its part of the step before, goes with the owner that hid it",
        (
            "kind",
            "answerable = set(tried.record.members) & set(tried.about.here or ())",
            "answerable = set(tried.about.here or ())",
        ),
    ),
    "unlisted_misreport": switch(
        "an owner has all those that it left out convicted of having reported nothing",
        ("claims", "            and claim.accused in announced.senders\n", ""),
    ),
    "counted_twice": switch(
        "a sender that its own list names several times outweighs the honest ones in V2 and V3: any vector is applied",
        (
            "aggregate",
            "tuple(sorted(workers.intersection(entry.senders))) == entry.senders",
            "workers.issuperset(entry.senders)",
        ),
    ),
    "own_relayer": switch(
        "a sender vouches for its own second message in the last round: honest peers disagree on it",
        ("broadcast", " & set(record.members) - {item.message.sender}", " & set(record.members)"),
    ),
    "relayed_without_limit": switch(
        "a relayed message so long that nobody can pass it on reaches one honest peer, which then disagrees with all",
        ("broadcast", "in senders and signed.nbytes <= limit", "in senders"),
    ),
    "any_phase": switch(
        "what a peer said in one phase is its second message in another: honest peers go for equivocation",
        (
            "signed",
            'digest("broadcast", context, sender, step, phase, payload)',
            'digest("broadcast", context, sender, step, payload)',
        ),
    ),
    "any_step": switch(
        "a part that a peer signed in the step before proves in this one that it sent a bad part",
        ("signed", 'sign(signed_digest("packet", context, hashed), m', 'sign(signed_digest("packet", hashed), m'),
        (
            "signed",
            'signed_digest("packet", context, hashed), self.signature',
            'signed_digest("packet", hashed), self.signature',
        ),
        (
            "commitments",
            "fields = (kind, self.run_id, sender, step, part",
            "fields = (kind, self.run_id, sender, part",
        ),
    ),
    "unsigned_proof": switch(
        "a packet that an owner made up proves that the peer it names sent a bad part",
        ("packets", "if packet.authentic(hashed, about.context, seat.roster, seat.memory) else", "if True else"),
    ),
    "accused_at_once": switch(
        "mode tolerant: a validator accuses where judges may not agree, and pays for a gradient at the tolerance",
        (
            "validate",
            "    if work_is_wrong(seat, about, target, work, truth, margin=ACCUSE)",
            "    if work_is_wrong(seat, about, target, work, truth, margin=1.0)",
        ),
    ),
    "nan_reported": switch(
        "a report of NaN turns V2 off, and no check of it finds it wrong: its sender's wrong aggregates count for ever",
        (
            "wire",
            "    if isinstance(result, Message) and not result.finite():",
            "    if False and not result.finite():",
        ),
    ),
    "radius_of_few": switch(
        "tau auto: where half of the workers may be liars, their distances are the next radius",
        ("radius", "if config.tau_quantile * len(norms) > liars:", "if len(norms):"),
        ("radius", "if len(values) > 2 * liars:", "if len(values):"),
    ),
    "absences_stay": switch(
        "absences add up over the run: an honest peer that misses few steps is removed as gone",
        ("commit", "if missed else -PRESENT * record.weight", "if missed else 0"),
    ),
    "zero_for_lacking": switch(
        "a peer that lacks an aggregate that counts goes on with zeros: it has other parameters than the others",
        ("peer", "        if lacking and back_to is None:\n", "        if False and lacking:\n"),
    ),
    "nobody_left_to_work": switch(
        "as many validators as ever among a few peers that are left: the draw fails, and no step ends",
        ("choose", "len(candidates), (len(active) - 1) // 2))", "len(candidates)))"),
    ),
    "told_by_one": switch(
        "a newcomer believes any one member about what was said, and loses the others' history",
        ("broadcast", "if counts[one.view, certified] > enough:", "if True:"),
    ),
    "one_checker": switch(
        "one colluding validator lets a newcomer that computed nothing become a member",
        ("join", "checks = min(record.byzantine + 1, len(record.remaining))", "checks = 1"),
    ),
    "state_of_one": switch(
        "a newcomer starts from the state that a single member vouches for",
        ("download", "        if 2 * count > len(members):", "        if count:"),
    ),
}
