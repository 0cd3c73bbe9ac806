"""A server on this machine that answers wandb as that of Weights & Biases does, as far as the tests ask it."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """`asked`: the variables of each GraphQL request, by operation. `refuse` makes it answer that nobody may."""

    def __init__(self) -> None:
        self.asked: dict[str, list[dict[str, Any]]] = {}
        self.refuse = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                code, value = outer._graphql(json.loads(body)) if self.path == "/graphql" else (200, {})
                reply = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _graphql(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        words = request["query"].split()
        operation = words[1].partition("(")[0]
        variables = request.get("variables") or {}
        self.asked.setdefault(operation, []).append(variables)
        if self.refuse and operation not in ("Viewer", "GetDefaultEntity"):
            return 403, {"errors": [{"message": "permission denied"}], "data": None}
        entity = {"id": "e", "name": "a-team"}
        project = {"id": "p", "name": "a-project", "entity": entity}
        if "viewer" in request["query"]:
            viewer = {"id": "v", "entity": "a-team", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
            return 200, {"data": {"viewer": viewer}}
        if operation == "UpsertView2":
            return 200, {"data": {"upsertView": {"view": {"id": "view", "name": variables["name"]}, "inserted": True}}}
        if operation == "RunResumeStatus":
            return 200, {"data": {"model": {**project, "bucket": None}}}
        if operation == "UpsertBucket":
            bucket = {"id": "r", "name": variables["name"], "displayName": "x", "project": project, "config": "{}"}
            return 200, {"data": {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/file"} for name in variables["files"]]
            return 200, {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
        return 200, {"data": {}}
