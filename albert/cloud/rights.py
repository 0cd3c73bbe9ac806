"""The rights that the caller needs: as an IAM policy, and as a check of which ones are missing."""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

from botocore.exceptions import ClientError

from albert.cloud.errors import DENIED, code_of, explain
from albert.cloud.findings import Finding
from albert.cloud.images import Image
from albert.cloud.names import RUN_TAG
from albert.cloud.places import Places
from albert.cloud.run import Run

_OWN = {"Null": {f"aws:ResourceTag/{RUN_TAG}": "false"}}
"""Only what carries the tag of some run."""


@dataclass(frozen=True)
class Grant:
    """Rights that belong together; `resources` are patterns, which for a check become the run's own ARNs."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...] = ("*",)
    condition: dict[str, dict[str, Any]] = field(default_factory=dict)
    checked: bool = True
    """False: AWS needs it only once per account, so that missing it may not matter."""


GRANTS = (
    Grant(
        "Look",
        (
            "autoscaling:DescribeAutoScalingGroups",
            "autoscaling:DescribeScalingActivities",
            "ec2:DescribeImages",
            "ec2:DescribeInstances",
            "ec2:DescribeInstanceTypeOfferings",
            "ec2:DescribeInstanceTypes",
            "ec2:DescribeKeyPairs",
            "ec2:DescribeLaunchTemplates",
            "ec2:DescribeSecurityGroups",
            "ec2:DescribeSpotPriceHistory",
            "ec2:DescribeSubnets",
            "ec2:DescribeVolumes",
            "ec2:DescribeVpcs",
            "iam:ListInstanceProfiles",
            "iam:ListRoles",
            "pricing:GetProducts",
            "servicequotas:GetServiceQuota",
            "ssm:DescribeParameters",
            "ssm:GetCommandInvocation",
        ),
    ),
    Grant(
        "Make",
        ("ec2:CreateLaunchTemplate", "ec2:CreateSecurityGroup", "ec2:RunInstances"),
    ),
    Grant(
        "TagWhatIsMade",
        ("ec2:CreateTags",),
        ("arn:*:ec2:*:*:*/*",),
        {"StringEquals": {"ec2:CreateAction": ["CreateLaunchTemplate", "CreateSecurityGroup", "RunInstances"]}},
    ),
    Grant(
        "ChangeAndRemove",
        (
            "ec2:AuthorizeSecurityGroupIngress",
            "ec2:CreateTags",
            "ec2:DeleteSecurityGroup",
            "ec2:RevokeSecurityGroupIngress",
        ),
        ("arn:*:ec2:*:*:security-group/*",),
        _OWN,
    ),
    Grant(
        "EndAndRemove",
        ("ec2:DeleteLaunchTemplate", "ec2:DeleteVolume", "ec2:TerminateInstances"),
        ("arn:*:ec2:*:*:instance/*", "arn:*:ec2:*:*:launch-template/*", "arn:*:ec2:*:*:volume/*"),
        _OWN,
    ),
    Grant(
        "Groups",
        (
            "autoscaling:CreateAutoScalingGroup",
            "autoscaling:CreateOrUpdateTags",
            "autoscaling:DeleteAutoScalingGroup",
            "autoscaling:PutScheduledUpdateGroupAction",
            "autoscaling:SetDesiredCapacity",
            "autoscaling:SuspendProcesses",
            "autoscaling:UpdateAutoScalingGroup",
        ),
        ("arn:*:autoscaling:*:*:autoScalingGroup:*:autoScalingGroupName/btard-*",),
    ),
    Grant(
        "Roles",
        (
            "iam:AddRoleToInstanceProfile",
            "iam:CreateInstanceProfile",
            "iam:CreateRole",
            "iam:DeleteInstanceProfile",
            "iam:DeleteRole",
            "iam:DeleteRolePolicy",
            "iam:GetInstanceProfile",
            "iam:GetRole",
            "iam:ListRolePolicies",
            "iam:PutRolePolicy",
            "iam:RemoveRoleFromInstanceProfile",
            "iam:TagInstanceProfile",
            "iam:TagRole",
        ),
        ("arn:*:iam::*:role/btard/*", "arn:*:iam::*:instance-profile/btard/*"),
    ),
    Grant(
        "HandRolesToMachines",
        ("iam:PassRole",),
        ("arn:*:iam::*:role/btard/*",),
        {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
    ),
    Grant(
        "FirstSpotOrGroupOfTheAccount",
        ("iam:CreateServiceLinkedRole",),
        ("arn:*:iam::*:role/aws-service-role/*",),
        {"StringEquals": {"iam:AWSServiceName": ["autoscaling.amazonaws.com", "spot.amazonaws.com"]}},
        checked=False,
    ),
    Grant("FindImages", ("ssm:GetParameter",), ("arn:*:ssm:*::parameter/aws/service/*",)),
    Grant("Address", ("ssm:DeleteParameter", "ssm:GetParameter"), ("arn:*:ssm:*:*:parameter/btard/*/coordinator",)),
    Grant("Ask", ("ssm:SendCommand",), ("arn:*:ssm:*:*:document/AWS-RunShellScript",)),
    Grant("AskMachines", ("ssm:SendCommand",), ("arn:*:ec2:*:*:instance/*",), _OWN),
)


def policy(buckets: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the least IAM policy for all commands, with the buckets that settings name: that of docs/aws.md."""
    statements: list[dict[str, Any]] = []
    for grant in _grants(buckets):
        resources = list(grant.resources) if len(grant.resources) > 1 else grant.resources[0]
        statement = {"Sid": grant.sid, "Effect": "Allow", "Action": list(grant.actions), "Resource": resources}
        statements.append(statement | ({"Condition": grant.condition} if grant.condition else {}))
    return {"Version": "2012-10-17", "Statement": statements}


