"""What the machines themselves may do: an IAM role and an instance profile for coordinator and trainers, no more."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

from albert.cloud.errors import CloudError, unless
from albert.cloud.names import KINDS, RUN_TAG, Kind, tag_map
from albert.cloud.run import Run

POLICY = "btard"
"""Name of the policy inside each role."""

_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
_AGENT = (
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
    "ec2messages:AcknowledgeMessage",
    "ec2messages:DeleteMessage",
    "ec2messages:FailMessage",
    "ec2messages:GetEndpoint",
    "ec2messages:GetMessages",
    "ec2messages:SendReply",
)
"""What Systems Manager's agent needs. AWS's own policy for it would also let a machine read every parameter."""


def policy_of(run: Run, kind: Kind) -> dict[str, Any]:
    """Return what a machine may do: write or read the coordinator's address, fetch, upload, and leave."""
    partition, region, number = run.account.partition, run.account.region, run.account.caller[0]
    groups = [
        f"arn:{partition}:autoscaling:{region}:{number}:autoScalingGroup:*:autoScalingGroupName/{run.names.of(role)}"
        for role in run.groups
    ]
    address = f"arn:{partition}:ssm:{region}:{number}:parameter{run.names.address}"
    statements = [_allow(list(_AGENT), "*"), *_fetching(run)]
    if kind == "trainer":
        statements.append(_allow("ssm:GetParameter", address))
        statements.append(_allow("autoscaling:TerminateInstanceInAutoScalingGroup", groups))
        return {"Version": "2012-10-17", "Statement": statements}
    statements.append(_allow("ssm:PutParameter", address))
    statements.append(_allow("autoscaling:UpdateAutoScalingGroup", groups))
    if run.folder is not None:
        statements += _in_s3(run, run.folder, ["s3:GetObject", "s3:PutObject"])
    key = run.config.wandb.parameter
    if key is not None:
        arn = f"arn:{partition}:ssm:{region}:{number}:parameter{key}"
        statements.append(_allow("ssm:GetParameter", arn))
        only = {"StringEquals": {"kms:EncryptionContext:PARAMETER_ARN": arn}}
        statements.append(_allow("kms:Decrypt", "*") | {"Condition": only})
    return {"Version": "2012-10-17", "Statement": statements}


def ensure_roles(run: Run) -> list[str]:
    """Create what is missing of roles, policies and profiles; return what was created."""
    return [made for kind in KINDS for made in _ensure(run, kind)]


def find_profiles(run: Run) -> list[str]:
    """Return the names of the run's instance profiles."""
    path = run.names.iam_path
    pages = run.account.pages("iam", "list_instance_profiles", "InstanceProfiles", PathPrefix=path)
    return [profile["InstanceProfileName"] for profile in pages if profile["Path"] == path]


def find_roles(run: Run) -> list[str]:
    """Return the names of the run's roles."""
    path = run.names.iam_path
    pages = run.account.pages("iam", "list_roles", "Roles", PathPrefix=path)
    return [role["RoleName"] for role in pages if role["Path"] == path]


def remove_roles(run: Run) -> list[str]:
    """Remove profiles, policies and roles of the run; return what was removed."""
    iam = run.account.client("iam")
    removed = []
    for name in find_profiles(run):
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        if not _owned(run, profile):
            continue
        for role in profile["Roles"]:
            iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=role["RoleName"])
        iam.delete_instance_profile(InstanceProfileName=name)
        removed.append(f"instance profile {name}")
    for name in find_roles(run):
        if not _owned(run, iam.get_role(RoleName=name)["Role"]):
            continue
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            iam.delete_role_policy(RoleName=name, PolicyName=policy)
        iam.delete_role(RoleName=name)
        removed.append(f"role {name}")
    return removed


def _ensure(run: Run, kind: Kind) -> list[str]:
    iam, name = run.account.client("iam"), run.names.iam(kind)
    common = {"Path": run.names.iam_path, "Tags": run.names.tags()}
    made = []
    if _made(iam.create_role, RoleName=name, AssumeRolePolicyDocument=json.dumps(_TRUST), **common):
        made.append(f"role {name}")
    else:
        _check_owner(run, f"role {name}", iam.get_role(RoleName=name)["Role"])
    iam.put_role_policy(RoleName=name, PolicyName=POLICY, PolicyDocument=json.dumps(policy_of(run, kind)))
    if _made(iam.create_instance_profile, InstanceProfileName=name, **common):
        made.append(f"instance profile {name}")
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    _check_owner(run, f"instance profile {name}", profile)
    if not profile["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return made


def _owned(run: Run, described: dict[str, Any]) -> bool:
    return tag_map(described.get("Tags")).get(RUN_TAG) == run.config.run_id


def _check_owner(run: Run, what: str, described: dict[str, Any]) -> None:
    if not _owned(run, described):
        raise CloudError(f"the {what} is there without this run's tag, so it is somebody else's; choose another run_id")


def _made(make: Callable[..., Any], **arguments: Any) -> bool:
    """Whether `make` created something; False if it existed already."""
    return unless({"EntityAlreadyExists"}, make, **arguments) is not None


def _fetching(run: Run) -> list[dict[str, Any]]:
    config = run.config
    statements = []
    fetched = (
        (config.code.wheel, False),
        (config.data.source, not config.data.is_archive),
        (config.swarm.start_from, False),
    )
    for address, folder in fetched:
        if address is not None and address.startswith("s3://"):
            statements += _in_s3(run, address, ["s3:GetObject"], folder=folder)
    return statements


def _in_s3(run: Run, address: str, actions: list[str], *, folder: bool = True) -> list[dict[str, Any]]:
    place = urlparse(address)
    bucket, path = f"arn:{run.account.partition}:s3:::{place.netloc}", place.path.strip("/")
    if not folder:
        return [_allow(actions, f"{bucket}/{path}")]
    inside = f"{path}/*" if path else "*"
    listing = {"Condition": {"StringLike": {"s3:prefix": [inside, path, f"{path}/"] if path else ["*", ""]}}}
    return [_allow(actions, f"{bucket}/{inside}"), _allow("s3:ListBucket", bucket) | listing]


def _allow(action: str | list[str], resource: str | list[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource}
