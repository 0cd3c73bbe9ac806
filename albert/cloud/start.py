"""The checkpoint that a swarm starts from: whether it is there, is one, and leaves something to do."""

import json
from urllib.parse import urlparse

from albert.cloud.errors import code_of
from albert.cloud.findings import Finding
from albert.cloud.run import Run
from albert.cloud.sources import unreadable

HEADER = "btard.swarm"
"""The key of a checkpoint's step in its metadata: HEADER of btard/swarm/checkpoint.py, which imports torch."""
HEADER_LIMIT = 256 * 1024
"""Number of bytes that are read; the list of ALBERT-large's tensors has some 10 KB."""


def check_start(run: Run, steps: object) -> list[Finding]:
    """Return whether the machines can start from swarm.start_from and train up to `steps`. Only its header is read."""
    address = run.config.swarm.start_from
    if address is None:
        return []
    place = urlparse(address)
    s3 = run.account.client("s3")
    try:
        answer = s3.get_object(Bucket=place.netloc, Key=place.path.lstrip("/"), Range=f"bytes=0-{HEADER_LIMIT - 1}")
        head = answer["Body"].read()
    except s3.exceptions.ClientError as error:
        if code_of(error) != "InvalidRange":  # an empty object
            return [unreadable("start", "swarm.start_from", address, error)]
        head = b""
    step = step_of(head)
    if step is None:
        advice = "name one that a coordinator has kept: s3://BUCKET/PREFIX/RUN_ID/checkpoints/step-....safetensors"
        return [Finding("stop", "start", f"{address} is no checkpoint of a coordinator", advice)]
    if isinstance(steps, int) and step >= steps:
        advice = "set swarm.options.steps, or take an earlier one"
        return [Finding("stop", "start", f"{address} is of step {step}, and the run has {steps} steps", advice)]
    return [Finding("ok", "start", f"{address}, step {step}")]


def step_of(head: bytes) -> int | None:
    """Return the step of the checkpoint that begins with `head`, None if it is none."""
    size = int.from_bytes(head[:8], "little")
    try:
        content = json.loads(head[8 : 8 + size])
        return int(json.loads(content["__metadata__"][HEADER])["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