def buckets_of(run: Run) -> tuple[str, ...]:
    """Return the buckets that the settings name."""
    config = run.config
    addresses = [config.code.wheel, config.data.source, config.swarm.start_from, run.folder]
    found = {urlparse(address).netloc for address in addresses if address and address.startswith("s3://")}
    return tuple(sorted(found))


def check_rights(run: Run, places: Places | None, image: Image | None) -> list[Finding]:
    """Return which rights the caller lacks: from AWS's simulation of policies, and dry runs of what costs money."""
    findings = [_simulated(run)]
    if places is not None and image is not None:
        findings += _dry_runs(run, places, image)
    return findings


def _grants(buckets: tuple[str, ...]) -> tuple[Grant, ...]:
    if not buckets:
        return GRANTS
    whole = tuple(f"arn:*:s3:::{bucket}" for bucket in buckets)
    return (
        *GRANTS,
        Grant("Buckets", ("s3:ListBucket",), whole),
        Grant("InBuckets", ("s3:GetObject",), tuple(f"{bucket}/*" for bucket in whole)),
    )


def _simulated(run: Run) -> Finding:
    number, arn = run.account.caller
    if arn.endswith(":root"):
        return Finding("note", "rights", "you are the account's root user", "create an IAM user for this")
    missing: set[str] = set()
    try:
        source = _principal(run, arn)
        for context, grants in _by_condition(run):
            actions = sorted({action for grant in grants for action in grant.actions})
            resources = sorted({_example(run, pattern, number) for grant in grants for pattern in grant.resources})
            answers = run.account.pages(
                "iam",
                "simulate_principal_policy",
                "EvaluationResults",
                PolicySourceArn=source,
                ActionNames=actions,
                ResourceArns=resources,
                ContextEntries=context,
            )
            missing |= _refused(answers)
    except ClientError as error:
        advice = "allow iam:SimulatePrincipalPolicy and iam:GetRole to have them checked; docs/aws.md lists all rights"
        return Finding("note", "rights", f"could not be checked ({code_of(error)})", advice)
    if missing:
        found = f"{arn} lacks {', '.join(sorted(missing))}"
        if run.config.ignore_rights:
            return Finding("note", "rights", found, "ignored (ignore_rights): AWS may refuse them on the way")
        return Finding("stop", "rights", found, "add them to your IAM policy; docs/aws.md has the whole of it")
    return Finding("ok", "rights", f"{arn} has all of them")


