"""Where the machines can run: the network, its subnets, and the zones that have the wanted types."""

from dataclasses import dataclass

from albert.cloud.config import words
from albert.cloud.errors import CloudError, code_of, explain, unless
from albert.cloud.findings import Finding
from albert.cloud.run import Run


@dataclass(frozen=True)
class Subnet:
    """A subnet, and whether machines in it get a public address."""

    id: str
    zone: str
    public: bool


@dataclass(frozen=True)
class Places:
    """The network, and the subnets for each kind of machine, in a fixed order."""

    vpc: str
    trainers: tuple[Subnet, ...]
    coordinator: tuple[Subnet, ...]

    @property
    def zones(self) -> list[str]:
        """Where trainers can be."""
        return sorted({subnet.zone for subnet in self.trainers})


def find_places(run: Run) -> Places:
    """Return where the run's machines can run. Raises CloudError if nowhere."""
    wanted, trainers = run.config.network, run.config.trainers
    vpc = wanted.vpc or _default_vpc(run)
    subnets = _subnets(run, vpc)
    if wanted.zones is not None:
        allowed = words(wanted.zones)
        subnets = [subnet for subnet in subnets if subnet.zone in allowed]
    if not subnets:
        raise CloudError(f"{vpc} has no subnet in the zones allowed; change network.subnets or network.zones")
    types = words(trainers.types)
    return Places(
        vpc,
        _offering(run, subnets, types, "trainers.types"),
        _offering(run, subnets, (run.config.coordinator.type,), "coordinator.type"),
    )


def check_places(run: Run, places: Places) -> list[Finding]:
    """Return what is worth knowing about them."""
    used = set(places.trainers) | set(places.coordinator)
    findings = [Finding("ok", "subnets", f"{len(used)} in {places.vpc}, zones {', '.join(places.zones)}")]
    private = sorted(subnet.id for subnet in used if not subnet.public)
    if private:
        advice = "make sure they have a NAT gateway, or machines cannot fetch anything"
        findings.append(Finding("note", "subnets", f"no public addresses in {', '.join(private)}", advice))
        if run.config.swarm.public:
            advice = "set swarm.public to false, or network.subnets to public ones"
            findings.append(Finding("stop", "subnets", "swarm.public needs public addresses", advice))
    if len(places.zones) == 1:
        advice = "allow more zones if peers are interrupted often"
        findings.append(Finding("note", "subnets", f"trainers can stand in one zone only, {places.zones[0]}", advice))
    return findings


def check_key(run: Run) -> Finding:
    """Return whether the key pair for SSH exists."""
    name = run.config.network.ssh_key
    if name is None:
        return Finding("ok", "ssh", "none (network.ssh_key is null); `logs` works without")
    if unless({"InvalidKeyPair.NotFound"}, run.account.client("ec2").describe_key_pairs, KeyNames=[name]) is None:
        found = f"no key pair {name} in {run.account.region}"
        return Finding("stop", "ssh", found, "import yours with `aws ec2 import-key-pair`, or set network.ssh_key")
    return Finding("ok", "ssh", f"key pair {name}")


def _default_vpc(run: Run) -> str:
    vpcs = run.account.client("ec2").describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise CloudError(
            f"no default network in {run.account.region}; `aws ec2 create-default-vpc` makes one, or set network.vpc"
        )
    return str(vpcs[0]["VpcId"])


def _subnets(run: Run, vpc: str) -> list[Subnet]:
    ids = list(words(run.config.network.subnets or ""))
    filters = [{"Name": "vpc-id", "Values": [vpc]}]
    try:
        found = run.account.pages("ec2", "describe_subnets", "Subnets", Filters=filters, SubnetIds=ids)
    except run.account.client("ec2").exceptions.ClientError as error:
        if code_of(error) == "InvalidSubnetID.NotFound":
            raise CloudError(f"network.subnets: {explain(error)}") from None
        raise
    missing = set(ids) - {subnet["SubnetId"] for subnet in found}
    if missing:
        raise CloudError(
            f"network.subnets: {', '.join(sorted(missing))} is not in {vpc}; set network.vpc to its network"
        )
    subnets = [Subnet(s["SubnetId"], s["AvailabilityZone"], s["MapPublicIpOnLaunch"]) for s in found]
    return sorted(subnets, key=lambda subnet: (subnet.zone, subnet.id))


def _offering(run: Run, subnets: list[Subnet], types: tuple[str, ...], key: str) -> tuple[Subnet, ...]:
    offerings = run.account.pages(
        "ec2",
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": list(types)}],
    )
    zones = {offering["Location"] for offering in offerings if offering["InstanceType"] in types}
    fitting = tuple(subnet for subnet in subnets if subnet.zone in zones)
    if not fitting:
        elsewhere = f"; {', '.join(sorted(zones))} would" if zones else f", nor anywhere in {run.account.region}"
        raise CloudError(
            f"no zone of the subnets has {' or '.join(types)}{elsewhere}; change {key}, network.zones or region"
        )
    # One subnet per zone: an Auto Scaling group spreads over zones, and two subnets of one gain nothing.
    return tuple({subnet.zone: subnet for subnet in reversed(fitting)}.values())[::-1]
