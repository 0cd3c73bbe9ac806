"""An AWS per test, empty before it, with nothing of a run in it after it; and commands as a user gives them."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from albert.cloud import account as patience
from albert.cloud.__main__ import main
from albert.cloud.account import Account
from albert.cloud.config import load
from albert.cloud.run import Run
from albert.cloud.stop import leftovers
from btard.harness import typed_yaml
from tests.albert.cloud.answers import say_what_aws_would
from tests.albert.cloud.endpoint import Endpoint

REGION = "us-east-1"
SMALL = """\
run_id: small
region: us-east-1
hours: 5
max_hours: 8
bucket: results
wait_minutes: 0
code: {repository: "https://example.org/btard.git", ref: 0123456789abcdef0123456789abcdef01234567}
data: {source: "s3://data/wikitext"}
swarm: {config: swarm.yaml, options: {threads: 2, protocol.probation: 10}}
trainers: {count: 3, byzantine: 1, types: g4dn.xlarge g4dn.2xlarge}
network: {ssh_key: laptop, ssh_from: 203.0.113.7/32}
"""
"""Settings of a swarm of 1 coordinator, 2 honest trainers and 1 Byzantine one."""


@pytest.fixture(scope="session", autouse=True)
def _sources_read_once() -> Iterator[None]:
    """What keys are documented as is read from the sources for every command; here once for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typed_yaml, "_field_docs", functools.cache(typed_yaml._field_docs))
        yield


@pytest.fixture(autouse=True)
def _no_signal_is_lost() -> Iterator[None]:
    """Some tests press Ctrl-C in this process: what falls into a callback of the garbage collection raises nothing."""
    before = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = before


@pytest.fixture(scope="session")
def _server() -> Iterator[Endpoint]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    endpoint = Endpoint()
    server = endpoint.start()
    yield endpoint
    server.stop()


@pytest.fixture
def environment(_server: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The variables under which the commands find our AWS; no real credentials are ever in reach."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    variables = {
        "COLUMNS": "400",  # or tables would break what is looked for
        "AWS_ENDPOINT_URL": _server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def endpoint(_server: Endpoint, environment: dict[str, str]) -> Endpoint:
    """The server, with the answers of an account in which everything is fine."""
    _server.reset()
    say_what_aws_would(_server)
    return _server


@dataclass
class Cloud:
    """A run's settings in a folder, the account behind them, and what was printed."""

    endpoint: Endpoint
    file: Path
    capture: pytest.CaptureFixture[str]
    account: Account
    changes: list[str] = field(default_factory=list)
    output: str = ""

    def __call__(self, command: str, *words: str) -> int:
        """Run a command as from the command line; return its exit code."""
        try:
            code = main([command, str(self.file), *words, *self.changes])
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = self.capture.readouterr()
        self.output = printed.out + printed.err
        return code

    @property
    def run(self) -> Run:
        return Run(self.account, load(self.file, self.changes))

    def client(self, service: str) -> Any:
        return self.account.client(service)

    def left(self) -> list[tuple[str, str]]:
        return leftovers(self.run)

    def machines(self, role: str | None = None) -> list[dict[str, Any]]:
        """What runs, as EC2 says it."""
        filters = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        filters += [{"Name": "tag:btard:role", "Values": [role]}] if role else []
        pages = self.client("ec2").get_paginator("describe_instances").paginate(Filters=filters)
        return [i for page in pages for reservation in page["Reservations"] for i in reservation["Instances"]]


@pytest.fixture(scope="session")
def _account(_server: Endpoint) -> Callable[[], Account]:
    """One account for all looks of the tests themselves: boto3 takes long to make clients."""
    made: list[Account] = []

    def account() -> Account:
        made.extend([] if made else [Account(REGION)])
        return made[0]

    return account


def _with_clients_of(account: Account) -> Account:
    """An account that knows nothing of the caller yet."""
    other = copy.copy(account)
    vars(other).pop("caller", None)
    return other


@pytest.fixture
def cloud(
    endpoint: Endpoint,
    _account: Callable[[], Account],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Cloud]:
    """A small swarm's settings, with its bucket, data and key pair there. After the test nothing of it may be left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(patience, "POLL_SECONDS", 0.01)
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    monkeypatch.setattr("albert.cloud.__main__.Account", lambda region, profile: _with_clients_of(_account()))
    (tmp_path / "swarm.yaml").write_text("steps: 1250\n", encoding="utf-8")
    file = tmp_path / "aws.yaml"
    file.write_text(SMALL, encoding="utf-8")
    cloud = Cloud(endpoint, file, capsys, _account())
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="results")
    s3.create_bucket(Bucket="data")
    s3.put_object(Bucket="data", Key="wikitext/train.bin", Body=b"words")
    cloud.client("ec2").create_key_pair(KeyName="laptop", KeyType="ed25519")
    endpoint.asked.clear()
    yield cloud
    endpoint.rules.clear()
    if endpoint.changes():
        assert cloud.left() == []
