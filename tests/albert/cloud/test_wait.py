"""`wait`: what it shows while a run goes, and how it tells one end from another. Time passes only in its pauses."""

import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO

import pytest
from rich.console import Console

from albert.cloud.errors import CloudError
from albert.cloud.run import now
from albert.cloud.wait import GONE_FOR, LAST_COPY, wait
from btard.harness.typed_yaml import ConfigError
from tests.albert.cloud import answers
from tests.albert.cloud.conftest import Cloud
from tests.albert.cloud.endpoint import Reply
from tests.albert.cloud.folders import peer, put, record

Act = Callable[[], object]


class Script:
    """What happens in each pause, one after another, and how long they are."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.time = now()
        self.pauses = 0

    def __call__(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.pauses += 1
        assert self.pauses < 3000, "waits for ever"
        if self.acts:
            self.acts.pop(0)()

    def skip(self, time: timedelta) -> None:
        self.time += time


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr("albert.cloud.wait.sleep", script)
    monkeypatch.setattr("albert.cloud.wait.now", lambda: script.time)
    monkeypatch.setattr("albert.cloud.wait.LOG_SECONDS", 0.0)
    monkeypatch.setattr("btard.harness.progress.DRAW_SECONDS", 0.0)
    return script


@pytest.fixture
def launched(cloud: Cloud) -> Iterator[Cloud]:
    assert cloud("launch") == 0, cloud.output
    yield cloud
    cloud.endpoint.rules.clear()
    answers.say_what_aws_would(cloud.endpoint)
    assert cloud("stop") == 0, cloud.output


def status(cloud: Cloud, pauses: Script, step: int, **changes: object) -> None:
    """The coordinator writes down a step: two peers are there, one has been silent, one is banned."""
    at = pauses.time.timestamp()
    peers = [peer(0, last_seen=at), peer(1, last_seen=at - 5), peer(2, last_seen=at - 300)]
    peers.append(peer(3, active=False, banned="wrong_gradient, step 7", last_seen=at))
    put(
        cloud,
        "status.json",
        record(peers, **{"step": step, "steps": 1250, "time": at, "steps_per_hour": 50.0} | changes),
    )


def end_coordinator(cloud: Cloud) -> None:
    cloud.client("ec2").terminate_instances(InstanceIds=[cloud.machines("coordinator")[0]["InstanceId"]])


def empty_groups(cloud: Cloud) -> None:
    scaling = cloud.client("autoscaling")
    for group in scaling.describe_auto_scaling_groups()["AutoScalingGroups"]:
        name = group["AutoScalingGroupName"]
        scaling.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, MaxSize=0, DesiredCapacity=0)


def test_it_shows_the_run_until_its_summary_is_in_the_bucket(launched, pauses):
    pauses.acts = [
        lambda: status(launched, pauses, 1200),
        lambda: (put(launched, "summary.json", "{}"), status(launched, pauses, 1250)),
    ]
    assert launched("wait") == 0, launched.output
    lines = launched.output.splitlines()
    assert lines[0].startswith("run small: the coordinator has written nothing yet, about 0.0")
    assert lines[1].startswith(
        "run small: step 1200 of 1250, 2 of 4 peers alive, 1 banned, 50 steps an hour, 60 min left, about 0.0"
    )
    assert lines[2].startswith("run small: step 1250 of 1250, 1 banned, about 0.0") and lines[2].endswith(" dollars")
    assert lines[3:] == [
        "run small has finished; `fetch` copies its folder, `stop` removes what is left of it",
    ]
    assert launched("wait") == 0  # also later, and after the machines have gone
    end_coordinator(launched)
    assert launched("wait") == 0


def test_whoever_calls_it_is_told_the_steps(launched, pauses):
    pauses.acts = [
        lambda: status(launched, pauses, 10),
        lambda: status(launched, pauses, 1250),
        lambda: put(launched, "summary.json", "{}"),
    ]
    heard: list[int] = []
    assert wait(launched.run, Console(file=StringIO()), heard.append) is True
    assert heard == [10, 1250, 1250]


def test_a_lost_coordinator_ends_it_unless_another_comes_soon(launched, pauses):
    pauses.acts = [lambda: end_coordinator(launched), lambda: launched("launch")]
    pauses.acts += [lambda: None] * 30 + [lambda: end_coordinator(launched)]
    begun = pauses.time
    assert launched("wait") == 1
    assert launched.output.splitlines()[-1] == (
        "run small has lost its coordinator, and its trainers still cost money; `launch` starts another, which goes on "
        "from s3://results/btard/small, `stop` ends the run"
    )
    assert pauses.time - begun >= GONE_FOR + timedelta(seconds=30 * 30)


def test_a_coordinator_that_leaves_without_a_summary_is_an_end_too(launched, pauses):
    for step in (950, 1000, 50):
        put(launched, f"checkpoints/step-{step:08d}.safetensors", "tensors")
    put(launched, "checkpoints/step-.safetensors", "no checkpoint")
    put(launched, "checkpoints/step-00002000.tmp", "half of one")
    pauses.acts = [lambda: empty_groups(launched), lambda: None, lambda: end_coordinator(launched)]
    assert launched("wait") == 1
    assert launched.output.splitlines()[-1] == (
        "run small ended without a summary in s3://results/btard/small; `stop` removes what is left of it; "
        "to continue, launch another run_id with swarm.start_from s3://results/btard/small/checkpoints/step-00001000.safetensors"
    )


def test_a_summary_that_comes_while_the_coordinator_leaves_is_the_end(launched, pauses):
    pauses.acts = [lambda: end_coordinator(launched), lambda: None, lambda: put(launched, "summary.json", "{}")]
    assert launched("wait") == 0
    assert "run small has finished" in launched.output


def test_a_run_that_is_stopped_meanwhile_has_not_finished(launched, pauses):
    pauses.acts = [lambda: launched("stop")]
    assert launched("wait") == 1
    assert launched.output.splitlines()[-1] == (
        "run small was stopped before it had finished; it has kept no checkpoint from which to continue"
    )


def test_max_hours_end_it_once_the_last_copy_may_be_expected(launched, pauses):
    begun, hours = pauses.time, timedelta(hours=8)
    pauses.acts = [lambda: pauses.skip(hours)]  # somebody forbade the machines to end
    assert launched("wait") == 1
    message = "(max_hours) before it had finished; `stop` removes what is left of it; it has kept no checkpoint"
    assert message in launched.output and launched.output.startswith("run small")
    assert pauses.time - begun >= hours + LAST_COPY

    pauses.time = begun
    pauses.acts = [lambda: (pauses.skip(hours), end_coordinator(launched))]
    assert launched("wait") == 1
    assert message in launched.output


def test_a_half_made_run_is_given_time(launched, pauses):
    group = launched.client("ec2").describe_security_groups(GroupNames=["btard-small"])["SecurityGroups"][0]["GroupId"]

    def say(state: str) -> None:
        launched.client("ec2").create_tags(Resources=[group], Tags=[{"Key": "btard:state", "Value": state}])

    say("launching")
    assert launched("wait") == 1
    assert "run small is half-made; `launch` completes it, `stop` removes it" in launched.output
    pauses.acts = [lambda: say("complete"), lambda: put(launched, "summary.json", "{}")]
    assert launched("wait") == 0


def test_without_a_run_or_a_bucket_it_says_so_at_once(cloud, pauses):
    assert cloud("wait") == 1
    assert cloud.output == (
        "run small is not there, and has not finished in s3://results/btard/small; `launch` starts it\n"
    )
    assert cloud("wait", "--bucket", "null") == 2
    assert cloud.output == (
        "error: `wait` looks into the bucket, which is null; set bucket before the launch, or use `status`\n"
    )
    assert pauses.pauses == 0
    cloud.changes = ["--bucket", "null"]
    with pytest.raises(ConfigError):
        wait(cloud.run, Console(file=StringIO()))


# Requests that fail.


def test_a_busy_and_broken_aws_is_waited_for(launched, pauses):
    endpoint = launched.endpoint

    def heal() -> None:
        endpoint.rules.clear()
        answers.say_what_aws_would(endpoint)

    pauses.acts = [
        lambda: endpoint.refuse("DescribeSecurityGroups", "RequestLimitExceeded", "slow down"),
        lambda: None,
        heal,
        lambda: endpoint.answer("GetObject", Reply("<html>a proxy</html>", 502)),
        heal,
        lambda: endpoint.refuse("GetObject", "AccessDenied", "for a moment"),
        heal,
        lambda: status(launched, pauses, 7),
        lambda: endpoint.refuse("DescribeSpotPriceHistory", "UnauthorizedOperation"),  # what it costs is not vital
        lambda: put(launched, "summary.json", "{}"),
    ]
    assert launched("wait") == 0, launched.output
    told = [line for line in launched.output.splitlines() if "still waiting" in line or "again" in line]
    assert told[0].startswith("still waiting, although AWS still refused DescribeSecurityGroups after several tries")
    assert [line.split(",")[0] for line in told] == ["still waiting", "AWS answers again"] * 3
    assert "missing right: GetObject was refused (AccessDenied)" in told[4]


def test_an_aws_that_is_silent_at_the_first_look_is_waited_for_as_well(launched, pauses):
    launched.endpoint.answer("GetObject", Reply("<html>a proxy</html>", 503))

    def heal() -> None:
        launched.endpoint.rules.pop()
        put(launched, "summary.json", "{}")

    pauses.acts = [lambda: None, heal]
    assert launched("wait") == 0, launched.output
    assert launched.output.startswith("still waiting, although AWS refused GetObject (503")


def test_what_no_waiting_mends_is_said_at_the_first_look(launched, pauses):
    launched.endpoint.refuse("GetObject", "NoSuchBucket", "The specified bucket does not exist")
    assert launched("wait") == 1
    assert launched.output == (
        "error: AWS refused GetObject (NoSuchBucket: The specified bucket does not exist); docs/aws.md lists common "
        "causes\n"
    )
    assert pauses.pauses == 0


def test_it_does_not_wait_for_an_answer_beyond_the_runs_end(launched, pauses):
    pauses.acts = [lambda: launched.endpoint.refuse("GetObject", "AccessDenied", "for good")]
    with pytest.raises(
        CloudError, match=r"missing right: GetObject .*; by now the run has ended by itself, `wait` again"
    ):
        wait(launched.run, Console(file=StringIO()))


def test_credentials_that_expire_are_read_again(launched, pauses, monkeypatch):
    made = []
    monkeypatch.setattr("albert.cloud.wait.Account", lambda *words: made.append(words) or launched.account)
    pauses.acts = [
        lambda: launched.endpoint.refuse("GetObject", "ExpiredToken", "The provided token has expired.", times=2),
        lambda: None,
        lambda: put(launched, "summary.json", "{}"),
    ]
    assert launched("wait") == 0, launched.output
    assert "still waiting, although the credentials have expired" in launched.output
    assert "log in again, for example `aws sso login`" in launched.output
    assert made and set(made) == {("us-east-1", None)}


def test_a_silent_coordinator_is_told_once_in_every_silence(launched, pauses):
    pauses.acts = [
        lambda: status(launched, pauses, 3),
        lambda: pauses.skip(timedelta(minutes=20)),
        lambda: None,
        lambda: status(launched, pauses, 4),
        lambda: put(launched, "status.json", '{"step": 1'),
        lambda: put(launched, "summary.json", "{}"),
    ]
    assert launched("wait") == 0, launched.output
    told = [line for line in launched.output.splitlines() if "no news" in line]
    assert told[0] == "no news from the coordinator for 20 min: `logs coordinator` shows what it does"
    assert len(told) == 2 and "s3://results/btard/small/status.json is not a status of a swarm" in told[1]


def test_ctrl_c_leaves_the_run_alone(launched, pauses):
    pauses.acts = [lambda: os.kill(os.getpid(), signal.SIGINT)]
    launched.endpoint.asked.clear()
    assert launched("wait") == 130
    assert "no longer waiting; the run goes on, until 2" in launched.output
    assert "at the latest: `wait` waits again, `stop` ends it" in launched.output
    assert launched.endpoint.changes() == []
    assert len(launched.machines()) == 4


# What it looks like.


def test_at_a_terminal_the_bar_stays_in_its_place(launched, pauses):
    pauses.acts = [
        lambda: status(launched, pauses, 625),
        lambda: launched.endpoint.refuse("GetObject", "AccessDenied", times=1),
        lambda: put(launched, "summary.json", "{}"),
    ]
    screen = StringIO()
    out = Console(file=screen, force_terminal=True, width=160, color_system=None)
    assert wait(launched.run, out) is True
    drawn = screen.getvalue()
    assert "\x1b[2K" in drawn  # lines are drawn over
    assert "run small ━━━━━━━━━━━━━━━" in drawn
    assert "step 625 of 1250, 2 of 4 peers alive, 1 banned, 50 steps an hour, 12 h 30 min left" in drawn
    assert drawn.count("still waiting, although missing right: GetObject") == 1
