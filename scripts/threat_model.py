"""`python -m scripts.threat_model --out docs/threat-model.md`: the threat model, with what each behaviour came to.

Runs every row of the acceptance matrix (`tests/protocol/matrix.py`) over its seeds and stops at the first one that does
not come out as promised. Takes some minutes on 2 CPU cores; the same seeds give the same text.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from tests.protocol.matrix import ROWS, SEEDS, Row, observe, summary

INTRODUCTION = """\
# Threat model

Made by `python -m scripts.threat_model --out docs/threat-model.md` from {runs} runs of small cohorts ({seeds} seeds for
each row): what is assumed, what Byzantine peers do, what must come of it and what did, and what is not covered. How the
protocol works is in [protocol.md](protocol.md), what each attack does in [attacks.md](attacks.md).

## The adversary

Up to `b < (n - m)/2` of the `n` peers are Byzantine (`m` validators per step, 1 by default). They collude, know
everything that any of them knows and every honest gradient of the step, speak last in every phase, and send anything or
nothing: to some peers and not to others, in any phase, in any form.

What is assumed:

- **Synchronous phases.** A message of an honest peer reaches every honest peer before the phase ends. Missing the
  commitment costs an honest peer the step; missing another phase counts as silence and costs it its place.
- **An honest majority**, of the active peers (votes, who holds an aggregate) and of the workers of a step (V3). With
  `b < (n - m)/2` both follow as long as the honest workers are in time: where slow ones leave the Byzantine a majority
  of those who committed, V3 hears a hostile majority in that step.
- **Keys.** Every peer knows every other's public key; nobody can sign for an honest peer; BLAKE3 has no collisions.
- **As many rounds of relays as there are Byzantine peers** (`relays`, the default). Then all honest peers hold the same
  broadcasts after every phase, or proof of who lied.
- **Public batches and recomputation.** Everybody can compute everybody's gradient: to the bit (`validation: exact`), or
  to a calibrated tolerance (`validation: tolerant`).

What is promised in every run: no honest peer is banned; at most one honest peer is lost for each Byzantine one, and
only by ELIMINATE; all honest peers hold the same ledger and the same parameters; what gets into the parameters is
bounded by clipping, and an aggregate that could not be checked does not count.

## What was observed

"Same step" means the first step in which the attacker can act at all: the validators of a step do not work in it. An
option with several values, `a/b/c`, takes them in turn over the seeds. Every run was also checked for the promises
above.
"""

NOT_COVERED = """
## What is not covered

- **Denial of service below the protocol.** A flooded network link, a full disk, a stolen machine: the peer is silent.
- **Wasted work.** Bounded, and free of charge for the attacker where no rule is broken: junk relays (everybody reads as
  many bytes as 2 n messages have, per round and attacker), wrong digests in comparisons (everybody sends it everything
  again), misreports on a fellow's part (V2 calls for a trial of that part in every step until a validator finds the
  liar), accusations that turn out excused, accusations of peers that fell out already (one more round each).
- **ELIMINATE is a trade.** Each Byzantine peer can take one honest peer with it. In the step of a dispute the disputed
  parts of the gradient are zero, and so is every part whose owner withheld it or vanished: an attacker can pay with its
  place for one step without some of the parts, never for a wrong one.
- **The coin can be aborted.** An attacker that does not like the coin stays silent, is removed, and the coin is drawn
  again: each place buys one more draw. No coin of this kind avoids that without an honest majority that can open the
  others' commitments. What the coin decides is worth little: who validates whom, and directions for V2.
- **A wrong aggregate within the tolerances.** Below about twelve times k times `residual_tol` V2 does not see it; with
  one direction V2 misses a larger one with small probability (the projection can be near zero by chance), and colluders
  hide one within `delta_max` until one of them is validated. Raise `directions`, `validators`.
- **Wrong gradients until they are validated.** They are clipped, not undone.
- **Misreports within twice the tolerance** are nobody's fault.
- **More than b.** With a majority of votes Byzantine peers ban whom they like. With `b` between `(n - m)/2` and `n/2`
  V3 can tie and an aggregate can be held by Byzantine peers alone; the configuration warns.
- **`relays` below the number of colluders**, or 0: the honest peers can be split by a message that comes late.
- **Broken clocks and deadlines.** A network that delays honest messages beyond a phase makes honest peers look silent.
- **Sybils.** Keys cost nothing. Who joins pays a probation of validated gradients; without it (`probation: null`)
  nobody joins. Many Sybils that all pay it become members, and then they count.
- **Poisoned public data.** Everybody computes the gradient of whatever the batch holds; a backdoor in the data set is
  trained like any other example.
- **Privacy.** Gradients, parameters and batches are seen by peers, by design.
- **Stolen keys, and honest peers that run twice.** Two different messages under one key are equivocation, whoever
  signed them.
"""


def promised(row: Row) -> str:
    """The row's line of the table up to what was observed."""
    return f"| `{row.label}` | {row.who} | {row.expected}"


def observed(row: Row, seeds: int) -> str:
    """What came of it over all seeds. Errors: AssertionError where it is not what was promised."""
    torch.set_num_threads(1)
    return summary(row, [observe(row, seed) for seed in range(seeds)])


def table(rows: Sequence[Row], results: Sequence[str]) -> Iterator[str]:
    """Markdown: one table per section, in the order of the matrix."""
    section = ""
    for row, result in zip(rows, results, strict=True):
        if row.section != section:
            section = row.section
            yield f"\n### {section}\n"
            yield "| behaviour | attackers | what must happen | what did |"
            yield "| --- | --- | --- | --- |"
        yield f"{promised(row)} | {result} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs per row")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes) as pool:
        pending = [pool.submit(observed, row, options.seeds) for row in ROWS]
        results = [future.result() for future in tqdm(pending, unit="row")]
    introduction = INTRODUCTION.format(runs=len(ROWS) * options.seeds, seeds=options.seeds)
    options.out.write_text("\n".join([introduction.rstrip("\n"), *table(ROWS, results)]) + "\n" + NOT_COVERED)


if __name__ == "__main__":
    main()
