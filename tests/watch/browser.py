"""A headless Chromium that takes real keys: its DevTools protocol over two pipes, so without a port or a package."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds for what a browser is asked."""
KEYS = {"Tab": 9, "Enter": 13, "Space": 32, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, "End": 35}
"""Key -> its code in a browser's events."""


class Page:
    """One tab. `run` evaluates JavaScript, `press` presses a key."""

    def __init__(self, sends: int, hears: int) -> None:
        self._sends, self._hears = sends, hears
        self._number, self._rest, self._session = 0, b"", ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, address: str) -> None:
        """Load a page, and wait until its program has drawn it."""
        self._ask("Page.navigate", url=address)
        self.until("document.documentElement.dataset.drawn && document.readyState === 'complete'")

    def run(self, code: str) -> Any:
        """The value of an expression, of JSON's types."""
        return self._ask("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def until(self, code: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(code):
            assert time.monotonic() < deadline, code
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press a key and let it go, as a person does."""
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        said = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self._ask("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **said)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **said)

    def _ask(self, method: str, **words: Any) -> dict[str, Any]:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": words}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._sends, json.dumps(asked).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._hears, 2**16)
                assert piece, "the browser has ended"
                self._rest += piece
            text, _, self._rest = self._rest.partition(b"\0")
            said = json.loads(text)
            if said.get("id") == self._number:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result


@contextmanager
def browser(chromium: str, profile: Path) -> Iterator[Page]:
    """A browser with an empty tab."""
    (theirs, sends), (hears, their_end) = os.pipe(), os.pipe()

    def connect() -> None:
        os.dup2(theirs, 3)
        os.dup2(their_end, 4)

    words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    with subprocess.Popen(
        [*words, "--remote-debugging-pipe"],
        pass_fds=(3, 4),
        preexec_fn=connect,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(theirs)
        os.close(their_end)
        try:
            yield Page(sends, hears)
        finally:
            process.kill()
            os.close(sends)
            os.close(hears)
