"""`swarm.start_from`: what `plan` says of the checkpoint, and who may read it."""

import base64

import pytest
import torch

from albert.cloud.config import load
from albert.cloud.findings import Finding
from albert.cloud.run import Run
from albert.cloud.start import HEADER, check_start, step_of
from albert.cloud.survey import survey
from albert.cloud.swarm_settings import check_swarm
from btard.swarm.checkpoint import HEADER as SWARMS
from btard.swarm.checkpoint import save_start
from tests.albert.cloud.conftest import Cloud
from tests.albert.cloud.folders import checkpoint, put
from tests.albert.cloud.test_launch import allowed, policy

NAME = "checkpoints/step-00000950.safetensors"
ADDRESS = f"s3://results/btard/base/{NAME}"


def findings(cloud: Cloud, steps: object = 1250, *words: str) -> list[tuple[str, str]]:
    run = Run(cloud.account, load(cloud.file, ["--swarm.start_from", ADDRESS, *words]))
    return [(finding.level, f"{finding.found}; {finding.advice}") for finding in check_start(run, steps)]


def test_a_real_checkpoint_is_read_without_torch(tmp_path):
    file = tmp_path / NAME
    save_start(file, 950, {"parameters": torch.zeros(10)}, (0, 2), "0f")
    assert step_of(file.read_bytes()[:400]) == 950
    assert HEADER == SWARMS


@pytest.mark.parametrize(
    "head", [b"", b"\xff" * 20, checkpoint(3, key="btard"), checkpoint(3)[:30], b"\2" + b"\0" * 7 + b"[]"]
)
def test_anything_else_is_none(head):
    assert step_of(head) is None


def test_a_plan_says_what_is_wrong_with_the_checkpoint(cloud):
    assert findings(cloud) == [("stop", f"{ADDRESS} is not there; upload it, or change swarm.start_from")]
    put(cloud, NAME, b"", "base")
    advice = "name one that a coordinator has kept: s3://BUCKET/PREFIX/RUN_ID/checkpoints/step-....safetensors"
    assert findings(cloud) == [("stop", f"{ADDRESS} is no checkpoint of a coordinator; {advice}")]
    put(cloud, NAME, b"tensors", "base")
    assert findings(cloud) == [("stop", f"{ADDRESS} is no checkpoint of a coordinator; {advice}")]
    put(cloud, NAME, checkpoint(950), "base")
    assert findings(cloud) == [("ok", f"{ADDRESS}, step 950; ")]
    advice = "set swarm.options.steps, or take an earlier one"
    assert findings(cloud, 950) == [("stop", f"{ADDRESS} is of step 950, and the run has 950 steps; {advice}")]
    cloud.endpoint.refuse("GetObject", "AccessDenied", "")
    advice = "allow s3:GetObject and s3:ListBucket, or change swarm.start_from"
    assert findings(cloud) == [("stop", f"{ADDRESS} may not be read; {advice}")]


def test_it_is_part_of_the_plan_and_of_every_refusal(cloud):
    cloud.changes = ["--swarm.start_from", ADDRESS]
    assert cloud("launch") == 1
    assert f"stop start: {ADDRESS} is not there" in cloud.output
    assert cloud.endpoint.changes() == []
    put(cloud, NAME, checkpoint(1250), "base")
    assert cloud("plan") == 1
    assert "is of step 1250, and the run has 1250 steps" in cloud.output
    cloud.changes += ["--swarm.options.steps", "1500"]
    assert cloud("plan") == 0, cloud.output


def test_a_checkpoint_that_only_this_machine_has_is_named(cloud):
    run = Run(cloud.account, load(cloud.file, ["--swarm.options.start_from", "runs/step-00000950.safetensors"]))
    advice = "upload it, and set swarm.start_from to its address"
    expected = Finding("stop", "start", "start_from is runs/step-00000950.safetensors, which no machine has", advice)
    assert expected in check_swarm(run, {})
    run = Run(cloud.account, load(cloud.file, ["--swarm.options.start_from", "/var/lib/btard/data/a.safetensors"]))
    assert [finding for finding in check_swarm(run, {}) if finding.topic == "start"] == []


def test_machines_may_read_the_checkpoint_and_are_told_to(cloud):
    put(cloud, NAME, checkpoint(950), "base")
    cloud.changes = ["--swarm.start_from", ADDRESS]
    assert cloud("launch") == 0, cloud.output
    for kind in ("coordinator", "trainer"):
        assert f"arn:aws:s3:::results/btard/base/{NAME}" in allowed(policy(cloud, kind), "s3:GetObject")
    assert not any("base" in resource for resource in allowed(policy(cloud, "coordinator"), "s3:PutObject"))
    for role in ("coordinator", "honest", "byzantine"):
        versions = cloud.client("ec2").describe_launch_template_versions(LaunchTemplateName=f"btard-small-{role}")
        script = base64.b64decode(versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["UserData"]).decode()
        assert f"START_FROM={ADDRESS}\n" in script
        assert " --start_from /var/lib/btard/start.safetensors" in script
    cloud.changes = []
    assert cloud("launch") == 1
    assert "was launched with other settings" in cloud.output
    assert cloud("stop") == 0


def test_a_run_that_has_finished_is_not_launched_again(cloud):
    put(cloud, "summary.json", "{}")
    assert cloud("launch") == 1
    assert (
        "stop results: s3://results/btard/small has a run that has finished; `fetch` it, or choose another run_id or "
        "prefix for a run from the start"
    ) in cloud.output
    assert [finding.level for finding in survey(cloud.run).findings if finding.topic == "results"] == ["stop"]


def test_a_run_whose_peers_are_gone_is_not_launched_again_but_gone_on_with_under_another_name(cloud):
    """A coordinator with a list of first peers waits for them alone; those of a launch have other keys."""
    assert cloud("launch") == 0, cloud.output
    put(cloud, "swarm.json", "{}")
    found = [finding for finding in survey(cloud.run).findings if finding.topic == "results"]
    assert [(finding.level, finding.found) for finding in found] == [
        ("note", "s3://results/btard/small has a run, which will go on")
    ]
    assert cloud("launch") == 0, cloud.output  # a second one mends it
    assert cloud("stop") == 0
    assert cloud("launch") == 1
    gone = "results: s3://results/btard/small has a run whose peers are gone with their machines; choose another run_id"
    assert f"{gone} or prefix" in cloud.output
    put(cloud, NAME, checkpoint(950))
    assert cloud("launch") == 1
    start = f"s3://results/btard/small/{NAME}"
    assert f"{gone}, with swarm.start_from {start}" in cloud.output
    cloud.changes = ["--run_id", "small-on", "--swarm.start_from", start]
    assert cloud("launch") == 0, cloud.output
    assert cloud("stop") == 0
    assert cloud.left() == []
    cloud.changes = []
