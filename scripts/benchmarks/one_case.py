"""`python -m scripts.benchmarks.one_case '{"kind": ...}'`: one case of `scale` in a process of its own; prints JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from btard.drivers.local import LocalDriver
from btard.protocol.config import ProtocolConfig
from btard.protocol.memory import Memory
from resnet.model import resnet18
from scripts.benchmarks.measure import memory, release, timed
from scripts.benchmarks.workloads import BATCH, PEERS, PreparedTask, resnet_task
from scripts.traffic import tensors

STEPS = 3
"""Number of steps of the cases that measure only memory: by then all buffers exist."""


def step_case(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the last steps, bytes of the last one, without attack, on prepared gradients."""
    n, d, device = case["n"], case["d"], case["device"]
    config = ProtocolConfig(peers=n, byzantine=case.get("byzantine", 0), run_id="benchmark")
    driver = LocalDriver(config, PreparedTask(d, n, device), memory=Memory(remembers=not case.get("own")))
    params, seconds = torch.zeros(d, device=device), []
    for _ in range(case["steps"]):
        result, spent = timed(partial(driver.step, params), device)
        seconds.append(spent)
    sent = sum(result.sent.values()) / n
    # Nobody validates in the first step.
    return {"seconds": seconds[1:], "sent": sent, "remainder": sent - tensors(n, len(result.workers), d)}


def training_case(case: dict[str, Any]) -> dict[str, Any]:
    """A plain training loop of one peer: parameters, gradients, activations of its samples."""
    model = resnet18(case["width"]).to(case["device"])
    images = torch.randn(BATCH, 3, case["side"], case["side"], device=case["device"])
    labels = torch.zeros(BATCH, dtype=torch.int64, device=case["device"])
    for _ in range(STEPS):
        torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    return {}


def driver_case(case: dict[str, Any]) -> dict[str, Any]:
    """Steps of the local driver with real gradients."""
    task, params = resnet_task(case["width"], case["side"], case["device"])
    driver = LocalDriver(ProtocolConfig(peers=PEERS, byzantine=7, run_id="benchmark"), task)
    for _ in range(STEPS):
        params.sub_(driver.step(params).gradient, alpha=0.001)
    return {"n": PEERS, "d": task.d}


CASES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "step": step_case,
    "training memory": training_case,
    "driver memory": driver_case,
}


def result_of(case: dict[str, Any]) -> dict[str, Any]:
    """`case` with what was measured, and the peak of the memory beyond what was there before."""
    release(case["device"])
    cuda = case["device"] != "cpu"
    torch.zeros(1, device=case["device"])  # an accelerator's context is not part of any case
    before = 0 if cuda else memory("VmRSS")
    result = CASES[case["kind"]](case)
    peak = torch.cuda.max_memory_allocated() if cuda else memory("VmHWM")
    return {**case, **result, "memory": peak - before}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(result_of(json.loads(sys.argv[1]))))
