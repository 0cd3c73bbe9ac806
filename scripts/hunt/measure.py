"""The measure of the hunt: the CPU time to find each switch, from nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from btard.harness import tables
from btard.harness.progress import Bar
from scripts.hunt import corpus
from scripts.hunt.switches import SWITCHES

COLUMNS = ("switch", "breaks", "found by", ">runs", ">CPU seconds", "commit")


def all_switches(minutes: float, jobs: int, seed: int, out: Path) -> int:
    """Hunt each switch, `jobs` at once, for `minutes` of CPU time at most; write OUT/switches.csv and .md as it goes.

    Each hunt is one process, so that the seed settles its runs, and a busy machine changes nothing. A switch that was
    measured on this commit already is not measured again; the table has the latest measurement of each, of whatever
    commit. Returns 1 if one is missed.
    """
    out.mkdir(parents=True, exist_ok=True)
    file, commit = out / "switches.jsonl", corpus.commit_of_tree()
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {line["switch"]: line for line in lines}
    left = [name for name in SWITCHES if name not in known or known[name]["commit"] != commit]
    done = len(SWITCHES) - len(left)
    with Bar("switches", len(SWITCHES), unit="switches", done=done) as bar, ThreadPoolExecutor(jobs) as pool:
        hunts = {pool.submit(_measured, name, minutes, seed, out): name for name in left}
        try:
            for hunt in as_completed(hunts):
                name = hunts[hunt]
                known[name] = {"commit": commit, "minutes": minutes, **hunt.result()}
                with file.open("a") as sink:
                    sink.write(json.dumps(known[name]) + "\n")
                write(out, known)
                bar.advance(1, f"{name}: {known[name]['found_by'] or 'not found'}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    rows = write(out, known)
    tables.show("switches", COLUMNS, rows)
    print(f"files: {out}/switches.md, switches.csv, switches.jsonl")
    return 1 if any(not line["found_by"] for line in known.values()) else 0


def write(out: Path, known: Mapping[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Write the table of what is `known` of switches to OUT/switches.csv and .md; returns its rows."""
    rows: list[tuple[str, ...]] = []
    for name, switch in SWITCHES.items():
        line = known.get(name)
        if line is None:
            rows.append((name, switch.breaks, "not measured yet", "", "", ""))
            continue
        missed = f"not found in {line['minutes']:g} min"
        cost = str(line["runs"]), f"{line['seconds']:.0f}"
        rows.append((name, switch.breaks, line["found_by"] or missed, *cost, line["commit"]))
    (out / "switches.csv").write_text(tables.csv_text([[column.lstrip(">") for column in COLUMNS], *rows]))
    (out / "switches.md").write_text(tables.markdown(COLUMNS, rows) + "\n")
    return rows


def _measured(name: str, minutes: float, seed: int, out: Path) -> dict[str, Any]:
    """One hunt in its own process, because a switch acts on what is imported."""
    folder = out / "switches" / name
    words = ["--switch", name, "--minutes", str(minutes), "--jobs", "1", "--seed", str(seed), "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.hunt", *words], cwd=corpus.ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise ValueError(f"the hunt for {name} failed: {done.stderr.strip()[-500:]}")
    state = json.loads((folder / corpus.STATE).read_text())
    findings = (folder / corpus.FINDINGS).read_text().splitlines()
    first = json.loads(findings[0]) if findings else None
    return {
        "switch": name,
        "found_by": first["invariant"] if first else "",
        "case": first,
        "runs": state["runs"],
        "seconds": round(state["seconds"], 1),
    }
