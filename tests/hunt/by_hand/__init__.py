"""An attack made by hand for each switch of `BLIND`, and for those of `KNOWN` that no written case of the hunt breaks.

`PLAYS[name]()` says which promise it breaks, "" if none. The switches of `BLIND` were made by somebody who did not know
what the hunt can try, and so were their attacks. With all fixes in place
every attack comes to nothing; without the fix of its switch it gets what the switch says.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.hunt.by_hand import along, broadcasts, certificates, crashes, halves, late, newcomers, numbers, trials

PLAYS: dict[str, Callable[[], str]] = {
    play.__name__: play
    for play in (
        trials.removed_accusers,
        trials.lacked_by_one,
        trials.absent_answer,
        trials.unlisted_misreport,
        numbers.counted_twice,
        broadcasts.own_relayer,
        broadcasts.relayed_without_limit,
        broadcasts.any_phase,
        certificates.certificate_of_speakers,
        certificates.certificate_at_any_time,
        certificates.certificate_of_some,
        certificates.certificates_without_a_round,
        along.revealed_at_once,
        along.revealed_without_announcements,
        along.revealed_without_aggregates,
        along.coin_without_faces,
        along.reveals_not_again,
        along.reports_not_again,
        along.parts_once,
        along.unheard_unsure,
        along.told_by_the_unheard,
        late.late_hands,
        crashes.silence_lacks,
        crashes.few_reports,
        crashes.holders_gone,
        crashes.held_by_few,
        newcomers.todays_bound,
        crashes.the_silent_tell,
        late.told_after_eliminations,
        late.other_join_counts,
        along.listeners_guess,
        certificates.certificate_without_the_away,
        trials.any_step,
        trials.unsigned_proof,
        numbers.accused_at_once,
        numbers.nan_reported,
        numbers.radius_of_few,
        numbers.absences_stay,
        numbers.zero_for_lacking,
        numbers.nobody_left_to_work,
        newcomers.told_by_one,
        newcomers.one_checker,
        newcomers.state_of_one,
        halves.two_bodies,
        halves.tiny_halves,
        halves.rounded_tolerance,
        numbers.gone_together,
        numbers.judges_without_truth,
        newcomers.cleared_by_the_gone,
    )
}
