"""The security group: who may talk to the machines. Created first and removed last, it also keeps the run's charter."""

import urllib.request
from ipaddress import ip_address
from typing import Any

from albert.cloud.account import patiently
from albert.cloud.errors import CloudError, code_of, unless
from albert.cloud.names import tag_map
from albert.cloud.run import Charter, Run

SSH = 22
WITHIN = "within the group"
EVERYBODY = ("0.0.0.0/0", "::/0")

Rule = tuple[int, str]
"""A TCP port that is open, and for whom: an address range, or WITHIN."""

REMOVAL_SECONDS = 180.0
"""How long the addresses of ended machines may hold on to the group."""


def find_group(run: Run) -> dict[str, Any] | None:
    """Return the run's security group as EC2 describes it, None if there is none."""
    groups = run.account.pages("ec2", "describe_security_groups", "SecurityGroups", Filters=run.names.filters)
    return next((group for group in groups if group["GroupName"] == run.names.base), None)


def read_charter(run: Run) -> Charter | None:
    """Return what the run's first launch decided, None if the run is not there. Raises CloudError if it is damaged."""
    group = find_group(run)
    return Charter.of_tags(tag_map(group["Tags"])) if group else None


def make_group(run: Run, vpc: str, charter: Charter) -> str:
    """Make the group with the charter in its tags, in one call; return its id."""
    tags = [*run.names.tags(), *({"Key": key, "Value": value} for key, value in charter.tags().items())]
    answer = run.account.client("ec2").create_security_group(
        GroupName=run.names.base,
        Description=f"BTARD swarm {run.config.run_id}",
        VpcId=vpc,
        TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
    )
    return str(answer["GroupId"])


def mark_complete(run: Run, group_id: str, charter: Charter) -> None:
    """Write into the charter that everything of the run is there."""
    tags = [{"Key": key, "Value": value} for key, value in charter.completed().tags().items()]
    run.account.client("ec2").create_tags(Resources=[group_id], Tags=tags)


def wanted_rules(run: Run) -> set[Rule]:
    """Return which ports must be open for whom. Raises CloudError if the caller's address cannot be found out."""
    config = run.config
    rules: set[Rule] = {(config.swarm.port, WITHIN)}
    if config.swarm.public:
        rules |= {(config.swarm.port, anybody) for anybody in EVERYBODY}
    if config.network.ssh_key is not None:
        rules.add((SSH, config.network.ssh_from or _own_address(config.network.address_service)))
    return rules


def set_rules(run: Run, group_id: str, wanted: set[Rule]) -> bool:
    """Open what is wanted, close everything else; return whether that changed anything."""
    ec2 = run.account.client("ec2")
    group = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]
    present = _rules(group)
    if surplus := present - wanted:
        permissions = [_permission(rule, group_id) for rule in sorted(surplus)]
        ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=permissions)
    if missing := wanted - present:
        permissions = [_permission(rule, group_id) for rule in sorted(missing)]
        before = {"InvalidPermission.Duplicate"}  # by a try whose answer was lost on its way back
        unless(before, ec2.authorize_security_group_ingress, GroupId=group_id, IpPermissions=permissions)
    return present != wanted


def remove_group(run: Run) -> bool:
    """Remove the group, once no ended machine holds on to it any more; return whether there was one."""
    group = find_group(run)
    if group is None:
        return False

    def remove() -> None:
        unless({"InvalidGroup.NotFound"}, run.account.client("ec2").delete_security_group, GroupId=group["GroupId"])

    patiently(remove, lambda error: code_of(error) == "DependencyViolation", REMOVAL_SECONDS)
    return True


def _own_address(service: str) -> str:
    try:
        with urllib.request.urlopen(service, timeout=10) as answer:
            address = ip_address(answer.read(100).decode().strip())
    except (OSError, ValueError) as error:
        raise CloudError(
            f"{service} did not say which address you launch from ({type(error).__name__}); set network.ssh_from to it "
            "(203.0.113.7/32), or network.ssh_key to null"
        ) from None
    return f"{address}/{address.max_prefixlen}"


def _rules(group: dict[str, Any]) -> set[Rule]:
    rules: set[Rule] = set()
    for permission in group["IpPermissions"]:
        port = permission.get("FromPort", 0)
        rules |= {(port, source["CidrIp"]) for source in permission.get("IpRanges", [])}
        rules |= {(port, source["CidrIpv6"]) for source in permission.get("Ipv6Ranges", [])}
        rules |= {
            (port, WITHIN) for pair in permission.get("UserIdGroupPairs", []) if pair["GroupId"] == group["GroupId"]
        }
    return rules


def _permission(rule: Rule, group_id: str) -> dict[str, Any]:
    port, source = rule
    permission: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
    if source == WITHIN:
        return permission | {"UserIdGroupPairs": [{"GroupId": group_id}]}
    if ":" in source:
        return permission | {"Ipv6Ranges": [{"CidrIpv6": source}]}
    return permission | {"IpRanges": [{"CidrIp": source}]}