def _by_condition(run: Run) -> list[tuple[list[dict[str, Any]], list[Grant]]]:
    """The grants to be checked, grouped by condition, and what fulfils the condition."""
    together: list[tuple[list[dict[str, Any]], list[Grant]]] = []
    for grant in _grants(buckets_of(run)):
        context = _context(run, grant)
        group = next((grants for other, grants in together if other == context), None)
        if grant.checked and group is not None:
            group.append(grant)
        elif grant.checked:
            together.append((context, [grant]))
    return together


def _refused(answers: list[dict[str, Any]]) -> set[str]:
    """Actions that none of their resources allows: of several patterns, an action concerns one."""
    allowed = {
        answer["EvalActionName"]
        for answer in answers
        if answer["EvalDecision"] == "allowed"
        or any(r["EvalResourceDecision"] == "allowed" for r in answer.get("ResourceSpecificResults", []))
    }
    return {answer["EvalActionName"] for answer in answers} - allowed


def _principal(run: Run, arn: str) -> str:
    """The ARN of a user, or of the role behind a session; a role's path is only in the role itself."""
    match = re.match(r"arn:[^:]+:sts::\d+:assumed-role/([^/]+)/", arn)
    return str(run.account.client("iam").get_role(RoleName=match[1])["Role"]["Arn"]) if match else arn


def _example(run: Run, pattern: str, number: str) -> str:
    """An ARN of this run that a pattern matches."""
    if pattern == "*":
        return "*"
    service, region, account, *rest = pattern.split(":")[2:]
    resource = ":".join(rest).replace("autoScalingGroup:*", "autoScalingGroup:0")
    own = resource.replace("btard/*", f"btard/{run.config.run_id}").replace("btard-*", run.names.of("honest"))
    own = own.replace("*/*", "instance/*").replace("/*", "/example")
    parts = [run.account.partition, service, region and run.account.region, account and number]
    return ":".join(["arn", *parts, own])


def _context(run: Run, grant: Grant) -> list[dict[str, Any]]:
    region = {"ContextKeyName": "aws:RequestedRegion", "ContextKeyValues": [run.account.region]}
    entries = [region | {"ContextKeyType": "string"}]
    for operator, conditions in grant.condition.items():
        for key, value in conditions.items():
            values = [run.config.run_id] if operator == "Null" else [value] if isinstance(value, str) else value[:1]
            entries.append({"ContextKeyName": key, "ContextKeyValues": values, "ContextKeyType": "string"})
    return entries


def _dry_runs(run: Run, places: Places, image: Image) -> list[Finding]:
    ec2 = run.account.client("ec2")
    coordinator = {"ImageId": image.id, "InstanceType": run.config.coordinator.type, "MinCount": 1, "MaxCount": 1}
    data = {"ImageId": image.id}
    attempts = {
        "RunInstances": lambda: ec2.run_instances(
            **coordinator, SubnetId=places.coordinator[0].id, DryRun=True
        ),
        "CreateSecurityGroup": lambda: ec2.create_security_group(
            GroupName=f"{run.names.base}-dry-run", Description="dry run", VpcId=places.vpc, DryRun=True
        ),
        "CreateLaunchTemplate": lambda: ec2.create_launch_template(
            LaunchTemplateName=f"{run.names.base}-dry-run", LaunchTemplateData=data, DryRun=True
        ),
    }  # fmt: skip
    refused = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except ClientError as error:
            if code_of(error) in DENIED:
                refused.append(f"ec2:{name}")
            elif code_of(error) != "DryRunOperation":
                return [Finding("note", "dry run", f"{explain(error)}")]
    if refused:
        return [
            Finding("stop", "dry run", f"refused: {', '.join(refused)}", "add them to your IAM policy; see docs/aws.md")
        ]
    return [Finding("ok", "dry run", f"AWS would allow {', '.join(attempts)}")]
