"""The charts of a page as Vega-Lite specifications. Colours are names such as --away, which the page looks up.

A step can be picked in those over steps: their parameter `at`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from btard.drivers.account import AWAY, IDLE, OUT, PROBATION, VALIDATED, WORKED
from btard.protocol.config import MAX_PEERS
from btard.protocol.heal import HEALED
from btard.watch.folder import Run, number
from btard.watch.story import numbers, roles_of, spans

COLUMNS = 600
"""Maximum number of columns of a chart over steps: in longer runs steps share columns."""
CROSS = "M-1,-1L1,1M-1,1L1,-1"
RAREST = ("", "here", "probation", "away")
"""What a peer can do in a step: of several steps in one column, that which comes last here is shown."""
Spec = dict[str, Any]


def charts_of(run: Run, story: Mapping[str, Any]) -> dict[str, Spec]:
    """Name -> chart, for those for which the run has data."""
    if not run.metrics:
        return {}
    over = _Steps(run)
    found: dict[str, Spec | None] = {
        "loss": _curves(over, run, {"loss": "training loss", "validation_loss": "validation loss"}, "loss"),
        "accuracy": _curves(over, run, {"test_accuracy": "test accuracy"}, "accuracy"),
        "peers": _peers(over, run, story),
        "seconds": _phases(story["totals"], "seconds", "seconds, all steps"),
        "bytes": _phases(story["totals"], "bytes", "bytes sent, all steps"),
    }
    return {name: spec for name, spec in found.items() if spec is not None}


class _Steps:
    """The steps of a run as columns of a chart, `every` steps each."""

    def __init__(self, run: Run) -> None:
        self.first, self.last = run.metrics[0]["step"], run.metrics[-1]["step"]
        self.every = max(1, -(-(self.last - self.first + 1) // COLUMNS))

    def column(self, step: int) -> int:
        """The first step of the column of `step`."""
        return step - (step - self.first) % self.every

    def axis(self, field: str) -> Spec:
        return {
            "field": field,
            "type": "quantitative",
            "scale": {"domain": [self.first - 0.5, self.last + 0.5], "nice": False, "zero": False},
            "axis": {"title": "step", "tickMinStep": 1, "format": "d", "grid": False},
        }


def _spec(description: str, height: Any, layers: Sequence[Spec]) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [{"name": "at", "value": -1}],
        "layer": [*layers],
    }


def _picked() -> Spec:
    """A line at the step that was picked."""
    return {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "color": "--picked", "strokeWidth": 1.5, "strokeDash": [3, 2], "aria": False},
        "encoding": {"x": {"datum": {"expr": "at"}, "type": "quantitative"}},
    }


def _curves(over: _Steps, run: Run, names: Mapping[str, str], title: str) -> Spec | None:
    """Lines of metrics over steps; a column of several steps has the mean of what they have."""
    sums: dict[tuple[str, int], tuple[float, int]] = {}
    for line in run.metrics:
        for name, label in names.items():
            if (value := number(line.get(name))) is not None:
                total, count = sums.get((label, over.column(line["step"])), (0.0, 0))
                sums[label, over.column(line["step"])] = total + value, count + 1
    rows = [{"what": label, "step": step, "value": total / n} for (label, step), (total, n) in sorted(sums.items())]
    if not rows:
        return None
    values = [total / n for total, n in sums.values()]
    logarithmic = title == "loss" and min(values) > 0 and max(values) > 100 * min(values)
    scale: Spec = {"type": "log"} if logarithmic else {"zero": title != "loss"}
    if title == "accuracy":
        scale |= {"domain": [0, 1]}
    removals = [{"step": run.first + e.step, "peers": list(e.peers)} for e in run.entries if e.peers]
    several = len({row["what"] for row in rows}) > 1
    line_: Spec = {
        "data": {"values": rows},
        "mark": {"type": "line", "strokeWidth": 1.6, "point": len(rows) < 60 and {"size": 14}, "aria": False},
        "encoding": {
            "x": over.axis("step"),
            "y": {
                "field": "value",
                "type": "quantitative",
                "scale": scale,
                "axis": {
                    "title": f"{title}{', logarithmic' if logarithmic else ''}",
                    "tickCount": 4,
                    "minExtent": 44,
                    "maxExtent": 44,
                    **({"format": ".0%"} if title == "accuracy" else {}),
                },
            },
            "color": {
                "field": "what",
                "type": "nominal",
                "scale": {"range": ["--line", "--healed"]},
                "legend": {"title": None, "orient": "top"} if several else None,
            },
        },
    }
    if title != "accuracy":
        line_["encoding"]["y"]["axis"]["format"] = "~g"
    rules: Spec = {
        "data": {"values": removals},
        "mark": {"type": "rule", "color": "--removed", "opacity": 0.6, "aria": False},
        "encoding": {"x": over.axis("step"), "tooltip": [{"field": "step"}, {"field": "peers", "title": "removed"}]},
    }
    text = f"{title.capitalize()} over steps {over.first} to {over.last}; a vertical line for each removal."
    return _spec(text, 120, [rules, line_, _picked()])


def _peers(over: _Steps, run: Run, story: Mapping[str, Any]) -> Spec:
    """A row for each peer: a bar while it is here, marks for what happened to it."""
    peers = story["peers"]
    names = {row["peer"]: f"{row['peer']}{'*' if row['attacks'] else ''}" for row in peers}
    bars, marks = _bars(over, run, peers), _marks(over, run)
    for row in (*bars, *marks):
        row["name"] = names.get(row["peer"], str(row["peer"]))
    y = {
        "field": "name",
        "type": "nominal",
        "sort": None,
        "scale": {"domain": [names[row["peer"]] for row in peers], "paddingInner": 0.25},
        "axis": {"title": "peer", "minExtent": 44, "maxExtent": 44, "domain": False, "ticks": False},
    }
    back = [(run.first + e.about_step, run.first + e.step) for e in run.entries if e.kind == HEALED]
    healed = [{"from": to - 0.5, "to": step + 0.5, "text": f"back to {to}"} for to, step in back if to < step]
    x = over.axis("from")
    kinds = ["accused", "removed", "no gradient", "joined", "member"]
    layers: list[Spec] = [
        {
            "data": {"values": healed},
            "mark": {"type": "rect", "color": "--healed", "opacity": 0.25, "aria": False},
            "encoding": {"x": x, "x2": {"field": "to"}, "tooltip": [{"field": "text", "title": "healed"}]},
        },
        {
            "data": {"values": bars},
            "mark": {"type": "bar", "aria": False},
            "encoding": {
                "x": x,
                "x2": {"field": "to"},
                "y": y,
                "color": {
                    "field": "what",
                    "type": "nominal",
                    "scale": {"domain": ["here", "probation", "away"], "range": ["--worked", "--probation", "--away"]},
                    "legend": None,
                },
            },
        },
        {
            "data": {"values": [row for row in marks if row["what"] == "validated"]},
            "mark": {"type": "tick", "color": "--validated", "thickness": 2, "bandSize": 9, "aria": False},
            "encoding": {"x": over.axis("step"), "y": y},
        },
        {
            "data": {"values": [row for row in marks if row["what"] != "validated"]},
            "mark": {"type": "point", "filled": False, "strokeWidth": 2.5, "size": 90, "aria": False},
            "encoding": {
                "x": over.axis("step"),
                "y": y,
                "shape": {
                    "field": "what",
                    "type": "nominal",
                    "scale": {"domain": kinds, "range": ["triangle-up", CROSS, "circle", "square", "diamond"]},
                    "legend": None,
                },
                "stroke": {
                    "field": "what",
                    "type": "nominal",
                    "scale": {
                        "domain": kinds,
                        "range": ["--accused", "--removed", "--away", "--healed", "--healed"],
                    },
                    "legend": None,
                },
                "tooltip": [{"field": "what"}, {"field": "peer"}, {"field": "step"}],
            },
        },
        _picked(),
    ]
    gone = sum(row["removed"] is not None for row in peers)
    text = (
        f"{len(peers)} peers over steps {over.first} to {over.last}; {gone} were removed. The lists below say it, too."
    )
    spec = _spec(text, {"step": 20 if len(peers) <= 20 else 14}, layers)
    return spec | {"resolve": {"scale": {"color": "independent"}}}


def _bars(over: _Steps, run: Run, peers: Sequence[Mapping[str, Any]]) -> list[Spec]:
    """Where each peer is: stretches of steps."""
    told = [line for line in run.metrics if roles_of(line)]
    if not told:  # then all that is known is until when it was in the run
        return [
            {"peer": row["peer"], "what": "here", "from": over.first - 0.5, "to": (row["removed"] or over.last) + 0.5}
            for row in peers
        ]
    ranks = {OUT: 0, WORKED: 1, VALIDATED: 1, IDLE: 1, PROBATION: 2, AWAY: 3}
    rank_of = bytes(ranks.get(chr(letter), 0) for letter in range(256))
    columns: dict[int, np.ndarray] = {}
    for line in told:
        column = columns.setdefault(over.column(line["step"]), np.zeros(MAX_PEERS, np.uint8))
        seen = np.frombuffer(roles_of(line).encode().translate(rank_of), np.uint8)
        np.maximum(column[: len(seen)], seen, out=column[: len(seen)])
    steps, found = sorted(columns), []
    for row in peers:
        peer = row["peer"]
        for first, last, state in spans(steps, [RAREST[columns[column][peer]] for column in steps]):
            if state:
                end = last + over.every - 0.5
                found.append({"peer": peer, "what": state, "from": first - 0.5, "to": min(end, over.last + 0.5)})
    return found


def _marks(over: _Steps, run: Run) -> list[Spec]:
    """What happened to a peer in one step; if several steps share a column, once in it."""
    found = {
        (over.column(line["step"]) if over.every > 1 else line["step"], peer, what)
        for line in run.metrics
        for peer, letter in enumerate(roles_of(line))
        if (what := {VALIDATED: "validated", IDLE: "no gradient"}.get(letter))
    }
    for line in run.metrics:
        found |= {(line["step"], peer, "accused") for peer in numbers(line.get("accused"))}
    for entry in run.entries:
        step = run.first + entry.step
        found |= {(step, peer, "removed") for peer in entry.peers}
        if entry.kind in ("join", "member"):
            found.add((step, entry.accused, "joined" if entry.kind == "join" else "member"))
        elif entry.accused >= 0 and entry.kind not in ("silent", "gone"):
            found.add((step, entry.accused, "accused"))
    known = {*range(run.peers), *(entry.accused for entry in run.entries if entry.kind == "join")}
    return [{"step": s, "peer": p, "what": what} for s, p, what in sorted(found) if p in known]


def _phases(totals: Sequence[Mapping[str, Any]], name: str, title: str) -> Spec | None:
    rows = [{"phase": row["phase"], "value": row[name]} for row in totals if row[name]]
    if not rows:
        return None
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": f"{title}, by phase: " + ", ".join(f"{row['phase']} {row['value']:.3g}" for row in rows),
        "width": "container",
        "height": {"step": 18},
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": rows},
        "mark": {"type": "bar", "color": "--line", "aria": False},
        "encoding": {
            "y": {"field": "phase", "type": "nominal", "sort": None, "axis": {"title": None, "domain": False}},
            "x": {"field": "value", "type": "quantitative", "axis": {"title": title, "format": "~s", "tickCount": 4}},
            "tooltip": [{"field": "phase"}, {"field": "value", "format": ",.4~f"}],
        },
    }
