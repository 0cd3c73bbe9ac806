"""The IAM policy in docs/aws.md: all that the commands need and no more; moto lets them work with it."""

import json
import os
import re
from pathlib import Path

import pytest
from moto.core.authorization import enable_iam_authentication

from albert.cloud.account import Account
from albert.cloud.rights import GRANTS, policy
from tests.albert.cloud import answers
from tests.albert.cloud.conftest import Cloud
from tests.albert.cloud.folders import put

DOCS = Path(__file__).parents[3] / "docs" / "aws.md"
BY_AWS_ITSELF = {
    "iam:PassRole",  # when a machine or group is started with a profile
    "iam:CreateServiceLinkedRole",  # when the account has its first spot machine or group
    "iam:TagRole",  # when a role is made with tags
    "iam:TagInstanceProfile",
    "autoscaling:CreateOrUpdateTags",  # when a group is made with tags
    "ec2:DeleteVolume",  # for a disk that its machine has left behind, which moto's never do
}
NOT_RIGHTS = {
    "sts:GetCallerIdentity",  # everybody may
    "iam:SimulatePrincipalPolicy",  # optional: only to check
    "s3:CreateBucket", "s3:PutObject", "ec2:CreateKeyPair", "ssm:PutParameter",  # by the tests
}  # fmt: skip


def actions_of(document: dict) -> set[str]:
    return {action for statement in document["Statement"] for action in statement["Action"]}


def use_everything(cloud: Cloud) -> None:
    """Run every command through all that it can do."""
    assert cloud("plan") == 0, cloud.output
    assert cloud("launch") == 0, cloud.output
    cloud.client("ssm").put_parameter(Name="/btard/small/coordinator", Type="String", Value="/ip4/10.0.0.1")
    assert cloud("launch", "--network.ssh_from", "198.51.100.1/32") == 0, cloud.output
    cloud.endpoint.answer("GetCommandInvocation", answers.printed("line"))
    assert cloud("status") == 0, cloud.output
    assert cloud("logs", "coordinator") == 0, cloud.output
    put(cloud, "summary.json", "{}")
    assert cloud("wait") == 0, cloud.output
    assert cloud("fetch", "--to", "here") == 0, cloud.output
    assert cloud("stop") == 0, cloud.output


def test_the_policy_in_the_documentation_is_the_one_that_is_checked():
    blocks = re.findall(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert [json.loads(block) for block in blocks] == [policy(("BUCKET",))]


def test_the_policy_has_every_right_that_is_used_and_no_other(cloud):
    key = "/btard/wandb"
    cloud.client("ssm").put_parameter(Name=key, Type="SecureString", Value="key")
    cloud.changes = ["--wandb.parameter", key]
    cloud.endpoint.asked.clear()
    use_everything(cloud)
    used = {
        action.replace("HeadObject", "GetObject") if action != "s3:HeadBucket" else "s3:ListBucket"
        for action in cloud.endpoint.actions()
    }
    used -= NOT_RIGHTS
    granted = actions_of(policy(("results", "data")))
    assert used - granted == set()
    assert granted - used - BY_AWS_ITSELF == set()


def test_only_what_carries_a_runs_tag_may_be_ended_and_only_roles_of_runs_be_handed_on():
    by_action = {action: grant for grant in GRANTS for action in grant.actions}
    own = {"Null": {"aws:ResourceTag/btard:run": "false"}}
    for action in ("TerminateInstances", "DeleteLaunchTemplate", "DeleteVolume", "DeleteSecurityGroup"):
        assert by_action[f"ec2:{action}"].condition == own
    assert by_action["iam:PassRole"].resources == ("arn:*:iam::*:role/btard/*",)
    assert by_action["iam:PutRolePolicy"].resources[0] == "arn:*:iam::*:role/btard/*"
    assert not any(action.endswith("*") for action in by_action)


@pytest.fixture
def limited(cloud: Cloud, monkeypatch: pytest.MonkeyPatch):
    """Makes the commands run as a user with a given policy, which moto enforces."""

    def become(document: dict) -> None:
        iam = cloud.client("iam")
        iam.create_user(UserName="student")
        iam.put_user_policy(UserName="student", PolicyName="btard", PolicyDocument=json.dumps(document))
        key = iam.create_access_key(UserName="student")["AccessKey"]
        monkeypatch.setitem(os.environ, "AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setitem(os.environ, "AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        account = Account("us-east-1")
        monkeypatch.setattr("albert.cloud.__main__.Account", lambda region, profile: account)

    return become


def test_a_user_with_that_policy_can_do_everything(cloud, limited):
    document = policy(("results", "data"))
    for statement in document["Statement"]:  # moto knows no conditions, and resources only in part
        statement["Resource"] = "*"
        statement.pop("Condition", None)
    limited(document)
    with enable_iam_authentication():
        for command in (["plan"], ["launch"], ["status"], ["stop"]):
            assert cloud(*command) == 0, cloud.output


def test_a_user_without_a_right_is_told_which_and_nothing_is_left(cloud, limited):
    document = policy(("results", "data"))
    for statement in document["Statement"]:
        statement["Resource"] = "*"
        statement.pop("Condition", None)
        statement["Action"] = [a for a in statement["Action"] if a != "autoscaling:CreateAutoScalingGroup"]
    limited(document)
    with enable_iam_authentication():
        assert cloud("launch") == 1
        assert "missing right: autoscaling:CreateAutoScalingGroup was refused" in cloud.output
        assert "nothing is left of the attempt" in cloud.output
