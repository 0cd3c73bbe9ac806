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

from btard.harness.progress import track
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

Honest peers may be away: `a` of them in a step. A peer is away if it is not heard in the step's commit phase.

What is assumed:

- **Synchronous phases.** A message of an honest peer reaches every honest peer before the phase ends. Missing the
  commitment costs an honest peer the step; missing another phase after it counts as silence and costs it its place.
- **Bounds.** Verdicts, and which aggregates count, need more honest members than Byzantine ones: `b < (n - a)/2`, with
  the honest peers counted that are away in the step concerned or in the step of the trial. CenteredClip needs more
  honest rows than Byzantine ones: `b < (n - m - a)/2`. With newcomers on probation one more peer validates. As peers
  are removed, `n` and `b` become what is left of them. The table [Sets that decide](protocol.md#sets-that-decide) has
  all bounds and what happens beyond each.
- **Keys.** Every peer knows every other's public key; nobody can sign for an honest peer; BLAKE3 has no collisions.
- **As many rounds of relays as there are Byzantine peers** (`relays`, the default). Then all honest peers hold the same
  broadcasts after every phase, or proof of who lied.
- **Public batches and recomputation.** Everybody can compute everybody's gradient: to the bit (`validation: exact`), or
  to a calibrated tolerance (`validation: tolerant`).

What is promised within these bounds: no honest peer is convicted; at most one honest peer is lost for each Byzantine
one, and only by ELIMINATE; all honest peers hold the same ledger and the same parameters; what gets into the parameters
is bounded by clipping, and an aggregate that could not be checked does not count. An honest peer that falls silent in
the middle of a step, or is away too often, is removed for that, and the ledger says so.

## What was observed

"Same step" means the first step in which the attacker can act at all: the validators of a step do not work in it. An
option with several values, `a/b/c`, takes them in turn over the seeds. Every run was also checked for the promises
above.
"""

NOT_COVERED = """
## What is not covered

- **Denial of service below the protocol.** A flooded network link, a full disk, a stolen machine: the peer is silent.
- **Wasted work.** Bounded ([the bounds](protocol.md#what-one-peer-can-cost-the-others)), and free of charge for the
  attacker where no rule is broken: junk relays (everybody reads as many bytes as 2 n messages have, per round and
  attacker); wrong digests in comparisons (everybody sends it everything again); the false word that it lacks evidence
  (the holders send it once more); misreports on a fellow's part (V2 puts that part on trial in every step until a
  validator finds the liar, and the part's rows are sent to everybody).
- **ELIMINATE is a trade.** Each Byzantine peer can take one honest peer with it. In the step of a dispute the disputed
  parts of the gradient can be zero, and so is every part whose owner withheld it or vanished: an attacker can pay with
  its place for one step without some of the parts, never for a wrong one.
- **Empty places.** The part of an owner that is away is zero in the step. A Byzantine peer may be away every fourth
  step for ever: each time it costs the others one part of the gradient.
- **The coin can be aborted.** An attacker that does not like the coin stays silent, is removed, and the coin is drawn
  again: each place buys one more draw. No coin of this kind avoids that without an honest majority that can open the
  others' commitments. What the coin decides is worth little: who validates whom, and directions for V2.
- **Stopping the run.** A step needs more than half of the active peers. If honest peers are away and all Byzantine ones
  fall silent too, so that `a + b >= n/2`, the step stops. Nothing wrong is applied, but nothing goes on before some
  return. A smaller quorum would let both halves of a cut network go on.
- **A wrong aggregate within the tolerances.** Below about twelve times k times `residual_tol` V2 does not see it; with
  one direction V2 misses a larger one with small probability (the projection can be near zero by chance). Colluders
  that cook their reports hide one within V3's distance, ten times the size of an honest part and tau, until one of them
  is validated. One that is removed for something else is not validated any more. Raise `directions`, `validators`.
- **Wrong gradients until they are validated.** They are clipped, and undone only with `heal` ([Healing](#healing)).
- **Mode `tolerant`: a target that is away when it is checked** takes its own part with it, and nobody sees those of
  fellows that are away too. A fellow that is there goes as `undelivered` if it shows its part to less than half; who
  shows it to some alone can leave the verdict open. So rows of parts that Byzantine peers own can be wrong without a
  conviction, as far as their reports stay within the tolerance of the whole gradient, and V2 holds the aggregate to
  these reports. Each such absence counts as one: at more than every third step the target is `gone`.
- **Misreports within twice the tolerance** are nobody's fault.
- **More than b, or more honest peers away than the bounds allow.** With `b >= (n - m - a)/2` half of the rows may be
  liars': parts that are far off are skipped, others lie within ten times the size of an honest part and tau of one.
  With `b >= (n - a)/2` liars keep votes undecided. An undecided part is skipped and its owner removed as `undelivered`,
  and an accuser that cannot get a majority goes, honest or not. With a majority of votes Byzantine peers ban whom they
  like.
- **Honest peers that are away.** One that misses a commit phase loses the step and nothing else: it cannot be accused
  of what it would have to answer, it is told what the others agreed on, and gets the aggregates. A wrong gradient of
  the step before is still tried: in mode `exact` hashes decide, in mode `tolerant` what others hold. Misses are counted
  with a leak: `max_absences` steps in a row, or in the long run more than every third one, and it is `gone`. One that
  vanishes after its commitment is `silent`, and out for good.
- **Slow links.** Nobody is convicted of what did not arrive. But an honest owner whose evidence does not reach half of
  the voters in time is removed as `undelivered`. Deadlines provide for all that a phase may have to move, junk of liars
  included, on lines of `deadlines.uplink`; a slower line than that can cost an honest peer its place.
- **`relays` below the number of colluders**, or 0: the honest peers can be split by a message that comes late.
- **Broken clocks and deadlines.** A network that delays honest messages beyond a phase makes honest peers look silent.
- **Sybils.** Keys cost nothing. Who joins pays a probation of validated gradients; without it (`probation: null`)
  nobody joins. Many Sybils that all pay it become members, and then they count.
- **Poisoned public data.** Everybody computes the gradient of whatever the batch holds; a backdoor in the data set is
  trained like any other example.
- **Privacy.** Gradients, parameters and batches are seen by peers, by design.
- **Stolen keys, and honest peers that run twice at the same time.** Two different messages under one key in one phase
  are equivocation, whoever signed them.
- **Runs that go on from a checkpoint.** They repeat steps. Each restart begins a new life, and messages of the one
  before prove nothing. In one process and over torch.distributed that takes a name that no restart from the same
  checkpoint had; without one the old life goes on, and simulated peers draw the same secrets again, so the coins of the
  repeated steps are known beforehand. In a swarm that restarts as a whole, a peer that tells the others different
  nonces can keep the restart from beginning.

### Known to be open

These work against the code as it is:

- **An owner that is away after a fellow's report was cooked for it** escapes the second round of claims.
- **`tau: auto` can be kept from moving**: parts with too few rows do not count, so Byzantine peers that are away in
  turn keep the radius where it is.
- **Three or more faces** of one message can leave a newcomer on probation with another view. It costs their sender its
  place.
- **Probation with n = 3, b = 1, m = 1** (or any cohort that has shrunk so far): where the extra check takes the last
  honest worker, a silent liar stops the run with `NoGradient`.
- **Many keys.** With `probation` on, limits of messages and so deadlines grow with every key that was ever admitted.
- **Swarms: waits.** A member that vouches for a state and then sends it slowly is asked first, and can keep one that
  comes back waiting until the state is outdated. A member that is late in each comparison, and catches up, costs a full
  wait each time. Waits begin anew at each step, so members that are silent to half of the others in its last phase make
  these late for the next roll call.
"""

HEALING = """
## Healing

With `heal` on, the removal of a member may take the run back by up to W steps ([Healing](protocol.md#healing-ours)).
What follows has tests in `tests/protocol/test_heal_attacks.py`.

What holds as long as fewer than half of a step's members are Byzantine:

- **One ledger, one state.** All honest peers go back in the same step, to the same bits, and stay. Nobody is removed
  but who sends two messages or a malformed one. It makes no difference who is away, who was eliminated in the step
  that decides, or that the run was resumed in between; the radius of `tau: auto` goes back too, also at newcomers.
- **Lost work.** Going back undoes at most W + 1 steps: W, and the one that decides. No step is undone twice, but for
  those that newcomers alone have cost. It happens at most once for each step in which members were removed, so at
  most W + 1 steps are lost for each member that is removed, an honest one that fell silent included. It happens only
  where an honest peer found the earlier state better by 3 standard errors, on a batch that nobody knew when the
  removal was decided.
- **Lies.** In mode `exact` no lie and no silence changes the choice, if more than half of the members are honest and
  have the states. In mode `tolerant` liars tip the scales where honest peers do not agree on which side of 0 a bound
  is, and a median lies between two honest losses. A wrong number costs nobody its place.
- **Sacrifices.** Each place buys one choice, on top of those that bans bring about, and costs the others the
  evaluation of ten states. Where training stands still, or a schedule lets the loss rise (a restart of the learning
  rate), an earlier state can really be better, and then up to W + 1 steps go. Of equal states one passes for better
  by chance with 0.13 %, one of eight with at most 1.1 %. Who sees the coin and aborts it has one more batch drawn,
  and is removed: so the next step chooses again, unless this one went back.
- **Sybils.** Who goes on probation triggers nothing. Who has been a member for s steps costs at most s + 1, and does
  not keep a later removal from going back further.

What healing does not do:

- **Nothing without a removal.** Harm stays until somebody is removed. What attackers do in the last steps of a run,
  or have done in the step before a run stops, stays.
- **Nothing older than W, or than the last time the run went back.** Who hits once in many steps is caught after so
  many hits as others, and W holds only the last ones. Who stays away after its hit is `gone` `max_absences` steps
  later: W has to be longer. A removed newcomer's window begins with its membership: fellows of before it are healed
  by their own removals.
- **Nothing that is not clear.** A harm of less than 3 standard errors of the public batch stays, once for each
  removal.
- **Nothing that the public loss does not show.** A back door. A rare class: harm to fewer than nine examples of the
  batch is never clear, however large it is, so classes below 1.8 % are out of sight with 512 examples. The optimizer:
  one huge gradient in Adam's mean of squares makes the steps of a thousand rounds tiny, and no earlier *parameters*
  are better. A small `tau` or `clip_lambda` bounds that.
- **Nothing where honest peers lack the states.** Who has joined or come back less than W steps ago has no say, and
  still counts as a member. If more than half of the members do not have the states, or fall silent, the run goes on
  as it is, and this choice is not made up for. Attackers can wait for such a moment.
"""

SWARM = """
## The swarm

What the runs above leave out: processes on several machines, which find each other through a DHT, can be flooded, and
can be strangers ([swarm.md](swarm.md), [running.md](running.md)). Tests of this are in `tests/albert`.

- **Impersonation.** The key that signs a peer's messages is its libp2p identity: a connection proves who is at its
  other end, whoever carries it. Messages carry signatures besides, over the run's name, step and phase. *Not
  covered:* a stolen `identity.key`. A run with the name and the peers of an earlier one.
- **Strangers at the door.** Each stream begins with a hello of at most 64 KB in 10 s; settings, data, parameters
  and the list of first peers are compared before anything else. A key has 8 streams at once. Only members are
  followed; the banned are refused. *Not covered:* whoever differs is told in what, a stranger, too.
- **Floods by members.** What a peer sends is bounded before it is read: 1 MiB ahead of time, and never more than
  the phase allows. Nothing is unpickled. Who is silent or late costs the others one deadline in each step, until it
  is removed. *Not covered:* that one deadline, for a member that keeps within the rules; on slow lines and after a
  trial it is long.
- **Floods from outside.** What a key makes a peer hold is bounded. *Not covered:* many keys, which cost nothing.
  Nobody limits connections, bandwidth and the DHT's memory; libp2p's daemon closes connections above 512, honest
  ones among them. A firewall with the peers' IPs helps.
- **Sybils at the founding.** `network.founders`: a list of keys that all have agreed on before. *Not covered:*
  without it the first that come are the members, and whoever starts enough trainers first is the majority.
- **Sybils later.** `protocol.probation`: each new identity computes T steps of validated gradients before it
  counts, one newcomer is admitted per step; `null`, the default, lets nobody in. *Not covered:* whoever pays for
  more members than `b` allows. Joining is free of any other test.
- **A hostile coordinator.** It has no vote. The list of first peers is part of what peers compare, so it cannot
  show different lists to different peers. Its checkpoints carry the digest that more than half of the peers have
  signed, and peers take none from it. *Not covered:* without `network.founders` it chooses the first peers. It can
  keep the run from beginning. What it shows is what it wants to show; the peers' own ledgers count. An attack run
  from its checkpoint (`start_from`) takes its parameters on trust: peers only compare that they are the same.
- **Eclipse: lies in the DHT.** Records are signed by the keys that they are about, and expire after two minutes.
  Members are known by key, not by what the DHT says. *Not covered:* records and addresses can be withheld: then a
  peer is not found, the run does not begin, or somebody counts as silent. Several `network.initial_peers` help, if
  not all of them lie.
- **A false state for who comes back or joins.** Nothing of a download is used before its digest is the one that
  more than half of the members have signed, for this key and run. Names, shapes and sizes are known before. *Not
  covered:* who joins late counts the first peers as the members: it trusts that more than half of them are still
  there and honest. Anybody may ask for the state, and makes the members copy it at the next step: parameters are
  public, and asking costs them time.
- **The network's and relays' operators.** Connections are encrypted from end to end, relays' included, and what
  they lose is asked for again. *Not covered:* they see who talks to whom and how much. They can delay and cut: a
  peer is then silent, and two that do not hear each other are both removed. A relay also carries the traffic of
  strangers.
- **A partition.** Who hears no majority stops, and takes the majority's state later. *Not covered:* halves stand
  still. A minority that is away for `max_absences` steps is out.
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
        results = [future.result() for future in track(pending, "threat model", unit="rows")]
    introduction = INTRODUCTION.format(runs=len(ROWS) * options.seeds, seeds=options.seeds)
    options.out.write_text(
        "\n".join([introduction.rstrip("\n"), *table(ROWS, results)]) + "\n" + NOT_COVERED + HEALING + SWARM
    )


if __name__ == "__main__":
    main()
