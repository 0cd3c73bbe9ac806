"""`plan` touches nothing, and says of everything that stands in the way what it is and what to do."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from albert.cloud.config import load
from albert.cloud.rights import GRANTS
from albert.cloud.run import Run
from albert.cloud.survey import survey
from tests.albert.cloud import answers
from tests.albert.cloud.conftest import Cloud
from tests.albert.cloud.endpoint import refusal, told


def rows(output: str, start: str) -> list[list[str]]:
    """The rows of a printed table whose first or second cell is `start`."""
    found = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    return [row for row in found if start in row[:2]]


def test_a_plan_says_what_would_be_started_and_what_it_costs_and_touches_nothing(cloud):
    assert cloud("plan") == 0, cloud.output
    assert cloud.endpoint.changes() == []
    assert rows(cloud.output, "coordinator")[0] == [
        "coordinator",
        "1",
        "on-demand",
        "m6i.large (2 vCPU, 8 GB)",
        "50 GB",
    ]
    types = "g4dn.xlarge (4 vCPU, 16 GB, 1 x T4) or g4dn.2xlarge (8 vCPU, 32 GB, 1 x T4)"
    assert rows(cloud.output, "honest")[0] == ["honest", "2", "spot", types, "120 GB"]
    assert rows(cloud.output, "byzantine")[0][:2] == ["byzantine", "1"]

    # Of a day, half at 0.16 and half at 0.20.
    prices = [row for row in rows(cloud.output, "us-east-1a") if row[0] == "g4dn.xlarge"]
    assert prices == [["g4dn.xlarge", "us-east-1a", "0.2000", "0.1800", "0.1600", "0.2000"]]

    # 3 spot machines at 0.18 (the cheapest now) to 0.26; a coordinator at 0.096; 410 GB of disk at 0.08 a month.
    assert rows(cloud.output, "3 trainers, spot") == [
        ["3 trainers, spot", "0.5400 to 0.7800", "2.70 to 3.90", "4.32 to 6.24"]
    ]
    assert rows(cloud.output, "coordinator, m6i.large")[0][1:] == ["0.0960", "0.4800", "0.7680"]
    assert rows(cloud.output, "disks")[0][1] == "0.0449"
    assert "launch would begin; it ends by itself after 8 hours" in cloud.output
    assert all(row[0] == "ok" for row in rows(cloud.output, "rights") + rows(cloud.output, "quota L-3819A6DF"))


def test_a_price_cap_bounds_the_costs_and_on_demand_has_the_price_lists(cloud):
    cloud.changes = ["--trainers.max_price", "0.19"]
    cloud("plan")
    assert rows(cloud.output, "3 trainers, spot")[0][1] == "0.5400 to 0.5700"
    cloud.changes = ["--trainers.spot", "false", "--coordinator.price", "0.5"]
    assert cloud("plan") == 0
    assert rows(cloud.output, "3 trainers, on-demand")[0][1] == "1.58 to 2.26"
    assert rows(cloud.output, "coordinator, m6i.large")[0][1] == "0.5000"
    assert rows(cloud.output, "quota L-DB2E81BA") != []
    assert "Spot prices" not in cloud.output


def quota_of(**values: float) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.endpoint.answer("GetServiceQuota", answers.quota(values))


def refused(action: str, code: str, message: str = "") -> Callable[[Cloud], None]:
    return lambda cloud: cloud.endpoint.refuse(action, code, message)


def stores(type_: str) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.client("ssm").put_parameter(Name="/btard/wandb", Type=type_, Value="key")


def no_default_network(cloud: Cloud) -> None:
    vpcs = "<DescribeVpcsResponse><vpcSet/></DescribeVpcsResponse>"
    cloud.endpoint.answer("DescribeVpcs", lambda request: replace(answers.spot_prices(), body=vpcs))


def both(*preparations: Callable[[Cloud], object]) -> Callable[[Cloud], None]:
    return lambda cloud: [prepare(cloud) for prepare in preparations] and None


def nothing(cloud: Cloud) -> None:
    pass


# Settings, what the account is like, and what is found then: several at a time, as each look takes a while.
PROBLEMS = {
    "types": (
        ["--trainers.types", "g9x.huge", "--network.zones", "us-east-1z", "--code.repository", "null"],
        nothing,
        {
            "no subnet in the zones allowed; change network.subnets or network.zones": "stop",
            "AWS has no instance type g9x.huge in us-east-1; change it, or the region": "stop",
            "neither code.repository nor code.wheel is set, so there is nothing to install; set one of them": "stop",
        },
    ),
    "no GPU": (
        ["--trainers.types", "m6i.large", "--network.zones", "us-east-1a", "--swarm.config", "none.yaml"],
        nothing,
        {
            "trainers.types: m6i.large has no GPU; g4dn.xlarge has a T4": "stop",
            "trainers can stand in one zone only, us-east-1a; allow more zones": "note",
            "none.yaml: no such file": "stop",
        },
    ),
    "other GPUs": (
        ["--trainers.types", "g4dn.xlarge g5.2xlarge", "--swarm.options", "{}", "--network.ssh_key", "other"],
        nothing,
        {
            "trainers.types have different GPUs; take types with one kind of GPU": "stop",
            "trainers.types have more or fewer CPUs; set swarm.options.threads": "note",
            "protocol.probation is null: replaced peers cannot join; set swarm.options.protocol.probation": "note",
            "no key pair other in us-east-1; import yours": "stop",
        },
    ),
    "exact": (
        [],
        nothing,
        {
            "exact, on 1 x T4: needs no tolerance; demands equal GPUs, images, versions, threads": "ok",
            "PyTorch's version is not pinned: machines that replace others later may install another": "note",
        },
    ),
    "pinned": (
        ["--code.requirements", "requirements-tested.txt"],
        nothing,
        {"exact, on 1 x T4: needs no tolerance": "ok"},
    ),
    "tolerant": (
        ["--swarm.options.protocol.validation", "tolerant"],
        nothing,
        {"tolerant, on 1 x T4, and protocol.gradient_tol is the default: too low bans honest peers": "note"},
    ),
    "calibrated": (
        ["--swarm.options.protocol.validation", "tolerant", "--swarm.options.protocol.gradient_tol", "0.02"],
        nothing,
        {"tolerant, on 1 x T4, above protocol.gradient_tol 0.02; python -m albert.calibrate": "ok"},
    ),
    "images": (
        ["--trainers.image", "/aws/service/nowhere", "--coordinator.image", "ami-00000000", "--network.subnets",
         "subnet-12345678", "--swarm.options.stepz", "3", "--bucket", "null"],
        nothing,
        {
            "trainers.image: no public parameter /aws/service/nowhere in us-east-1": "stop",
            "coordinator.image: no image ami-00000000 in us-east-1; images have other ids in other regions": "stop",
            "network.subnets: ": "stop",
            "swarm.options: unknown key stepz; did you mean steps?": "stop",
            "bucket is null: the run folder is lost when the coordinator ends; set bucket": "note",
        },
    ),
    "disks": (
        ["--trainers.disk_gb", "5", "--coordinator.type", "t4g.small", "--swarm.options.steps", "many",
         "--data.source", "s3://data/empty", "--bucket", "not-there"],
        nothing,
        {
            "trainers.disk_gb must be at least the image's": "stop",
            "coordinator.type: t4g.small is no x86-64 machine": "stop",
            "swarm.options: steps must be an integer, got 'many'": "stop",
            "s3://data/empty is empty; upload the data with `aws s3 sync`, or change data.source": "stop",
            "s3://not-there is not there; upload it, or change bucket": "stop",
        },
    ),
    "sources": (
        ["--data.source", "s3://data/none.tar", "--code.repository", "null", "--code.wheel", "s3://data/a.whl",
         "--wandb.parameter", "/btard/wandb", "--network.ssh_from", "null", "--network.address_service",
         "http://127.0.0.1:9"],
        nothing,
        {
            "s3://data/none.tar is not there; upload it, or change data.source": "stop",
            "s3://data/a.whl is not there; upload it, or change code.wheel": "stop",
            "no parameter /btard/wandb; `aws ssm put-parameter --region us-east-1 --type SecureString": "stop",
            "http://127.0.0.1:9 did not say which address you launch from": "stop",
        },
    ),
    "quotas": (
        ["--data.source", "null", "--wandb.parameter", "/btard/wandb"],
        both(quota_of(**{"L-1216C47A": 1.0, "L-3819A6DF": 16.0}), stores("String"), no_default_network),
        {
            "running on-demand standard instances: 1 vCPUs, 0 used by others, 1 free; needed: 2": "stop",
            "16 free; needed: 12 to 24; enough for the smallest type only; to be safe: `aws service-quotas": "note",
            "data.source is null: peers would have no data": "stop",
            "/btard/wandb is a String, readable in plain; make it a SecureString": "stop",
            "no default network in us-east-1; `aws ec2 create-default-vpc` makes one, or set network.vpc": "stop",
        },
    ),
    "rights": (
        ["--wandb.parameter", "/btard/wandb"],
        both(
            refused("GetServiceQuota", "AccessDeniedException"), refused("GetProducts", "AccessDeniedException"),
            refused("SimulatePrincipalPolicy", "AccessDenied"), refused("DescribeImages", "UnauthorizedOperation"),
            stores("SecureString"),
        ),
        {
            "all G and VT spot requests could not be read (AccessDeniedException); look it up: https://": "note",
            "no on-demand price of m6i.large; set coordinator.price": "note",
            "could not be checked (AccessDenied); allow iam:SimulatePrincipalPolicy and iam:GetRole": "note",
            "missing right: DescribeImages was refused (UnauthorizedOperation); add it to your IAM policy": "stop",
            "/btard/wandb, project btard-albert": "ok",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_stands_in_the_way_is_named_with_what_to_do(cloud, case):
    words, prepare, expected = PROBLEMS[case]
    prepare(cloud)
    made = len(cloud.endpoint.changes())
    found = survey(Run(cloud.account, load(cloud.file, words))).findings
    lines = [(f"{finding.found}; {finding.advice}", finding.level) for finding in found]
    for message, level in expected.items():
        assert {given for line, given in lines if message in line} == {level}, (message, lines)
    if case in ("exact", "pinned", "tolerant", "calibrated"):
        assert any("is not pinned" in line for line, _ in lines) == (case == "exact")
    assert len(cloud.endpoint.changes()) == made


def test_missing_rights_are_listed(cloud):
    missing = {"iam:CreateRole", "ec2:RunInstances"}
    cloud.endpoint.answer("SimulatePrincipalPolicy", answers.simulation(missing))
    found = next(f for f in survey(cloud.run).findings if f.topic == "rights")
    assert (found.level, found.found) == (
        "stop",
        "arn:aws:sts::123456789012:user/moto lacks ec2:RunInstances, iam:CreateRole",
    )
    found = survey(Run(cloud.account, load(cloud.file, ["--ignore_rights", "true"])))
    assert found.obstacles == []


def test_every_right_is_asked_about_for_this_runs_own_names(cloud):
    survey(cloud.run)
    asked = [r.arguments for r in cloud.endpoint.asked if r.action == "SimulatePrincipalPolicy"]
    actions = {value for request in asked for key, value in request.items() if key.startswith("ActionNames")}
    assert {action for grant in GRANTS if grant.checked for action in grant.actions} <= actions
    assert {"s3:ListBucket", "s3:GetObject"} <= actions
    resources = {value for request in asked for key, value in request.items() if key.startswith("ResourceArns")}
    assert "arn:aws:iam::123456789012:role/btard/small" in resources
    assert "arn:aws:ssm:us-east-1:123456789012:parameter/btard/small/coordinator" in resources
    group = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:0:autoScalingGroupName/btard-small-honest"
    assert group in resources
    assert not any("**" in arn or (arn != "*" and "*" in arn) for arn in resources)


def test_a_role_is_looked_up_with_its_path(cloud):
    arn = "arn:aws:sts::123456789012:assumed-role/admins/me"
    body = (
        "<GetCallerIdentityResponse><GetCallerIdentityResult><Account>123456789012</Account>"
        f"<UserId>x</UserId><Arn>{arn}</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>"
    )
    cloud.endpoint.answer("GetCallerIdentity", replace(answers.spot_prices(), body=body))
    cloud.client("iam").create_role(RoleName="admins", Path="/people/", AssumeRolePolicyDocument="{}")
    cloud("plan")
    sources = {r.arguments["PolicySourceArn"] for r in cloud.endpoint.asked if r.action == "SimulatePrincipalPolicy"}
    assert sources == {"arn:aws:iam::123456789012:role/people/admins"}


def test_a_refused_dry_run_is_a_missing_right(cloud):
    def denied(request):
        return (
            refusal("ec2", "UnauthorizedOperation", "You are not authorized")
            if request.arguments.get("DryRun")
            else None
        )

    cloud.endpoint.answer("RunInstances", denied)
    found = next(f for f in survey(cloud.run).findings if f.topic == "dry run")
    assert (found.level, found.found) == ("stop", "refused: ec2:RunInstances")


def test_vcpus_that_others_use_are_not_free(cloud):
    cloud.client("ec2").run_instances(ImageId=answers.IMAGE, InstanceType="m6i.large", MinCount=3, MaxCount=3)
    found = next(f for f in survey(cloud.run).findings if f.topic == "quota L-1216C47A")
    assert "256 vCPUs, 6 used by others, 250 free; needed: 2" in found.found


def test_the_callers_address_is_asked_for_and_checked(cloud):
    cloud.endpoint.answer("", told({}))  # anything but an address
    found = survey(
        Run(
            cloud.account,
            load(cloud.file, ["--network.ssh_from", "null", "--network.address_service", cloud.endpoint.url]),
        )
    )
    assert any("did not say which address you launch from (ValueError)" in f.found for f in found.obstacles)


def test_branches_and_tags_become_commits(cloud, tmp_path, monkeypatch):
    repository = tmp_path / "origin" / "btard.git"
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(repository)]
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main", str(repository)], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "one"], check=True)
    subprocess.run([*git, "tag", "-a", "v1", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{Path(repository).parent}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://example.org/")
    for ref in ("main", "v1"):
        assert survey(Run(cloud.account, load(cloud.file, ["--code.ref", ref]))).commit == head
    found = survey(Run(cloud.account, load(cloud.file, ["--code.ref", "v2"])))
    assert any(
        "https://example.org/btard.git has no tag or branch v2; push it" in f"{f.found}; {f.advice}"
        for f in found.obstacles
    )


def test_a_charter_lasts_max_hours(cloud):
    charter = survey(cloud.run).charter()
    assert (charter.ends - charter.started).total_seconds() == 8 * 3600
    assert abs((charter.started - datetime.now(timezone.utc)).total_seconds()) < 60
