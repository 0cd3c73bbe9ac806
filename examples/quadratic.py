"""BTARD-SGD (Algorithm 1 of arXiv 2106.11257) on a quadratic: 16 peers without a server, 7 of them hostile.

    pip install .
    python examples/quadratic.py

takes some ten seconds on a CPU. What it prints stands at the end of this file. Every peer runs the whole protocol:
hashes, signatures, the coin, verification, accusations and votes. The names are the paper's:

    n     peers                            x^t    parameters, the same at every honest peer
    b     Byzantine peers at most          xi_i^t the public seed of peer i's batch at step t
    m     validators per step              r^t    the coin: a random string that nobody controls
    tau   clipping radius of CenteredClip  d      number of parameters
"""

from collections.abc import Sequence
from typing import Any

import torch

from btard import (
    AGGREGATORS,
    Collusion,
    Compute,
    LocalDriver,
    ProtocolConfig,
    ServerDriver,
    StepResult,
    make_attack,
    stream,
    survival_law,
)

N, B, M, TAU = 16, 7, 1, 1.0
D, STEPS, ATTACK_FROM, RATE, SEED = 64, 80, 20, 0.1, 0
HOSTILE = frozenset(range(N - B, N))
RUN = f"quadratic/{SEED}"


class Quadratic:
    """f(x) = ||A (x - x*)||^2 / 2 with noisy gradients.

    A task is a size `d` and gradients of public batches. A batch is a function of its seed, here the noise xi: so a
    validator can compute anybody's gradient again, and compare the hash with the one that was committed to.
    """

    d = D

    def __init__(self) -> None:
        # Every random number comes from a named stream: equal names give equal numbers, in every process.
        self.optimum = torch.from_numpy(stream("optimum", SEED).standard_normal(D)).float()
        self.curvature = torch.linspace(0.5, 2.0, D)  # A is diagonal

    def loss(self, x: torch.Tensor) -> float:
        return float((self.curvature * (x - self.optimum)).square().sum() / 2)

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: object) -> None:
        """Write the gradient of each request at `params` [d] into the rows of `out` [len(requests), d]."""
        exact = self.curvature.square() * (params - self.optimum)
        for request, row in zip(requests, out, strict=True):
            noise = stream("noise", request.seed).standard_normal(D, dtype="float32")  # xi_i^t
            row.copy_(exact + 0.1 * torch.from_numpy(noise))


def attackers() -> dict[str, Any]:
    """From step 20 on the hostile peers send -1000 times their gradients."""
    collusion = Collusion(HOSTILE, N, SEED)  # what they share with each other
    attacks = {peer: make_attack("sign_flip", collusion, start=ATTACK_FROM, scale=1000.0) for peer in HOSTILE}
    return {"behaviours": attacks, "collusion": collusion}


def show(result: StepResult, loss: float) -> None:
    """One line per verdict, as it stands in the ledger that all honest peers share."""
    for entry in result.removed:
        judges = sum(vote == entry.verdict for vote in entry.votes.values())
        print(
            f"step {result.step}: loss {loss:9.3g}, peer {entry.accused} is {entry.verdict} of a {entry.kind} in step "
            f"{entry.about_step}; peer {entry.accusers[0]} accused it, {judges} judges agree"
        )


def train(task: Quadratic, driver: LocalDriver | ServerDriver, steps: int) -> tuple[torch.Tensor, StepResult]:
    """SGD with the gradients that the driver's peers agree on; returns x [d] after `steps` >= 1, and the last step."""
    x = torch.zeros(D)
    for _ in range(steps):
        # One step of Algorithm 1 at every peer: compute and commit, exchange parts (ButterflyClip, Algorithm 2), toss
        # the coin r^t, verify the aggregates, validate the targets of the step before, accuse and vote (Algorithm 3).
        result = driver.step(x)
        show(result, task.loss(x))
        x -= RATE * result.gradient
    return x, result


def main() -> None:
    task = Quadratic()
    print(f"The mean at a trusted server: the loss is {task.loss(torch.zeros(D)):.3g} at the start,")
    for steps in (ATTACK_FROM, ATTACK_FROM + 3):
        server = ServerDriver(RUN, N, AGGREGATORS["mean"], task, **attackers())
        x, _ = train(task, server, steps)
        print(f"{task.loss(x):.3g} after {steps} steps")

    print(f"\nBTARD with tau = {TAU:g} and {M} validator per step:")
    config = ProtocolConfig(peers=N, byzantine=B, validators=M, tau=TAU, run_id=RUN)
    driver = LocalDriver(config, task, **attackers())
    x, last = train(task, driver, STEPS)
    print(f"the loss is {task.loss(x):.3g} after {STEPS} steps")
    print("phases of a step:", ", ".join(phase for phase in last.seconds if phase != "gradients"))

    ledgers = {peer.ledger.head for peer in driver.honest}
    banned = {out for peer in driver.honest for entry in peer.ledger.entries for out in entry.peers}
    print(f"{len(banned)} banned, {len(banned - HOSTILE)} of them honest; {len(ledgers)} ledger among all honest peers")

    # How long attackers live depends on the draw of validators alone, not on what they send.
    alive = survival_law(N, B, M, STEPS - ATTACK_FROM) @ range(B + 1)
    print("attackers left 10, 20 and 40 steps after the attack began, by the law:", *alive[[10, 20, 40]].round(1))


if __name__ == "__main__":
    main()

# What it prints:
#
# The mean at a trusted server: the loss is 62.4 at the start,
# 0.874 after 20 steps
# 2.52e+10 after 23 steps
#
# BTARD with tau = 1 and 1 validator per step:
# step 24: loss      1.33, peer 15 is guilty of a wrong_gradient in step 23; peer 7 accused it, 16 judges agree
# step 28: loss      1.74, peer 14 is guilty of a wrong_gradient in step 27; peer 7 accused it, 15 judges agree
# step 31: loss      1.91, peer 11 is guilty of a wrong_gradient in step 30; peer 4 accused it, 14 judges agree
# step 32: loss       1.9, peer 9 is guilty of a wrong_gradient in step 31; peer 7 accused it, 13 judges agree
# step 36: loss      1.45, peer 10 is guilty of a wrong_gradient in step 35; peer 5 accused it, 12 judges agree
# step 47: loss     0.688, peer 13 is guilty of a wrong_gradient in step 46; peer 4 accused it, 11 judges agree
# step 61: loss     0.264, peer 12 is guilty of a wrong_gradient in step 60; peer 1 accused it, 10 judges agree
# the loss is 0.0653 after 80 steps
# phases of a step: compute, commit, part, aggregate, coin_reveal, announce, coin_commit, report, accuse, choose
# 7 banned, 0 of them honest; 1 ledger among all honest peers
# attackers left 10, 20 and 40 steps after the attack began, by the law: 4.5 2.4 0.5
