"""What goes wrong on the way: refusals, no machines, interruptions, kills. No money may be left burning."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from btard.boundary import FAULT
from tests import warm
from tests.albert.cloud import answers
from tests.albert.cloud.conftest import Cloud

ROOT = Path(__file__).parents[3]


# Refused before anything is made.


def test_without_the_quota_nothing_is_launched(cloud):
    cloud.endpoint.answer("GetServiceQuota", answers.quota({"L-3819A6DF": 8.0}))
    assert cloud("launch") == 1
    assert "all G and VT spot requests: 8 vCPUs, 0 used by others, 8 free; needed: 12 to 24" in cloud.output
    assert "request-service-quota-increase" in cloud.output and "--desired-value 24" in cloud.output
    assert "nothing was launched" in cloud.output
    assert cloud.endpoint.changes() == []


def test_without_credentials_one_line_says_so(cloud, monkeypatch):
    monkeypatch.setattr("albert.cloud.__main__.Account", type(cloud.account))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert cloud("launch") == 1
    assert cloud.output == (
        "error: no AWS credentials found; run `aws configure`, or set AWS_PROFILE, or `profile` in the settings\n"
    )


# Refused on the way: the launch undoes itself.


@pytest.mark.parametrize(
    ("action", "after"),
    [
        ("AuthorizeSecurityGroupIngress", 0),
        ("AddRoleToInstanceProfile", 1),
        ("PutScheduledUpdateGroupAction", 1),
        ("SetDesiredCapacity", 1),
    ],
)
def test_a_launch_that_fails_halfway_undoes_itself(cloud, action, after):
    cloud.endpoint.refuse(action, "AccessDenied", "User x is not authorized to perform: some:Thing on *", after=after)
    assert cloud("launch") == 1
    assert "removing what was made" in cloud.output
    assert cloud.output.splitlines()[-1] == (
        "error: missing right: some:Thing was refused (AccessDenied); add it to your IAM policy, docs/aws.md has all "
        "of them; nothing is left of the attempt"
    )
    assert cloud.left() == []
    assert cloud.machines() == []


def test_a_bug_of_ours_leaves_nothing_behind_either(cloud, monkeypatch):
    monkeypatch.setattr("albert.cloud.launch.start_coordinator", lambda *arguments: {}["bug"])
    assert cloud("launch") == FAULT
    assert "KeyError: 'bug'" in cloud.output
    assert cloud.left() == []


def test_if_undoing_fails_as_well_the_line_says_what_to_do(cloud, monkeypatch):
    monkeypatch.setattr("albert.cloud.security_group.REMOVAL_SECONDS", 0.05)
    cloud.endpoint.refuse("CreateLaunchTemplate", "InternalError", "try later", after=1)
    cloud.endpoint.refuse("DeleteSecurityGroup", "DependencyViolation", "has a dependent object")
    assert cloud("launch") == 1
    assert "left of it: btard-small: run `stop` until it says that nothing is left" in cloud.output
    assert cloud.left() == [("security group", "btard-small")]
    assert cloud("stop") == 1
    assert "AWS refused DeleteSecurityGroup (DependencyViolation: has a dependent object)" in cloud.output
    cloud.endpoint.rules.pop()
    assert cloud("stop") == 0


def test_a_second_launch_that_fails_leaves_a_complete_run_alone(cloud):
    assert cloud("launch") == 0
    cloud.endpoint.refuse("PutRolePolicy", "AccessDenied", "")
    assert cloud("launch") == 1
    assert "the run continues as it was; launch again to repair it, or `stop` it" in cloud.output
    assert len(cloud.machines()) == 4
    assert cloud("stop") == 0


# AWS has no machines to give.


def test_a_profile_is_waited_for_and_the_coordinator_goes_to_another_zone(cloud):
    """EC2 hears of new instance profiles late, and the first zone has no machine."""
    cloud.endpoint.refuse("RunInstances", "InsufficientInstanceCapacity", "not here", times=1)
    message = "Value (btard) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
    cloud.endpoint.refuse("RunInstances", "InvalidParameterValue", message, times=2)
    cloud.endpoint.refuse("CreateAutoScalingGroup", "ValidationError", "Invalid IamInstanceProfile: btard", times=2)
    assert cloud("launch") == 0, cloud.output
    assert cloud.machines("coordinator")[0]["Placement"]["AvailabilityZone"] != "us-east-1a"
    assert cloud("stop") == 0


def test_a_coordinator_that_no_zone_has_undoes_the_launch(cloud):
    cloud.endpoint.refuse("RunInstances", "InsufficientInstanceCapacity", "not here")
    assert cloud("launch") == 1
    assert "no zone has a m6i.large for the coordinator" in cloud.output
    assert "nothing is left of the attempt" in cloud.output


def test_spot_machines_that_aws_lacks_are_told_and_waited_for(cloud):
    failed = {
        "Description": "Launching a new EC2 instance.  Status Reason: x",
        "StatusCode": "Failed",
        "StatusMessage": "Could not launch Spot Instances. InsufficientInstanceCapacity - no g4dn.xlarge here.",
        "StartTime": "2126-01-01T00:00:00Z",
    }
    cloud.endpoint.answer("DescribeScalingActivities", answers.activities([failed]))
    cloud.endpoint.answer("SetDesiredCapacity", lambda request: answers.activities([]))  # nobody comes
    cloud.changes = ["--wait_minutes", "0.001"]
    assert cloud("launch") == 0, cloud.output
    assert "running: 0 of 2 honest, 0 of 1 byzantine" in cloud.output
    assert (
        "AWS says (2126-01-01 00:00 UTC) btard-small-honest: Could not launch Spot Instances. Insufficient"
        in cloud.output
    )
    assert "AWS has not started all of them yet, and keeps trying" in cloud.output
    assert cloud("stop") == 0


# AWS is busy.


def test_a_throttled_launch_succeeds_all_the_same(cloud):
    for action in ("DescribeSubnets", "CreateSecurityGroup", "RunInstances", "DescribeInstances"):
        cloud.endpoint.refuse(action, "RequestLimitExceeded", "slow down", times=3)
    cloud.endpoint.refuse("CreateAutoScalingGroup", "Throttling", "Rate exceeded", times=3)
    assert cloud("launch") == 0, cloud.output
    assert [len(cloud.machines(role)) for role in ("coordinator", "honest", "byzantine")] == [1, 2, 1]
    assert cloud("stop") == 0


def test_endless_throttling_is_one_line(cloud):
    cloud.endpoint.refuse("DescribeSecurityGroups", "RequestLimitExceeded", "slow down")
    assert cloud("status") == 1
    assert cloud.output == (
        "error: AWS still refused DescribeSecurityGroups after several tries (RequestLimitExceeded); wait a minute, "
        "then run the same command\n"
    )


# Machines come and go. moto replaces what is terminated in a group, as AWS does; it interrupts nothing by itself.


def test_an_interrupted_peer_is_replaced_in_its_role_and_a_finished_one_is_not(cloud):
    assert cloud("launch") == 0
    for role, size in (("byzantine", 1), ("honest", 2)):
        lost = cloud.machines(role)[0]["InstanceId"]
        cloud.client("ec2").terminate_instances(InstanceIds=[lost])
        now = cloud.machines(role)
        assert len(now) == size
        assert lost not in {machine["InstanceId"] for machine in now}
    assert cloud("status") == 0
    assert cloud.output.count("│byzantine") == 1 and cloud.output.count("│honest") == 2

    # One that has finished leaves its group, and a second launch does not ask for it again.
    scaling = cloud.client("autoscaling")
    done = cloud.machines("byzantine")[0]["InstanceId"]
    scaling.terminate_instance_in_auto_scaling_group(InstanceId=done, ShouldDecrementDesiredCapacity=True)
    assert cloud.machines("byzantine") == []
    assert cloud("launch") == 0
    assert cloud.machines("byzantine") == []
    assert cloud("stop") == 0


def test_the_scheduled_end_leaves_no_trainer(cloud):
    """moto keeps scheduled actions and does not carry them out: here we do, as the action says."""
    assert cloud("launch") == 0
    scaling = cloud.client("autoscaling")
    for end in scaling.describe_scheduled_actions()["ScheduledUpdateGroupActions"]:
        sizes = {key: end[key] for key in ("MinSize", "MaxSize", "DesiredCapacity")}
        # moto forgets the policy of an update that does not repeat it, and with it nothing else.
        scaling.update_auto_scaling_group(AutoScalingGroupName=end["AutoScalingGroupName"], **sizes)
    assert cloud.machines("honest") == cloud.machines("byzantine") == []
    assert cloud("status") == 0
    assert "finished: `stop` removes what is left of it" in cloud.output
    assert cloud("launch") == 1
    assert "run small has finished; `stop` removes what is left of it, then launch again" in cloud.output
    assert cloud("stop") == 0


def test_what_others_have_under_our_names_is_neither_used_nor_removed(cloud):
    """moto finds roles by name alone, as AWS does."""
    name = "btard-small-us-east-1-trainer"
    cloud.client("iam").create_role(RoleName=name, Path="/btard/small/us-east-1/", AssumeRolePolicyDocument="{}")
    assert cloud("launch") == 1
    assert f"the role {name} is there without this run's tag, so it is somebody else's" in cloud.output
    assert cloud.left() == [("role", name)]
    cloud.client("iam").delete_role(RoleName=name)


# Ctrl-C, `kill`, and what no program can catch.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launch_is_removed_if_nobody_is_there_to_ask(cloud, number):
    cloud.endpoint.at("CreateAutoScalingGroup", lambda: os.kill(os.getpid(), number), nth=2)
    assert cloud("launch") == 130
    assert "nothing is left" in cloud.output
    assert cloud.left() == []


def test_ctrl_c_asks_and_no_leaves_a_half_made_run_that_a_second_launch_completes(cloud, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    cloud.endpoint.at("RunInstances", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert cloud("launch") == 130
    assert asked == ["Interrupted. Remove all of run small? [Y/n] "]
    assert "left as it is: `launch` completes it, `stop` removes it" in cloud.output
    assert ("Auto Scaling group", "btard-small-honest") in cloud.left()
    assert cloud("status") == 0
    assert "half-made: `launch` completes it, `stop` removes it" in cloud.output
    assert cloud("launch") == 0, cloud.output
    assert "run small is there, half-made" in cloud.output
    assert [len(cloud.machines(role)) for role in ("coordinator", "honest", "byzantine")] == [1, 2, 1]
    assert cloud("stop") == 0


def killed(cloud: Cloud, action: str, nth: int = 1) -> None:
    """Launch in a process of its own, which is killed for good right before an action."""
    started: list[subprocess.Popen] = []

    def kill() -> None:
        started[0].kill()
        started[0].wait()

    cloud.endpoint.at(action, kill, nth=nth)
    command = [sys.executable, "-m", "albert.cloud", "launch", str(cloud.file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with warm.started(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launch:
        started.append(launch)
        assert launch.wait(60) == -signal.SIGKILL
    cloud.endpoint.rules.pop()


def test_a_launch_killed_midway_is_completed_by_a_second_one(cloud):
    killed(cloud, "CreateAutoScalingGroup", nth=2)
    assert ("Auto Scaling group", "btard-small-honest") in cloud.left()
    assert cloud.machines("honest") == []  # groups are filled last, so that none is ever without an end
    assert cloud("launch") == 0, cloud.output
    assert "run small is there, half-made" in cloud.output
    assert "found launch template btard-small-honest" in cloud.output
    assert [len(cloud.machines(role)) for role in ("coordinator", "honest", "byzantine")] == [1, 2, 1]
    assert cloud("stop") == 0


def test_a_launch_killed_midway_is_removed_by_stop(cloud):
    killed(cloud, "SetDesiredCapacity", nth=2)
    assert len(cloud.machines()) >= 3
    assert cloud("stop") == 0
    assert cloud.left() == []
    assert cloud.machines() == []
