"""An AWS on loopback: moto's server, with faults and answers of ours placed exactly by action.

moto keeps the state (what was made, tagged, removed) and speaks AWS's protocols. Where it knows nothing (quotas, price
list, output of commands, failed scaling), a rule answers as AWS does. All of it goes through HTTP, as in earnest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from moto.backends import get_backend
from moto.server import ThreadedMotoServer

START = Callable[[str, list[tuple[str, str]]], Any]


@dataclass(frozen=True)
class Request:
    """One call of an AWS action."""

    service: str
    action: str
    arguments: dict[str, Any]

    @property
    def changes(self) -> bool:
        """Whether it makes, changes or removes anything."""
        looks = ("Describe", "Get", "List", "Head", "Simulate")
        return not self.action.startswith(looks) and self.arguments.get("DryRun") != "true"


@dataclass(frozen=True)
class Reply:
    """What is answered instead of asking moto."""

    body: str
    status: int = 200
    type: str = "text/xml"
    headers: tuple[tuple[str, str], ...] = ()
    """Over those that follow from the rest."""


Rule = Callable[[Request], "Reply | None"]
"""None lets the request through."""


@dataclass
class Endpoint:
    """The server, what was asked of it, and the rules; the newest rule is asked first."""

    url: str = ""
    asked: list[Request] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def start(self) -> ThreadedMotoServer:
        os.environ["MOTO_AMIS_PATH"] = str(Path(__file__).with_name("amis.json"))  # moto's own are hundreds
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self._moto = server._server.app
        server._server.app = self
        return server

    def reset(self) -> None:
        """Forget everything but moto's public parameters, which take it a while to read."""
        self.rules.clear()
        self.asked.clear()
        for service in ("autoscaling", "ec2", "iam", "s3"):
            get_backend(service).reset()
        for accounts in get_backend("ssm").values():
            for backend in accounts.values():
                for name in [name for name in backend._parameters if name.startswith("/btard/")]:
                    del backend._parameters[name]

    def __call__(self, environ: dict[str, Any], start_response: START) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith("/moto-api"):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = BytesIO(body)
            request = _parse(environ, body.decode("utf-8", errors="replace"))
            self.asked.append(request)
            for rule in reversed(self.rules):
                reply = rule(request)
                if reply is not None:
                    content = reply.body.encode()
                    headers = {"Content-Type": reply.type, "Content-Length": str(len(content)), **dict(reply.headers)}
                    start_response(f"{reply.status} Told", list(headers.items()))
                    return [content]
        return self._moto(environ, start_response)

    def answer(self, action: str, reply: Reply | Callable[[Request], Reply | None]) -> None:
        """Answer an action with `reply`, or with what it returns."""
        self.rules.append(
            lambda request: None if request.action != action else reply(request) if callable(reply) else reply
        )

    def refuse(self, action: str, code: str, message: str = "", *, times: int = 10**9, after: int = 0) -> None:
        """Refuse an action so many times, after it went well so many times."""
        seen = 0

        def rule(request: Request) -> Reply | None:
            nonlocal seen
            if request.action != action or request.arguments.get("DryRun") == "true":
                return None
            seen += 1
            return refusal(request.service, code, message) if after < seen <= after + times else None

        self.rules.append(rule)

    def at(self, action: str, act: Callable[[], None], *, nth: int = 1) -> None:
        """Do something right before the nth time an action reaches moto."""
        seen = 0

        def rule(request: Request) -> None:
            nonlocal seen
            if request.action == action and request.changes:
                seen += 1
                if seen == nth:
                    act()

        self.rules.append(rule)

    def actions(self) -> set[str]:
        """All that was asked, as IAM names it."""
        return {f"{request.service}:{request.action}" for request in self.asked}

    def changes(self) -> list[str]:
        return [request.action for request in self.asked if request.changes]


def refusal(service: str, code: str, message: str) -> Reply:
    """An error in the protocol of a service."""
    status = 503 if code in ("RequestLimitExceeded", "Throttling") else 400
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    if service == "ec2":
        return Reply(f"<Response><Errors>{error}</Errors><RequestID>1</RequestID></Response>", status)
    if service in ("autoscaling", "iam", "sts"):
        return Reply(f"<ErrorResponse>{error}<RequestId>1</RequestId></ErrorResponse>", status)
    if service == "s3":
        return Reply(f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>", status)
    return Reply(json.dumps({"__type": code, "message": message}), status, "application/x-amz-json-1.1")


def told(content: dict[str, Any]) -> Reply:
    """An answer of a service that speaks JSON."""
    return Reply(json.dumps(content), type="application/x-amz-json-1.1")


def _parse(environ: dict[str, Any], body: str) -> Request:
    scope = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    service = scope[1] if scope else ""
    target = environ.get("HTTP_X_AMZ_TARGET")
    if target:
        return Request(service, target.rpartition(".")[2], json.loads(body or "{}"))
    form = {key: values[0] for key, values in parse_qs(body).items()}
    if "Action" in form:
        return Request(service, form.pop("Action"), form)
    return Request(service, _s3_action(environ), {"path": environ["PATH_INFO"], "range": environ.get("HTTP_RANGE")})


def _s3_action(environ: dict[str, Any]) -> str:
    inside = "/" in environ["PATH_INFO"].strip("/")
    method = environ["REQUEST_METHOD"].capitalize()
    return f"{method}Object" if inside else {"Get": "ListBucket"}.get(method, f"{method}Bucket")
