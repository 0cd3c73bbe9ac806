"""The machines themselves: listing them, starting the coordinator, and ending all."""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from albert.cloud.account import once_profiles_are_known, wait_for
from albert.cloud.errors import CAPACITY, CloudError, code_of, explain
from albert.cloud.names import ROLE_TAG, ROLES, Role, tag_map
from albert.cloud.places import Subnet
from albert.cloud.run import Charter, Run

ENDED = frozenset({"shutting-down", "terminated"})
REMOVAL_SECONDS = 600.0


@dataclass(frozen=True)
class Machine:
    """An instance of the run. `ended` is None while it lives, and for an ended one that AWS gives no time for."""

    id: str
    role: Role
    type: str
    zone: str
    state: str
    spot: bool
    launched: datetime
    ended: datetime | None
    addresses: frozenset[str]
    """The addresses and host names by which the swarm may know it."""

    @property
    def alive(self) -> bool:
        """Whether it costs money."""
        return self.state not in ENDED


def find_machines(run: Run) -> list[Machine]:
    """Return the run's machines, coordinator first; AWS lists ended ones for about an hour."""
    reservations = run.account.pages("ec2", "describe_instances", "Reservations", Filters=run.names.filters)
    machines = [_machine(instance) for reservation in reservations for instance in reservation["Instances"]]
    return sorted(machines, key=lambda machine: (ROLES.index(machine.role), machine.launched, machine.id))


def find_coordinator(run: Run) -> Machine | None:
    """Return the coordinator that is alive, None if there is none."""
    return coordinator_of(find_machines(run))


def coordinator_of(machines: Iterable[Machine]) -> Machine | None:
    """Return the one of these machines that is a coordinator and alive, None if there is none."""
    return next((machine for machine in machines if machine.role == "coordinator" and machine.alive), None)


def start_coordinator(run: Run, subnets: tuple[Subnet, ...], charter: Charter) -> str:
    """Start the coordinator in the first zone that has a machine; return its id. Raises CloudError if none has."""
    gone = [machine.id for machine in find_machines(run) if machine.role == "coordinator"]
    refusals = []
    for subnet in subnets:
        # The same for a repeated try, so that a lost answer does not start a second one.
        token = hashlib.sha256("/".join([run.names.base, str(charter.started), subnet.id, *gone]).encode()).hexdigest()
        try:
            return _start(run, subnet, token)
        except run.account.client("ec2").exceptions.ClientError as error:
            if code_of(error) not in CAPACITY:
                raise
            refusals.append(f"{subnet.zone}: {explain(error)}")
    raise CloudError(f"no zone has a {run.config.coordinator.type} for the coordinator; {refusals[-1]}")


def end_machines(run: Run, tell: Callable[[str], None]) -> list[str]:
    """End all machines of the run and wait until they are; return the ids of those that were alive."""
    ids = [machine.id for machine in find_machines(run) if machine.state != "terminated"]
    if not ids:
        return []
    tell(f"machines to end: {len(ids)}; that takes some minutes")
    run.account.client("ec2").terminate_instances(InstanceIds=ids)

    def ended() -> bool | None:
        return None if any(machine.state != "terminated" for machine in find_machines(run)) else True

    wait_for(ended, REMOVAL_SECONDS)
    return ids


def find_volumes(run: Run) -> list[str]:
    """Return disks of the run that belong to no machine any more."""
    filters = [*run.names.filters, {"Name": "status", "Values": ["available"]}]
    return [volume["VolumeId"] for volume in run.account.pages("ec2", "describe_volumes", "Volumes", Filters=filters)]


def remove_volumes(run: Run) -> list[str]:
    """Remove such disks; machines remove their own disks, so usually there are none."""
    volumes = find_volumes(run)
    for volume in volumes:
        run.account.client("ec2").delete_volume(VolumeId=volume)
    return [f"disk {volume}" for volume in volumes]


def _start(run: Run, subnet: Subnet, token: str) -> str:
    ec2 = run.account.client("ec2")
    answer = once_profiles_are_known(
        lambda: ec2.run_instances(
            LaunchTemplate={"LaunchTemplateName": run.names.of("coordinator"), "Version": "$Latest"},
            SubnetId=subnet.id,
            MinCount=1,
            MaxCount=1,
            ClientToken=token,
        )
    )
    return str(answer["Instances"][0]["InstanceId"])


def _machine(instance: dict[str, Any]) -> Machine:
    fields = ("PrivateIpAddress", "PublicIpAddress", "PrivateDnsName", "PublicDnsName")
    addresses = {instance[field] for field in fields if instance.get(field)}
    addresses |= {address.partition(".")[0] for address in addresses if not address[0].isdigit()}
    return Machine(
        id=instance["InstanceId"],
        role=tag_map(instance["Tags"]).get(ROLE_TAG, "honest"),  # type: ignore[arg-type]
        type=instance["InstanceType"],
        zone=instance["Placement"]["AvailabilityZone"],
        state=instance["State"]["Name"],
        spot=instance.get("InstanceLifecycle") == "spot",
        launched=instance["LaunchTime"],
        ended=_ended(instance.get("StateTransitionReason", "")),
        addresses=frozenset(addresses),
    )


def _ended(reason: str) -> datetime | None:
    match = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", reason)  # User initiated (2026-01-31 12:00:00 GMT)
    return datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc) if match else None
