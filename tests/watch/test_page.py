"""A page is one file that loads nothing, whatever it shows stays text, and a served one is for this machine alone."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from btard.watch.__main__ import main
from btard.watch.folder import read_run
from btard.watch.page import content_of, json_of, page_of
from btard.watch.serve import Server, Watcher
from tests.watch.browser import Page, browser
from tests.watch.runs import EVIL, swarm

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


class Tags(HTMLParser):
    """Counts elements, and keeps scripts and what could load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.scripts: list[str] = []
        self.places: list[str] = []
        self.policy = ""
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._in_script = tag == "script"
        said = dict(attrs)
        self.places += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        assert not any(name.startswith("on") for name in said), "no inline handlers"
        if said.get("http-equiv") == "Content-Security-Policy":
            self.policy = said["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.scripts.append(data)
            self._in_script = False


def page(folder: Path) -> str:
    return page_of(content_of(read_run(folder)))


def test_a_page_is_one_file_that_loads_nothing_and_runs_two_scripts_alone(real_run: Path) -> None:
    text = page(real_run)
    found = Tags(text)
    assert found.places == ["#step-title"]
    data, *programs = found.scripts
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in programs]
    assert re.findall(r"'sha256-([^']+)'", found.policy) == digests and len(digests) == 2
    assert "default-src 'none'" in found.policy and "connect-src 'none'" in found.policy
    assert "unsafe-eval" not in found.policy and "'unsafe-inline'" not in found.policy.partition("style-src")[0]
    assert json.loads(data)["steps_done"] == 24
    assert len(text) < 2**21


