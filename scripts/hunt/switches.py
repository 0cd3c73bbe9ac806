"""The fixed breaks of the protocol, each as an edit of its source that removes the fix: the measure of the hunt.

Each names the promise that it breaks. Those of `BLIND` are a hold-out.
"""

from __future__ import annotations

from scripts.hunt.blind import BLIND
from scripts.hunt.edits import switch

KNOWN = {
    "coin_speakers": switch(
        "a peer that missed the roll call speaks in the coin, withholds its reveal, and is not held to it",
        ("record", 'if self.phase == "commit" else self.members', 'if self.phase == "commit" else self._speaking'),
        (
            "record",
            "    def committed(self, me: int)",
            "    @property\n    def _speaking(self) -> tuple[int, ...]:\n"
            '        return self.remaining if self.phase.startswith("coin") else self.members\n\n'
            "    def committed(self, me: int)",
        ),
    ),
    "coin_reveals": switch(
        "a peer that does not reveal stays, and the coin is tossed until it likes it",
        ("coin", "reveals, CoinReveal, expected=record.members)", "reveals, CoinReveal, expected=())"),
        ("coin", "heard, CoinReveal, expected=record.members)", "heard, CoinReveal, expected=())"),
    ),
    "evidence_of_some": switch(
        "mode tolerant: what an accused shows to some judges alone costs its honest accuser the place",
        ("claims", '"undisclosed", False, False', '"undisclosed", False, True'),
        (
            "claims",
            "        shows = tried.record.attends(tried.claim.accused)\n",
            "        return false_accusation(tried)\n",
        ),
    ),
    "evidence_not_passed_on": switch(
        "an owner that hides honest peers' pieces has them removed as undelivered",
        (
            "trial",
            '    came = yield from seat.send(record, f"pass/{attempt}", outgoing, limit=limit, load=load)',
            '    came = yield from seat.send(record, f"pass/{attempt}", {}, limit=limit, load=load)',
        ),
    ),
    "undecided_counts": switch(
        "votes of absent peers count against a verdict, and an aggregate without a verdict is applied",
        (
            "accuse",
            "accusers, unseen), cast, enough)",
            "accusers, unseen), cast, len(record.active) // 2)",
        ),
        (
            "accuse",
            "if kind.about_part and about is record and decided != FALSE_CLAIM:",
            "if kind.about_part and about is record and decided == GUILTY:",
        ),
        (
            "claims",
            "            return NOTHING\n        return undelivered(",
            "            return NOTHING\n        return NOTHING or undelivered(",
        ),
    ),
    "voters_of_this_step": switch(
        "peers that were away in the step in question, and cannot judge it, count as voters on it",
        ("accuse", "voters = votes.keys() & set(about.here or ())", "voters = votes.keys() & set(votes)"),
    ),
    "silent_voters": switch(
        "members that do not vote count as voters: an honest one that falls silent, and a liar, leave it undecided",
        (
            "accuse",
            "voters = votes.keys() & set(about.here or ())",
            "voters = {*record.active} & {*(about.here or ())}",
        ),
        ("accuse", "for judge in sorted(voters)}", "for judge in sorted(voters & votes.keys())}"),
    ),
    "residual_decides": switch(
        "a residual without a floor decides where bits could: denormals convict honest owners",
        ("verify", "    same = right.dtype", "    same = False and right.dtype"),
        ("verify", '    if config.validation == "exact":\n        return False\n', ""),
        ("verify", "max(margin * config.residual_tol, floor)", "margin * config.residual_tol"),
        ("verify", "QUANTUM = 2.0**-149", "QUANTUM = 0.0"),
    ),
    "no_epoch": switch(
        "messages of a former life prove equivocation in the present one",
        (
            "record",
            "msgspec.msgpack.encode(to_json(self, Start)",
            'msgspec.msgpack.encode({**to_json(self, Start), "epoch": ""}',
        ),
    ),
    "anybody_accuses": switch(
        "anybody may accuse anybody of its gradient: one peer makes all others recompute without bound",
        ("claims", "duty = record.assignments.get(accuser) == claim.accused", "duty = True"),
    ),
    "absent_tried": switch(
        "an owner that is away is tried for its aggregate of the step before, and cannot show its evidence",
        (
            "claims",
            "        if not tried.record.attends(tried.claim.accused):\n            return NOTHING",
            "        if False:\n            return NOTHING",
        ),
    ),
    "absent_target": switch(
        "mode tolerant: a target that is away in the step in which it has to show its work is removed",
        ("record", "        if now.attends(peer):\n", "        if True:\n"),
        ("validate", "if hidden and record.attends(target):", "if hidden:"),
        ("claims", "        shows = tried.record.attends(tried.claim.accused)\n", "        shows = True\n"),
    ),
    "v3_by_majority": switch(
        "V3 waits for more than half of the senders: where half of the rows are liars', any vector is applied",
        ("verify", "return far >= max(1, len(senders) - record.byzantine)", "return 2 * far > len(senders)"),
    ),
    "largest_counts": switch(
        "V2 and V3 go by the largest reported number, which is a liar's",
        ("verify", "rank = min(self.byzantine, len(values) - 1)", "rank = 0"),
    ),
    "liars_part": switch(
        "a part that went out of Byzantine workers' rows alone is applied",
        ("recover", "        if len(tally.senders(part)) <= record.byzantine:\n", "        if not entry.senders:\n"),
    ),
    "far_off_half": switch(
        "a part that is far off is applied for being the right one of rows of which half are liars'",
        ("accuse", "if len(senders) <= 2 * record.byzantine and v3", "if not senders and v3"),
    ),
    "silence_proves": switch(
        "an honest peer that fell silent counts as a Byzantine one that is gone, and b_t is too small",
        ("ledger", 'UNPROVEN = frozenset({"silent", "gone", "undelivered"})', 'UNPROVEN = frozenset({"gone"})'),
    ),
    "global_commitments": switch(
        "another cohort in the same process changes how this one commits",
        ("commitments", "class Commitments(ABC):", "CURRENT: list[Any] = []\n\n\nclass Commitments(ABC):"),
        ("commitments", "from threading import Lock\n", "from threading import Lock\nfrom typing import Any\n"),
        (
            "commitments",
            "            return self.of_tensor((kind",
            "            return (CURRENT or [self])[-1].of_tensor((kind",
        ),
        ("commitments", "        self._lock = Lock()", "        self._lock = Lock()\n        CURRENT.append(self)"),
    ),
    "relays_too_few": switch(
        "one round of relays too few: colluders split the honest peers",
        (
            "config",
            "return self.byzantine if self.relays is None",
            "return max(0, self.byzantine - 1) if self.relays is None",
        ),
    ),
    "certificate_of_speakers": switch(
        "a peer that says nothing in a phase by its role need not have heard what the others have",
        ("certificate", "    count = (1,) if record.here is None else (0, 1)\n", "    count = (1,)\n"),
    ),
    "certificate_at_any_time": switch(
        "a certificate counts whenever it is shown: colluders keep one peer to what it heard, and no other",
        ("certificate", "if not round <= len(hands) == len(set(hands))", "if not len(hands) == len(set(hands))"),
    ),
    "certificate_of_some": switch(
        "a certificate counts without the signatures of all members",
        ("certificate", "held.signers != tuple(needed) or len(held.signatures) != len(needed)", "not held.signers"),
        ("certificate", "zip(needed, held.signatures, strict=True)", "zip(held.signers, held.signatures)"),
    ),
    "certificates_without_a_round": switch(
        "certificates have no more rounds than messages: what one peer accepts in the last, it can tell nobody",
        ("broadcast", "    for round in range(1, rounds + 2):\n", "    for round in range(1, rounds + 1):\n"),
    ),
    "revealed_at_once": switch(
        "a peer reveals before it has the commitments of all: a liar commits when it knows what all others reveal",
        ("coin", " and commits.keys() >= set(members)\n", "\n"),
    ),
    "revealed_without_announcements": switch(
        "a peer reveals before it has all announcements: an owner announces when it knows the coin",
        ("coin", " and came.announces.keys() >= {*record.workers, *announced.direct.said}", ""),
    ),
    "revealed_without_aggregates": switch(
        "a peer that lacks an aggregate reveals, and does not say so: it cannot report on the part, and is removed",
        ("coin", "missing=came.missing, said=heard_all", "said=heard_all"),
    ),
    "revealed_despite_junk": switch(
        "a peer reveals though a validator has announced junk: liars choose between the coin without it and another",
        ("coin", "{*record.workers, *announced.direct.said}", "set(record.workers)"),
    ),
    "coin_without_faces": switch(
        "who shows a second commitment once it knows the coin falls out, and the others' coin counts: liars choose",
        ("coin", "    if not certified and record.members != members:", "    if False and members:"),
    ),
    "reveals_not_again": switch(
        "what was revealed along with a comparison counts without a certificate: who waited is removed as silent",
        ("coin", "    if certified and record.members == members:\n", "    if record.members == members:\n"),
    ),
    "reports_not_again": switch(
        "what was reported along with a comparison counts without a certificate: who lacked a reveal is removed",
        ("report", "(first and tossed.reveals.certified)", "first"),
    ),
    "parts_once": switch(
        "who had not heard an owner in the roll call does not send it its part: two honest peers go together",
        ("exchange", "    if not said.heard.certified:\n", "    if False:\n"),
    ),
    "listeners_guess": switch(
        "newcomers are not told that what was said along with a comparison is void: they are in another phase",
        ("broadcast", "told = listeners if proof is None else [p for", "told = [p for"),
    ),
    "certificate_without_the_away": switch(
        "who says nothing in the roll call is not told what the members have a certificate of",
        ("broadcast", "if calling:  #", "if calling and False:  #"),
    ),
    "unheard_unsure": switch(
        "an honest peer that nobody else has heard in the roll call is told so, and does not listen",
        ("broadcast", "unsure = calling and proof is None", "unsure = False"),
    ),
    "told_by_the_unheard": switch(
        "an honest peer that nobody else has heard in the roll call tells one that is away its own view",
        ("broadcast", "enough = max(least, half) if calling else min(least, half)", "enough = min(least, half)"),
    ),
    "told_after_eliminations": switch(
        "a peer that listens takes what more than b_t members tell, also when eliminations have left fewer honest ones",
        (
            "broadcast",
            "enough = max(least, half) if calling else min(least, half)",
            "enough = max(least, half) if calling else least",
        ),
    ),
    "late_hands": switch(
        "up to the roll call messages are relayed in b_t rounds, though a late peer's hand reaches some peers alone",
        ("broadcast", "        rounds = max(rounds, min(rounds, record.byzantine) + late)\n", "        pass\n"),
    ),
    "other_join_counts": switch(
        "an honest peer that was late in join, and agreed on something else there, works by another list of peers",
        ("commit", "if said.after == self.after}", "if True}"),
    ),
    "one_face": switch(
        "of two messages of one sender the first alone is kept, another one at every peer",
        ("limits", "FACES = 2", "FACES = 1"),
    ),
    "unheld_counts": switch(
        "an aggregate that hardly any honest peer holds counts: honest peers apply different ones",
        ("record", "return part not in self.unheld", "return True"),
    ),
    "silence_lacks": switch(
        "peers that are silent at the reveal lack all aggregates: by a crash and silent liars none is checked",
        (
            "coin",
            "2 * lacking[part] >= len(said)",
            "2 * (len(record.here or ()) - len(said) + lacking[part]) >= len(record.here or ())",
        ),
        ("recover", "record.skipped |= record.unheld", "record.skipped |= record.unheld if record.missing else set()"),
    ),
    "few_reports": switch(
        "a part of more rows than liars counts, though the honest workers fell silent before they reported on it",
        ("recover", "if len(tally.senders(part)) <= record.byzantine:", "if len(entry.senders) <= record.byzantine:"),
    ),
    "holders_gone": switch(
        "a part counts whose honest holders fell silent before they passed it on: liars alone have it",
        ("recover", "len(members) - lacking[part] <= record.byzantine}", "False}"),
    ),
    "held_by_few": switch(
        "a report on a part of which too few holders are left convicts: only some honest judges know the truth",
        ("recover", "record.unheld |= {", "record.skipped |= {"),
    ),
    "todays_bound": switch(
        "newcomers that came since raise the number of votes that a verdict takes, and have none: it is out of reach",
        ("accuse", "liars = min(left, about.byzantine)", "liars = left"),
    ),
    "the_silent_tell": switch(
        "members that just fell silent count among those that tell a listener: it is told nothing, and is elsewhere",
        ("broadcast", "if calling else min(least, half)", "if calling else half"),
    ),
    "eliminates_many": switch(
        "one Byzantine peer takes several honest ones with it",
        (
            "accuse",
            "if claim.accused not in record.expelled and accuser not in record.expelled:\n                pair",
            "if claim.accused not in record.expelled:\n                pair",
        ),
    ),
    "late_checks": switch(
        "a validator that is late with its gradient clears a newcomer that it has not checked",
        (
            "validate",
            "not is_finite(gradient):\n        return unchecked\n",
            "not is_finite(gradient):\n        return []\n",
        ),
    ),
    "byzantine_majority": switch(
        "b_t is half of the peers that are left, or more: they skip all parts, and honest newcomers stay out",
        ("ledger", "min(config.byzantine - proven, minority)", "config.byzantine - proven"),
    ),
    "away_when_checked": switch(
        "mode tolerant: a newcomer that is away whenever it is checked is cleared by validators that saw nothing",
        ("validate", "    if not owed:\n        return unchecked\n", "    if not owed:\n        return []\n"),
    ),
    "clearing_chooses": switch(
        "a validator that knows the coin chooses between two draws by clearing a newcomer or not",
        ("peer", "p in (record.here or ()))\n", "p in (record.here or ()) or p in graduates)\n"),
    ),
    "uncovered_whole": switch(
        "a convicted report with one wrong part uncovers no owner of the other parts that it covered",
        (
            "accuse",
            "        true = gradient_report(seat, about, about.aggregates, target, work.gradient)\n",
            "        if exact and work.unseen:\n            continue\n"
            "        true = gradient_report(seat, about, about.aggregates, target, work.gradient)\n",
        ),
    ),
    "overlooked_whole": switch(
        "an owner that is away is not convicted by a reporter whose gradient was wrong in another part",
        (
            "claims",
            "true_parts[part] != about.commits[reporter].digests[part]",
            "true_parts != about.commits[reporter].digests",
        ),
    ),
    "healing_by_one": switch(
        "one liar has the others go back to an earlier state, whatever they found",
        (
            "heal",
            "if 2 * found > len(members)]",
            "if found]",
        ),
    ),
    "gone_together": switch(
        "all honest peers, late together or without a finite gradient, are gone, and liars that commit to junk stay",
        ("commit", "    if record.honest_work:\n", "    if True:\n"),
        ("join", "        elif record.honest_work:", "        elif True:"),
    ),
    "cleared_by_the_gone": switch(
        "liars that leave after they have cleared a newcomer count along with those that come after them",
        ("join", "cleared.intersection(record.remaining)) >= checks", "cleared) >= checks"),
    ),
    "tiny_halves": switch(
        "float16: where rounding is absolute, next to nothing puts honest parts on trial and convicts their owners",
        ("half", "QUANTUM = 2.0**-124", "QUANTUM = 0.0"),
    ),
    "rounded_tolerance": switch(
        "float16 in mode tolerant: a tolerance that is right for gradients in float32 convicts honest peers",
        ("config", "ROUNDED_APART = 2.0**-10", "ROUNDED_APART = 0.0"),
    ),
    "judges_without_truth": switch(
        "mode tolerant: if no honest judge can compute the gradient on trial, an honest accuser or target is removed",
        ("accuse", "recomputes and unable > liars and", "recomputes and False and"),
    ),
    "two_bodies": switch(
        "float16: a second body for the same values, which nobody can pass on once it was announced",
        ("half", "    if k == 0 and math.copysign(1.0, k) < 0:", "    if False:"),
    ),
}

SWITCHES = {**KNOWN, **BLIND}
