"""The swarm's own records: what the coordinator writes into status.json, read from S3 or from the machine itself."""

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from albert.cloud.errors import CloudError, unless
from albert.cloud.machines import Machine
from albert.cloud.remote import run_on
from albert.cloud.run import Run

FILE = "status.json"
SUMMARY = "summary.json"
"""The file that the coordinator writes and copies last: then the run has finished, and all of it is there."""
FOUNDERS = "swarm.json"
"""The file with the first peers. A coordinator that finds it continues with them, and with nobody else."""


@dataclass(frozen=True)
class Peer:
    """A peer as the coordinator knows it; times in seconds since 1970."""

    number: int
    peer_id: str | None
    instance: str | None
    step: int | None
    last_seen: float | None
    active: bool
    banned: str | None
    """Why it was banned, None if it was not."""


@dataclass(frozen=True)
class Record:
    """What the coordinator last wrote."""

    step: int
    steps: int | None
    """The planned number of peers; None in records that do not say."""
    time: float
    steps_per_hour: float | None
    peers: tuple[Peer, ...]


def read_record(run: Run, coordinator: Machine | None) -> Record | None:
    """Return what the coordinator last wrote, None if it has written nothing yet or cannot be asked.

    With a bucket it is read from there, and outlives the machine. Raises CloudError if it is damaged, or if the machine
    does not answer.
    """
    if run.folder is not None:
        text = _from_s3(run, FILE)
        return parse_record(text, f"{run.folder}/{FILE}") if text else None
    if coordinator is None:
        return None
    path = f"/var/lib/btard/run/{FILE}"
    text = run_on(run, coordinator.id, f"if [ -e {path} ]; then cat {path}; fi")
    return parse_record(text, f"{coordinator.id}:{path}") if text.strip() else None


def has_finished(run: Run) -> bool:
    """Return whether the bucket has the run's summary. Only with a bucket."""
    return _from_s3(run, SUMMARY) is not None


def has_begun(run: Run) -> bool:
    """Return whether the bucket has a list of the run's first peers. Only with a bucket."""
    return _from_s3(run, FOUNDERS) is not None


def newest_checkpoint(run: Run, by: int | None = None) -> str | None:
    """Return the address of the newest checkpoint in the bucket, None if there is none. Only with a bucket.

    `by`: the newest of those that are of this step or before.
    """
    assert run.folder is not None
    folder = f"{run.folder}/checkpoints"
    names = [re.fullmatch(r"step-(\d{1,18})\.safetensors", name) for name in run.account.files(folder)]
    steps = {int(name[1]): name[0] for name in names if name is not None}
    newest = max((step for step in steps if by is None or step <= by), default=None)
    return None if newest is None else f"{folder}/{steps[newest]}"


def parse_record(text: str, where: str) -> Record:
    """Return the contents of the text of a status.json. Raises CloudError if the text is malformed."""
    try:
        content = json.loads(text)
        rate, steps = content["steps_per_hour"], content.get("steps")
        return Record(
            step=int(content["step"]),
            steps=None if steps is None else int(steps),
            time=float(content["time"]),
            steps_per_hour=None if rate is None else float(rate),
            peers=tuple(_peer(peer) for peer in content["peers"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise CloudError(
            f"{where} is not a status of a swarm ({problem}); `logs coordinator` says what it does"
        ) from None


def _peer(content: dict[str, Any]) -> Peer:
    names = ("peer_id", "step", "last_seen", "instance", "banned")
    peer_id, step, seen, instance, banned = (content[name] for name in names)
    return Peer(
        number=int(content["peer"]),
        peer_id=None if peer_id is None else str(peer_id),
        instance=None if instance is None else str(instance),
        step=None if step is None else int(step),
        last_seen=None if seen is None else float(seen),
        active=bool(content["active"]),
        banned=None if banned is None else str(banned),
    )


def _from_s3(run: Run, name: str) -> str | None:
    assert run.folder is not None
    place = urlparse(run.folder)
    key = f"{place.path.lstrip('/')}/{name}"
    answer = unless({"NoSuchKey"}, run.account.client("s3").get_object, Bucket=place.netloc, Key=key)
    return None if answer is None else str(answer["Body"].read().decode("utf-8", errors="replace"))
