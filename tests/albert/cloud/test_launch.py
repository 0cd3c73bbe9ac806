"""What a launch makes, and that a second one finds it."""

import base64
import json
from datetime import datetime, timedelta, timezone

import pytest

from tests.albert.cloud.conftest import Cloud


@pytest.fixture
def launched(cloud: Cloud) -> Cloud:
    assert cloud("launch") == 0, cloud.output
    return cloud


def template(cloud: Cloud, role: str) -> dict:
    name = f"btard-small-{role}"
    versions = cloud.client("ec2").describe_launch_template_versions(LaunchTemplateName=name)
    return versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]


def policy(cloud: Cloud, kind: str) -> list[dict]:
    name = f"btard-small-us-east-1-{kind}"
    return cloud.client("iam").get_role_policy(RoleName=name, PolicyName="btard")["PolicyDocument"]["Statement"]


def allowed(statements: list[dict], action: str) -> list[str]:
    found = []
    for statement in statements:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        resources = statement["Resource"]
        if action in actions:
            found += resources if isinstance(resources, list) else [resources]
    return found


def test_a_launch_makes_the_swarm_and_stop_removes_all_of_it(cloud):
    assert cloud("launch") == 0, cloud.output
    ec2, scaling = cloud.client("ec2"), cloud.client("autoscaling")

    # The machines: one coordinator, two honest trainers and a Byzantine one, each with its role and profile.
    assert [len(cloud.machines(role)) for role in ("coordinator", "honest", "byzantine")] == [1, 2, 1]
    assert cloud.machines("coordinator")[0]["InstanceType"] == "m6i.large"

    # Who may talk to them: each other on the swarm's port, and one address by SSH.
    group = ec2.describe_security_groups(GroupNames=["btard-small"])["SecurityGroups"][0]
    rules = {p["FromPort"]: p for p in group["IpPermissions"]}
    assert set(rules) == {22, 31337}
    assert [r["CidrIp"] for r in rules[22]["IpRanges"]] == ["203.0.113.7/32"]
    assert rules[31337]["IpRanges"] == []
    assert [pair["GroupId"] for pair in rules[31337]["UserIdGroupPairs"]] == [group["GroupId"]]

    # What they start from: a shutdown terminates, disks are encrypted and go along, metadata only with a token.
    for role in ("coordinator", "honest", "byzantine"):
        data = template(cloud, role)
        assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
        assert data["MetadataOptions"]["HttpTokens"] == "required"
        disk = data["BlockDeviceMappings"][0]["Ebs"]
        assert (disk["Encrypted"], disk["DeleteOnTermination"], disk["VolumeType"]) == (True, True, "gp3")
        assert data["SecurityGroupIds"] == [group["GroupId"]]
        kind = "coordinator" if role == "coordinator" else "trainer"
        assert data["IamInstanceProfile"]["Name"] == f"btard-small-us-east-1-{kind}"
        tags = {
            spec["ResourceType"]: {t["Key"]: t["Value"] for t in spec["Tags"]} for spec in data["TagSpecifications"]
        }
        assert tags["volume"]["btard:run"] == tags["instance"]["btard:run"] == "small"
        assert tags["instance"]["btard:role"] == role
        script = base64.b64decode(data["UserData"]).decode()
        assert ("--attack.join true" in script, "--attack.join false" in script) == (
            role == "byzantine",
            role == "honest",
        )

    # Who replaces them: spot groups of both types, with an end that comes before the machines' own.
    groups = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert {g["AutoScalingGroupName"]: (g["DesiredCapacity"], g["MinSize"], g["MaxSize"]) for g in groups} == {
        "btard-small-honest": (2, 0, 2),
        "btard-small-byzantine": (1, 0, 1),
    }
    for group in groups:
        mixed = group["MixedInstancesPolicy"]
        types = [override["InstanceType"] for override in mixed["LaunchTemplate"]["Overrides"]]
        assert types == ["g4dn.xlarge", "g4dn.2xlarge"]
        assert mixed["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 0
        assert mixed["InstancesDistribution"]["SpotAllocationStrategy"] == "price-capacity-optimized"
        assert [process["ProcessName"] for process in group["SuspendedProcesses"]] == ["AZRebalance"]
    ends = scaling.describe_scheduled_actions()["ScheduledUpdateGroupActions"]
    assert {end["AutoScalingGroupName"]: (end["MinSize"], end["MaxSize"], end["DesiredCapacity"]) for end in ends} == {
        "btard-small-honest": (0, 0, 0),
        "btard-small-byzantine": (0, 0, 0),
    }
    latest = datetime.now(timezone.utc) + timedelta(hours=8)
    assert all(latest - timedelta(minutes=4) < end["StartTime"] < latest for end in ends)
    order = cloud.endpoint.changes()
    assert order.index("SetDesiredCapacity") > max(
        i for i, a in enumerate(order) if a == "PutScheduledUpdateGroupAction"
    )

    assert cloud("stop") == 0
    assert "nothing of run small is left" in cloud.output
    assert "kept: what is in s3://results/btard/small" in cloud.output
    assert cloud.machines() == []
    assert cloud("stop") == 0
    assert cloud.output == "nothing of run small is there in us-east-1\n"


def test_machines_may_do_exactly_what_their_role_needs_and_a_key_stands_nowhere(cloud):
    key = "0123456789abcdef0123456789abcdef0badc0de"
    cloud.client("ssm").put_parameter(Name="/btard/wandb", Type="SecureString", Value=key)
    cloud.changes = ["--wandb.parameter", "/btard/wandb"]
    assert cloud("launch") == 0, cloud.output
    printed = cloud.output

    coordinator, trainer = policy(cloud, "coordinator"), policy(cloud, "trainer")
    parameters = "arn:aws:ssm:us-east-1:123456789012:parameter/btard"
    assert allowed(coordinator, "ssm:PutParameter") == [f"{parameters}/small/coordinator"]
    assert allowed(coordinator, "ssm:GetParameter") == [f"{parameters}/wandb"]
    assert allowed(trainer, "ssm:GetParameter") == [f"{parameters}/small/coordinator"]
    assert allowed(trainer, "ssm:PutParameter") == allowed(trainer, "s3:PutObject") == []
    assert allowed(trainer, "s3:GetObject") == ["arn:aws:s3:::data/wikitext/*"]
    assert allowed(coordinator, "s3:PutObject") == ["arn:aws:s3:::results/btard/small/*"]
    groups = [f"autoScalingGroupName/btard-small-{role}" for role in ("honest", "byzantine")]
    leaving = allowed(trainer, "autoscaling:TerminateInstanceInAutoScalingGroup")
    ending = allowed(coordinator, "autoscaling:UpdateAutoScalingGroup")
    assert [arn.rpartition(":")[2] for arn in leaving] == [arn.rpartition(":")[2] for arn in ending] == groups
    everything = json.dumps([coordinator, trainer])
    assert '"Action": "*"' not in everything and ':*"' not in everything

    scripts = {role: base64.b64decode(template(cloud, role)["UserData"]).decode() for role in ("coordinator", "honest")}
    assert "WANDB_PARAMETER=/btard/wandb" in scripts["coordinator"] and "WANDB_PARAMETER=''" in scripts["honest"]
    assert key not in printed + everything + json.dumps(scripts)
    assert not any(r.action == "GetParameter" and r.arguments["Name"] == "/btard/wandb" for r in cloud.endpoint.asked)
    assert cloud("stop") == 0


def test_a_second_launch_changes_nothing_but_mends_a_lost_coordinator_and_lets_in_a_new_address(launched):
    before = {machine["InstanceId"] for machine in launched.machines()}
    launched.endpoint.asked.clear()
    assert launched("launch") == 0
    assert "run small is there, complete" in launched.output
    assert "made " not in launched.output
    assert {machine["InstanceId"] for machine in launched.machines()} == before
    assert "RunInstances" not in launched.endpoint.changes()
    assert "SetDesiredCapacity" not in launched.endpoint.changes()

    ec2 = launched.client("ec2")
    lost = launched.machines("coordinator")[0]["InstanceId"]
    ec2.terminate_instances(InstanceIds=[lost])
    assert launched("status") == 0
    assert "no coordinator: it has failed; `launch` starts another" in launched.output
    launched.changes = ["--network.ssh_from", "198.51.100.9/32"]
    assert launched("launch") == 0, launched.output
    assert [machine["InstanceId"] != lost for machine in launched.machines("coordinator")] == [True]
    group = ec2.describe_security_groups(GroupNames=["btard-small"])["SecurityGroups"][0]
    ssh = next(p for p in group["IpPermissions"] if p["FromPort"] == 22)
    assert [r["CidrIp"] for r in ssh["IpRanges"]] == ["198.51.100.9/32"]
    assert launched("stop") == 0


def test_a_wheel_that_was_replaced_since_the_first_launch_is_refused(cloud):
    words = ["--code.repository", "null", "--code.wheel", "s3://data/btard.whl"]
    cloud.client("s3").put_object(Bucket="data", Key="btard.whl", Body=b"one")
    assert cloud("launch", *words) == 0, cloud.output
    assert cloud("launch", *words) == 0, cloud.output
    cloud.client("s3").put_object(Bucket="data", Key="btard.whl", Body=b"another")
    assert cloud("launch", *words) == 1
    assert "code.wheel: s3://data/btard.whl is another one than when run small was launched" in cloud.output
    assert len(cloud.machines("honest")) == 2
    assert cloud("stop") == 0, cloud.output


def test_a_launch_with_other_settings_or_after_the_end_is_refused_and_leaves_the_run_alone(launched):
    launched.changes = ["--attack.start", "5000"]
    assert launched("launch") == 1
    assert "run small was launched with other settings" in launched.output
    assert "launch it with those, `stop` it first, or choose another run_id" in launched.output
    assert len(launched.machines()) == 4
    launched.changes = []
    (launched.file.parent / "swarm.yaml").write_text("steps: 1251\n", encoding="utf-8")
    assert launched("launch") == 1
    assert "other settings" in launched.output
    assert len(launched.machines()) == 4

    ended = (datetime.now(timezone.utc) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    ec2 = launched.client("ec2")
    group = ec2.describe_security_groups(GroupNames=["btard-small"])["SecurityGroups"][0]["GroupId"]
    ec2.create_tags(Resources=[group], Tags=[{"Key": "btard:ends", "Value": ended}])
    assert launched("launch") == 1
    assert "run small ends at" in launched.output and "`stop` removes what is left of it" in launched.output
    assert launched("status") == 0
    assert "ended" in launched.output
    assert launched("stop") == 0


def test_two_runs_stand_side_by_side(launched):
    small = launched.changes
    launched.changes = ["--run_id", "small-honest", "--trainers.count", "1", "--trainers.byzantine", "0"]
    assert launched("launch") == 0, launched.output
    assert len(launched.machines()) == 6
    assert launched("stop") == 0
    assert launched.left() == []
    launched.changes = small
    assert [len(launched.machines(role)) for role in ("coordinator", "honest", "byzantine")] == [1, 2, 1]
    assert launched("stop") == 0