def test_what_strangers_call_things_is_data_and_no_tag(tmp_path: Path) -> None:
    plain, evil = page(swarm(tmp_path / "a")), page(swarm(tmp_path / "b", EVIL))
    assert Tags(plain).tags == Tags(evil).tags
    for part in ("<img", "<script", "</script"):
        assert evil.count(part) == plain.count(part)
    told = json.loads(json_of(content_of(read_run(tmp_path / "b"))))
    assert told["title"].startswith("</script><script>") and "\u2028" not in told["title"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    folder = swarm(tmp_path / "coordinator")
    with Server(Watcher(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server, folder
        server.shutdown()
        thread.join()


def get(server: Server, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, body and ETag of an answer."""
    line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    line.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = line.getresponse()
    body = answer.read().decode()
    line.close()
    return answer.status, body, answer.headers.get("ETag", "")


def test_a_served_page_follows_the_run(served: tuple[Server, Path]) -> None:
    server, folder = served
    status, text, _ = get(server, "/")
    assert status == 200 and 'data-live="yes"' in text and "connect-src http://localhost:*" in text
    status, text, tag = get(server, "/data.json")
    assert (status, json.loads(text)["steps_done"]) == (200, 104)
    assert get(server, "/data.json", If_None_Match=tag)[0] == 304
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 104, "loss": 0.5, "roles": "ww.w"}) + "\n" + '{"step": 10')
    status, text, newer = get(server, "/data.json", If_None_Match=tag)
    assert (status, json.loads(text)["steps_done"]) == (200, 105) and newer != tag
    (folder / "summary.json").write_text("{")  # in the middle of being written
    assert get(server, "/data.json", If_None_Match=newer)[0] == 304
    (folder / "summary.json").write_text("{}")
    assert json.loads(get(server, "/data.json")[1])["finished"]


def test_nobody_but_this_machine_is_served(served: tuple[Server, Path]) -> None:
    server, _ = served
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/", Host="evil.example")[0] == 403
    assert get(server, "/", Host=f"localhost:{server.server_port}")[0] == 200
    for path in ("/config.yaml", "/../config.yaml", "/data.json/x"):
        assert get(server, path)[0] == 404


def test_a_port_that_is_taken_is_one_line(served: tuple[Server, Path], capsys: pytest.CaptureFixture[str]) -> None:
    server, folder = served
    for port in (str(server.server_port), "99999"):
        with pytest.raises(SystemExit) as stopped:
            main([str(folder), "--serve", "--port", port])
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2 and line.startswith(f"error: --port {port}: ")


PROBE = """
<script>
const seen = setInterval(() => {
  if (!document.documentElement.dataset.drawn) return;
  clearInterval(seen);
  const before = document.getElementById("step-title").textContent;
  document.getElementById("after-entry").click();
  const after = document.getElementById("step-title").textContent;
  const chart = document.querySelector("#peers svg"), box = chart.getBoundingClientRect();
  const where = { bubbles: true, clientX: box.left + 0.9 * box.width, clientY: box.top + 30 };
  chart.dispatchEvent(new MouseEvent("click", where));
  const clicked = document.getElementById("step-title").textContent;
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const reached = [...document.querySelectorAll("button, input, summary, a")].every((one) => one.tabIndex >= 0);
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--bg").trim();
  const title = document.title;
  document.body.append("PROBE " + JSON.stringify({ before, after, clicked, wide, reached, dark, title }));
}, 50);
</script>
"""


def browse(address: str, folder: Path, *flags: str) -> str:
    """The page's document once its program has run."""
    assert CHROMIUM is not None
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", *flags)
    words = [CHROMIUM, *flags, "--virtual-time-budget=10000", "--dump-dom", address]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=True).stdout


@needs_browser
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_draws_it_and_nothing_hostile_runs(width: int, real_run: Path, tmp_path: Path) -> None:
    folder = swarm(tmp_path / "evil", EVIL) if width == 1200 else real_run
    file = tmp_path / "page.html"
    # The probe is a script of the test: for it the page's policy has to go, so what holds here holds all the more.
    file.write_text(re.sub(r"<meta http-equiv=.*\n", "", page(folder)) + PROBE)
    scheme = ("--blink-settings=preferredColorScheme=0",) if width == 400 else ()
    document = browse(file.as_uri(), tmp_path / "profile", f"--window-size={width},900", *scheme)
    told = json.loads(
        document.rpartition("PROBE ")[2].partition("}")[0].replace("&lt;", "<").replace("&gt;", ">") + "}"
    )
    shown = document.partition("<script")[0]
    assert told["wide"] <= 0, "nothing is wider than the window"
    assert told["reached"] and told["before"] != told["after"], "the next entry is shown, by a button"
    last = max(row["step"] for row in content_of(read_run(folder))["steps"])
    assert last - 5 <= int(told["clicked"].removeprefix("Step ")) <= last, "a click near the end picks a step there"
    assert told["dark"] == ("#0d1117" if width == 400 else "#ffffff")
    assert told["title"] != "owned" and "<img" not in shown
    assert shown.count("<svg") == (5 if width == 400 else 3)
    assert "removed: wrong_gradient" in shown


@needs_browser
def test_a_browser_runs_the_page_under_its_own_policy(real_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(real_run))
    document = browse(file.as_uri(), tmp_path / "profile")
    assert 'data-drawn="1"' in document and document.partition("<script")[0].count("<svg") == 5


def walk_to(tab: Page, wanted: str) -> None:
    """Press Tab until the focus is on what this selector finds."""
    for _ in range(60):
        if tab.run(f"document.activeElement.matches({wanted!r})"):
            return
        tab.press("Tab")
    raise AssertionError(f"Tab does not lead to {wanted}")


@needs_browser
def test_keys_alone_move_through_steps_and_open_what_is_closed(real_run: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    file = tmp_path / "page.html"
    file.write_text(page(real_run))
    entries = [entry["step"] for entry in content_of(read_run(real_run))["entries"]]
    with browser(CHROMIUM, tmp_path / "profile") as tab:
        tab.open(file.as_uri())

        def step() -> int:
            return int(tab.run("document.getElementById('step-title').textContent").removeprefix("Step "))

        walk_to(tab, "#before-entry")
        walk_to(tab, "#slider")
        for key, wanted in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 23)):
            tab.press(key)
            assert step() == wanted, key
        tab.press("Home")
        walk_to(tab, "#after")
        tab.press("Space")
        assert step() == 1
        walk_to(tab, "#after-entry")
        tab.press("Enter")
        assert step() == entries[0]
        walk_to(tab, "#entries details:nth-child(2) summary")
        opened = "document.querySelector('#entries details:nth-child(2)').open"
        before = tab.run(opened)
        tab.press("Enter")
        assert tab.run(opened) is not before
        if before:
            tab.press("Enter")
        walk_to(tab, "#entries details:nth-child(2) button")
        tab.press("Enter")
        assert step() == entries[1] and tab.run("document.activeElement.id") == "step-title"
        walk_to(tab, "#entries details:nth-child(2) summary")
        tab.press("Space")
        assert tab.run(opened) is False


@needs_browser
def test_a_browser_follows_a_run(served: tuple[Server, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, folder = served
    looks = 0

    def look() -> None:
        """Once the page has been served another step is over."""
        nonlocal looks
        looks += 1
        if looks == 2:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 104, "loss": 0.5, "roles": "ww.w"}) + "\n")
        Watcher.look(server.watcher)

    monkeypatch.setattr(server.watcher, "look", look)
    shown = browse(server.address, tmp_path / "profile").partition("<script")[0]
    assert looks > 1 and "live: 105 of 200 steps" in shown
