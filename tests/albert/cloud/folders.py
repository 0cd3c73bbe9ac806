"""What a coordinator leaves in the bucket: status, checkpoints, and the summary at the end."""

import json
import time
from typing import Any

from tests.albert.cloud.conftest import Cloud


def peer(number: int, **changes: object) -> dict[str, object]:
    """A peer of a status.json, last heard of ten minutes ago."""
    seen = time.time() - 615
    whole = {"peer": number, "peer_id": f"12D3{number}", "instance": None, "step": 1041, "last_seen": seen}
    return whole | {"active": True, "banned": None} | changes


def record(peers: list[dict[str, object]], **changes: object) -> str:
    """A status.json."""
    whole = {"run_id": "small", "step": 1042, "time": time.time() - 5, "steps_per_hour": 52.4, "peers": peers}
    return json.dumps(whole | changes)


def checkpoint(step: int, key: str = "btard.swarm") -> bytes:
    """The beginning of a checkpoint, as safetensors writes it, and some bytes."""
    header = json.dumps({"__metadata__": {key: json.dumps({"step": step, "digest": "0f", "confirmed_by": [0]})}})
    return len(header).to_bytes(8, "little") + header.encode() + b"\0" * 100


def put(cloud: Cloud, name: str, content: str | bytes, run_id: str = "small") -> None:
    """Write a file of a run folder into the bucket."""
    body: Any = content.encode() if isinstance(content, str) else content
    cloud.client("s3").put_object(Bucket="results", Key=f"btard/{run_id}/{name}", Body=body)
