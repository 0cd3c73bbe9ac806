"""The AWS account that a command works in: its clients, who the caller is, and patience."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlparse

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError

from albert.cloud.errors import explained

POLL_SECONDS = 5.0
"""Seconds between two checks of something that AWS is still busy with."""
PROFILE_SECONDS = 60.0
"""How long EC2 may take to hear of a new instance profile."""

T = TypeVar("T")

_PATIENT = ClientConfig(
    retries={"mode": "standard", "total_max_attempts": 8}, connect_timeout=10, read_timeout=60, user_agent_extra="btard"
)
"""Refusals for too many requests, and lost connections, are tried again with growing pauses, up to a minute in all."""


class Account:
    """Credentials, a region, and a client per service. Errors: CloudError without credentials or region."""

    def __init__(self, region: str | None = None, profile: str | None = None) -> None:
        with explained():
            self._session = boto3.Session(region_name=region, profile_name=profile)
            self._clients: dict[str, Any] = {}
            self.region: str = self.client("ec2").meta.region_name

    def client(self, service: str) -> Any:
        """Return the client of a service in this region; the price list is only in some, so from us-east-1."""
        if service not in self._clients:
            region = "us-east-1" if service == "pricing" else None
            self._clients[service] = self._session.client(service, region_name=region, config=_PATIENT)
        return self._clients[service]

    @cached_property
    def caller(self) -> tuple[str, str]:
        """The account's number and the caller's ARN. Raises CloudError if AWS does not accept the credentials."""
        with explained():
            identity = self.client("sts").get_caller_identity()
        return identity["Account"], identity["Arn"]

    @property
    def partition(self) -> str:
        """`aws`, but for China and the like."""
        return self.caller[1].split(":")[1]

    def pages(self, service: str, operation: str, key: str, **arguments: Any) -> list[Any]:
        """Return everything under `key` that an operation lists, over all its pages; a page without any may lack it."""
        found: list[Any] = []
        for page in self.client(service).get_paginator(operation).paginate(**arguments):
            found += page.get(key, [])
        return found

    def files(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return the objects below s3://BUCKET/FOLDER as S3 lists them, by their names there."""
        place = urlparse(folder)
        prefix = f"{place.path.strip('/')}/"
        entries = self.pages("s3", "list_objects_v2", "Contents", Bucket=place.netloc, Prefix=prefix)
        return {entry["Key"].removeprefix(prefix): entry for entry in entries if not entry["Key"].endswith("/")}


def wait_for(probe: Callable[[], T | None], seconds: float) -> T | None:
    """Return what `probe` returns as soon as that is not None; None after this many seconds."""
    end = time.monotonic() + seconds
    while True:
        result = probe()
        if result is not None or time.monotonic() >= end:
            return result
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))


def patiently(call: Callable[[], T], passes: Callable[[ClientError], bool], seconds: float) -> T:
    """Return what `call` returns; it is tried again for so many seconds while `passes` says so of its error."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except ClientError as error:
            if not passes(error) or time.monotonic() >= end:
                raise
        time.sleep(POLL_SECONDS)


def once_profiles_are_known(call: Callable[[], T]) -> T:
    """Return what `call` returns; tried again for a minute while EC2 has not heard of a new instance profile yet."""

    def unheard(error: ClientError) -> bool:
        return any(words in str(error) for words in ("IamInstanceProfile", "Invalid IAM Instance Profile"))

    return patiently(call, unheard, PROFILE_SECONDS)
