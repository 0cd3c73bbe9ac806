"""The names of the attacks in the order of `btard.attacks.registry`, which has their classes and imports torch.

A command line is checked by these; a test compares the two.
"""

GRADIENT = (
    "sign_flip",
    "random_direction",
    "label_flip",
    "delayed_gradient",
    "ipm",
    "alie",
    "noise",
    "zero",
    "copy",
    "min_max",
    "min_sum",
    "rop",
    "blind_spot",
    "alie_search",
    "ipm_search",
    "mimic",
)
"""Attacks on gradients."""
PROTOCOL = (
    "wrong_aggregate",
    "unproven_aggregate",
    "colluding_aggregate",
    "late_aggregate",
    "favoured_holder",
    "sole_sender",
    "vanishing_aggregator",
    "misreport",
    "cancelling_lies",
    "false_accusation",
    "false_evidence",
    "lying_votes",
    "never_accuse",
    "non_finite",
    "bad_part",
    "withheld_part",
    "bad_aggregate",
    "withheld_aggregate",
    "silent",
    "crash",
    "selective_silence",
    "no_certificate",
    "equivocate",
    "late_reveal",
    "wrong_reveal",
    "replay",
    "forgery",
    "garbage",
    "malformed_message",
    "junk_relays",
    "healing_lies",
    "hit_and_run",
)
"""Attacks on the protocol itself."""
