"""`torch.distributed.run -m scripts.benchmarks.ranks '{"width": ...}'`: a step of BTARD and one of DDP, in turns.

Each process is one peer of both, with the same network and as many samples; rank 0 prints JSON.
"""

from __future__ import annotations

import datetime
import json
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from btard.drivers.collective import CollectiveDriver
from btard.drivers.mesh import torchrun_mesh
from btard.protocol.config import ProtocolConfig
from resnet.model import resnet18
from scripts.benchmarks.measure import interleaved
from scripts.benchmarks.workloads import BATCH, resnet_task

RATE = 0.001
TIMEOUT = 120


def compared(width: int, side: int, repeats: int) -> dict[str, Any]:
    """Seconds of each step of this rank, of either kind; all ranks call this."""
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT))
    rank, size = dist.get_rank(), dist.get_world_size()
    model = resnet18(width)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(BATCH, 3, side, side, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)

    def plain() -> None:
        optimizer.zero_grad()
        F.cross_entropy(ddp(images), labels).backward()
        optimizer.step()

    task, params = resnet_task(width, side, "cpu", mode="per_peer")
    config = ProtocolConfig(peers=size, byzantine=(size - 2) // 2, run_id="benchmark")
    driver = CollectiveDriver(config, task, torchrun_mesh(TIMEOUT))

    def btard() -> None:
        params.sub_(driver.step(params).gradient, alpha=RATE)

    # Nobody validates in the first step.
    return {"d": task.d, "peers": size, "seconds": interleaved({"ddp": plain, "btard": btard}, repeats, warmup=3)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = compared(**json.loads(sys.argv[1]))
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()
