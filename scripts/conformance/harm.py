"""The harm of attackers that search their factor, ours and byzfl's, against the same rules."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import Tensor

from btard.attacks import Collusion, make_attack
from btard.protocol.behaviour import View
from scripts.conformance.inputs import Input
from scripts.conformance.ours import Call, rule

TRIALS = 20
RULES = ("coordinate_median", "trimmed_mean", "krum", "multi_krum", "centered_clip")
SEARCHES = (("alie_search", "Optimal_ALittleIsEnough"), ("ipm_search", "Optimal_InnerProductManipulation"))


def harm(x: Tensor, vector: Tensor, f: int, call: Call) -> float:
    """||F(honest rows `x`, `f` times `vector`) - mean of `x`||."""
    return float((call(torch.cat([x, vector.expand(f, -1)]), f) - x.mean(dim=0)).norm())


def ours(name: str, x: Tensor, f: int, call: Call) -> Tensor:
    """What our attackers send if `call` is the server's rule."""
    h = len(x)
    collusion = Collusion(frozenset(range(h, h + f)), h + f)
    collusion.observe(0, dict(enumerate(x)))
    view = View(0, h, "", [b""], tuple(range(h + f)), rule=lambda rows: call(rows, f))
    return make_attack(name, collusion, trials=TRIALS).gradient(view, x[0])


def harms(given: Sequence[Input]) -> list[dict[str, Any]]:
    """For each attack and rule: the least, median and largest ratio of our harm to theirs, on honest rows."""
    byzfl, lines = import_module("byzfl"), []
    for name, theirs in SEARCHES:
        for chosen in RULES:
            call, ratios = rule(chosen), []
            for item in given:
                if item.name.startswith("hostile"):
                    continue
                search = getattr(byzfl, theirs)(
                    agg=lambda rows, call=call, f=item.f: call(rows, f), pre_agg_list=[], f=item.f, evals=TRIALS
                )
                x = item.x[item.f :]
                sent = ours(name, x, item.f, call), search(x)
                mine, other = (harm(x, vector, item.f, call) for vector in sent)
                ratios.append(mine / other)
            lines.append(
                {
                    "attack": name,
                    "theirs": theirs,
                    "rule": chosen,
                    "least": min(ratios),
                    "median": median(ratios),
                    "most": max(ratios),
                }
            )
    return lines
