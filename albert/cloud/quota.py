"""How many virtual processors the account may have at a time, against what the run needs."""

from collections import Counter
from dataclasses import dataclass

from albert.cloud.config import words
from albert.cloud.errors import code_of
from albert.cloud.findings import Finding
from albert.cloud.machine_types import MachineType, family
from albert.cloud.names import RUN_TAG, tag_map
from albert.cloud.run import Run

STANDARD = frozenset("acdhimrtz")
GPU = frozenset({"g", "vt"})
"""Families of instance types that share a quota."""

QUOTAS: dict[tuple[frozenset[str], bool], tuple[str, str]] = {
    (GPU, True): ("L-3819A6DF", "all G and VT spot requests"),
    (GPU, False): ("L-DB2E81BA", "running on-demand G and VT instances"),
    (STANDARD, True): ("L-34B43A08", "all standard spot requests"),
    (STANDARD, False): ("L-1216C47A", "running on-demand standard instances"),
}
"""(families, spot) -> AWS's code and name of the quota, in vCPUs."""


@dataclass(frozen=True)
class Need:
    """What one quota must allow: `least` if AWS gives the smallest type everywhere, `most` if the largest."""

    families: frozenset[str]
    spot: bool
    least: int
    most: int


def needs(run: Run, types: dict[str, MachineType]) -> list[Need]:
    """Return what the run needs of each quota that is known here."""
    trainers, coordinator = run.config.trainers, types[run.config.coordinator.type]
    found = []
    for families in (GPU, STANDARD):
        vcpus = [types[name].vcpus for name in words(trainers.types) if types[name].family in families]
        if vcpus:
            found.append(Need(families, trainers.spot, trainers.count * min(vcpus), trainers.count * max(vcpus)))
        if coordinator.family in families:
            found.append(Need(families, False, coordinator.vcpus, coordinator.vcpus))
    return found


def check_quotas(run: Run, types: dict[str, MachineType]) -> list[Finding]:
    """Return how each quota compares with what the run needs."""
    findings = [_check(run, need) for need in needs(run, types)]
    unknown = sorted(name for name, kind in types.items() if kind.family not in GPU | STANDARD)
    if unknown:
        advice = "look for its family in https://console.aws.amazon.com/servicequotas/home/services/ec2/quotas"
        findings.append(Finding("note", "quota", f"no quota is known here for {', '.join(unknown)}", advice))
    return findings


def _check(run: Run, need: Need) -> Finding:
    code, name = QUOTAS[need.families, need.spot]
    topic = f"quota {code}"
    quotas = run.account.client("service-quotas")
    try:
        allowed = float(quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])
    except quotas.exceptions.ClientError as error:
        advice = f"look it up: https://console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{code}"
        return Finding("note", topic, f"{name} could not be read ({code_of(error)})", advice)
    used = _used(run, need)
    free = int(allowed) - used
    found = f"{name}: {int(allowed)} vCPUs, {used} used by others, {free} free; needed: {_span(need.least, need.most)}"
    if free >= need.most:
        return Finding("ok", topic, found)
    raising = (
        f"`aws service-quotas request-service-quota-increase --region {run.account.region} --service-code ec2 "
        f"--quota-code {code} --desired-value {used + need.most}` (takes hours to days)"
    )
    if free >= need.least:
        return Finding("note", topic, found, f"enough for the smallest type only; to be safe: {raising}")
    if run.config.ignore_quota:
        return Finding("note", topic, found, "ignored (ignore_quota): there will be fewer peers")
    return Finding("stop", topic, found, raising)


def _used(run: Run, need: Need) -> int:
    """How many vCPUs of the quota are used by anything except this run."""
    filters = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    types: Counter[str] = Counter()
    for reservation in run.account.pages("ec2", "describe_instances", "Reservations", Filters=filters):
        for instance in reservation["Instances"]:
            own = tag_map(instance.get("Tags")).get(RUN_TAG) == run.config.run_id
            spot = instance.get("InstanceLifecycle") == "spot"
            if not own and spot == need.spot and family(instance["InstanceType"]) in need.families:
                types[instance["InstanceType"]] += 1
    if not types:
        return 0
    found = run.account.pages("ec2", "describe_instance_types", "InstanceTypes", InstanceTypes=sorted(types))
    return sum(types[kind["InstanceType"]] * int(kind["VCpuInfo"]["DefaultVCpus"]) for kind in found)


def _span(least: int, most: int) -> str:
    return str(most) if least == most else f"{least} to {most}"
