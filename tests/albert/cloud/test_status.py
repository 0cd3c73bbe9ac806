"""`status` and `logs`: the swarm's own records joined with EC2's, from S3 or from the machine, and what they cost."""

import time
from datetime import datetime, timezone

import pytest

from albert.cloud.errors import CloudError
from albert.cloud.machines import Machine
from albert.cloud.records import parse_record
from albert.cloud.status import join
from tests.albert.cloud import answers
from tests.albert.cloud.conftest import Cloud
from tests.albert.cloud.folders import peer, record


def rows(output: str) -> list[list[str]]:
    lines = [line for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@pytest.fixture
def launched(cloud: Cloud) -> Cloud:
    assert cloud("launch") == 0, cloud.output
    cloud.endpoint.asked.clear()
    return cloud


def test_every_peer_has_its_machine_and_every_machine_its_peer(launched):
    failed = {
        "Description": "Launching a new EC2 instance",
        "StatusCode": "Failed",
        "StatusMessage": "UnfulfillableCapacity",
        "StartTime": "2126-01-01T00:00:00Z",
    }
    launched.endpoint.answer("DescribeScalingActivities", answers.activities([failed]))
    assert launched("status") == 0
    assert [row[-1] for row in rows(launched.output)] == ["running", "starting", "starting", "starting"]
    assert "no news from the coordinator: it has written nothing yet" in launched.output
    assert "AWS says (2126-01-01 00:00 UTC) btard-small-honest: UnfulfillableCapacity" in launched.output

    honest, newer = (machine["InstanceId"] for machine in launched.machines("honest"))
    liar = launched.machines("byzantine")[0]
    peers = [
        peer(0, instance=honest),
        peer(1, instance=liar["PrivateDnsName"], step=1001, active=False, banned="wrong_gradient, step 1001"),
        peer(2, instance="i-00000000000000000", step=900, active=False, last_seen=None),
    ]
    launched.client("s3").put_object(Bucket="results", Key="btard/small/status.json", Body=record(peers).encode())
    assert launched("status") == 0, launched.output
    coordinator = launched.machines("coordinator")[0]["InstanceId"]
    zone = launched.machines("honest")[0]["Placement"]["AvailabilityZone"]
    assert sorted(rows(launched.output)) == sorted([
        ["coordinator", coordinator, "us-east-1a", "m6i.large", "", "", "", "running"],
        ["honest", honest, zone, "g4dn.xlarge", "0", "1041", "10 min ago", "training"],
        ["honest", newer, zone, "g4dn.xlarge", "", "", "", "starting"],
        ["byzantine", liar["InstanceId"], zone, "g4dn.xlarge", "1", "1001", "10 min ago",
         "banned: wrong_gradient, step 1001"],
        ["", "gone", "", "", "2", "900", "never", "waiting"],
    ])  # fmt: skip
    assert "step 1042, 52 steps an hour; 1 peers train, 1 are banned; written " in launched.output
    assert "dollars so far" in launched.output
    assert "SendCommand" not in {request.action for request in launched.endpoint.asked}

    s3 = launched.client("s3")
    s3.put_object(Bucket="results", Key="btard/small/status.json", Body=record([], time=time.time() - 900).encode())
    assert launched("status") == 0
    assert "written 15 min ago (late: see `logs coordinator`)" in launched.output
    s3.put_object(Bucket="results", Key="btard/small/status.json", Body=b'{"step": 1')
    assert launched("status") == 0
    assert "no news from the coordinator: s3://results/btard/small/status.json is not a status" in launched.output
    assert launched("stop") == 0


def test_a_peer_that_names_anothers_machine_does_not_take_its_place():
    now = datetime.now(timezone.utc)
    machines = [Machine(name, "honest", "", "", "running", False, now, None, frozenset()) for name in "ab"]
    peers = [
        peer(0, instance="a", last_seen=100.0),
        peer(1, instance="b", banned="gone, step 7", last_seen=101.0),
        peer(2, instance="b", last_seen=100.0),
        peer(3, instance="a", last_seen=102.0),
    ]
    found = join(machines, parse_record(record(peers), "here"))
    shown = [(row.machine and row.machine.id, row.peer and row.peer.number) for row in found]
    assert shown == [("a", 0), ("a", 3), ("b", 2), (None, 1)]


@pytest.mark.parametrize("text", ['{"step": 1', '{"step": 1, "time": 2, "steps_per_hour": null}', "[]", '{"peers": 3}'])
def test_a_broken_record_is_one_line(text):
    with pytest.raises(CloudError, match=r"here is not a status of a swarm .*; `logs coordinator` says what it does"):
        parse_record(text, "here")


def test_without_a_bucket_the_coordinator_itself_is_asked(cloud):
    cloud.changes = ["--bucket", "null"]
    assert cloud("launch") == 0, cloud.output
    honest = cloud.machines("honest")[0]["InstanceId"]
    cloud.endpoint.answer("GetCommandInvocation", answers.printed(record([peer(0, instance=honest)])))
    assert cloud("status") == 0
    assert [honest, "0"] in [[row[1], row[4]] for row in rows(cloud.output)]
    sent = next(r.arguments for r in cloud.endpoint.asked if r.action == "SendCommand")
    assert sent["InstanceIds"] == [cloud.machines("coordinator")[0]["InstanceId"]]
    assert "cat /var/lib/btard/run/status.json" in sent["Parameters"]["commands"][0]
    assert cloud("stop") == 0
    assert "kept" not in cloud.output


def test_before_there_is_anything_status_says_what_to_do(cloud):
    assert cloud("status") == 1
    assert cloud.output == "no run small in us-east-1; `launch` starts it\n"


# logs


def test_logs_come_from_the_machine_that_is_meant_once_the_command_has_run(launched):
    coordinator = launched.machines("coordinator")[0]["InstanceId"]
    honest = launched.machines("honest")[1]["InstanceId"]
    peers = record([peer(0), peer(1, instance=honest)])
    launched.client("s3").put_object(Bucket="results", Key="btard/small/status.json", Body=peers.encode())
    for who, target in (("coordinator", coordinator), ("1", honest), (honest, honest)):
        states = iter(["Pending", "InProgress", "Success"])
        launched.endpoint.answer(
            "GetCommandInvocation", lambda request, s=states: answers.printed("step 3: loss [8.1]\nstep 4\n", next(s))
        )
        launched.endpoint.refuse("GetCommandInvocation", "InvocationDoesNotExist", times=1)
        launched.endpoint.asked.clear()
        assert launched("logs", who, "--log_lines", "50") == 0, launched.output
        assert launched.output == "step 3: loss [8.1]\nstep 4\n"
        sent = next(r.arguments for r in launched.endpoint.asked if r.action == "SendCommand")
        assert sent["InstanceIds"] == [target]
        assert "journalctl --unit btard --no-pager --output short-iso --lines 50" in sent["Parameters"]["commands"][0]
    assert launched("stop") == 0


def test_what_logs_cannot_show_is_one_line_each(launched, monkeypatch):
    monkeypatch.setattr("albert.cloud.remote.WAIT_SECONDS", 0.05)
    peers = record([peer(0, instance="i-00000000000000000"), peer(1)])
    launched.client("s3").put_object(Bucket="results", Key="btard/small/status.json", Body=peers.encode())
    endpoint = launched.endpoint

    def says(who: str, message: str) -> None:
        assert launched("logs", who) == 1
        assert launched.output.startswith("error: ") and launched.output.count("\n") == 1
        assert message in launched.output

    says("nobody", "expected coordinator, a peer's number or an instance id, got nobody")
    says("7", "there is no peer 7; there are 0, 1")
    says("0", "peer 0 was on i-00000000000000000, which is gone, and its log with it")
    says("1", "peer 1 was on a machine outside AWS")
    says("i-0123", "run small has no machine i-0123 that is alive")
    endpoint.answer("GetCommandInvocation", answers.printed("", "Failed", "no journal"))
    says("coordinator", "ended with Failed: no journal; try again")
    endpoint.answer("GetCommandInvocation", answers.printed("", "InProgress"))
    says("coordinator", "did not answer within 0.05 seconds")
    endpoint.refuse("SendCommand", "InvalidInstanceId", "not in a valid state")
    says("coordinator", "does not answer to Systems Manager: it still boots")
    assert launched("stop") == 0
    says("coordinator", "run small has no coordinator; `status` says more, `launch` starts one")
