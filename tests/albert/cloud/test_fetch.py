"""`fetch`: what it copies, how it goes on, and that nothing leaves the folder whatever objects are called."""

import fcntl
import json
import os
import signal
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from albert.cloud.errors import CloudError
from albert.cloud.fetch import NOTES, PART, fetch
from btard.harness.typed_yaml import ConfigError
from tests.albert.cloud.conftest import Cloud
from tests.albert.cloud.endpoint import Reply, Request
from tests.albert.cloud.folders import put

FILES = {
    "checkpoints/step-00000950.safetensors": b"tensors" * 1000,
    "config.yaml": b"steps: 1250\n",
    "ledger.jsonl": b"",
    "metrics.jsonl": b'{"step": 0}\n',
    "summary.json": b"{}\n",
    "tb/events.out.tfevents.1764.ip-10-0-0-7.123.0": b"events",
}


@pytest.fixture
def there(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The bucket has a run folder."""
    monkeypatch.setattr("albert.cloud.fetch.sleep", lambda seconds: None)
    for name, content in FILES.items():
        put(cloud, name, content)
    put(cloud, "metrics.jsonl", b"another run's", "small-other")
    cloud.endpoint.asked.clear()
    return cloud


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, without what `fetch` notes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != NOTES]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def copied(cloud: Cloud) -> list[str]:
    """Which objects were read since the last look, in their order."""
    names = [r.arguments["path"].partition("/small/")[2] for r in cloud.endpoint.asked if r.action == "GetObject"]
    cloud.endpoint.asked.clear()
    return names


def test_the_run_folder_is_copied_and_later_only_what_is_new(there, tmp_path):
    to = tmp_path / "runs" / "small"
    assert there("fetch", "--to", str(to)) == 0, there.output
    assert there.output.splitlines()[-1] == f"copied 6 files, 7.0 kB, to {to}"
    assert "fetch: 6 of 6 files, 7.0 kB" in there.output
    assert files(to) == FILES
    # The summary says that all is there.
    assert copied(there) == [*(name for name in FILES if name != "summary.json"), "summary.json"]

    assert there("fetch", f"--to={to}") == 0
    assert there.output == f"copied 0 files, 0 bytes, to {to}; 6 were there\n"
    assert copied(there) == []

    put(there, "metrics.jsonl", b'{"step": 1}\n')  # as long as before
    put(there, "evidence/a", b"new")
    (to / "config.yaml").unlink()
    (to / "ledger.jsonl").write_bytes(b"cut short or grown")
    assert fetch(there.run, to, Console(file=StringIO())) == 7
    assert copied(there) == ["config.yaml", "evidence/a", "ledger.jsonl", "metrics.jsonl"]
    assert files(to) == FILES | {"metrics.jsonl": b'{"step": 1}\n', "evidence/a": b"new"}
    assert there.endpoint.changes() == []


def test_checkpoints_can_be_left_out_and_come_later(there, tmp_path):
    to = tmp_path / "to"
    assert there("fetch", "--without-checkpoints", "--to", str(to)) == 0, there.output
    assert files(to) == {name: content for name, content in FILES.items() if not name.startswith("checkpoints/")}
    assert fetch(there.run, to, Console(file=StringIO()), checkpoints=False) == 5
    assert there("fetch", "--to", str(to)) == 0
    assert files(to) == FILES


def test_without_a_run_folder_or_a_bucket_it_says_so(cloud, tmp_path):
    assert cloud("fetch", "--to", str(tmp_path / "x")) == 1
    assert cloud.output == (
        "nothing to fetch: s3://results/btard/small is empty; a coordinator copies there every minute once it has "
        "begun\n"
    )
    assert not (tmp_path / "x").exists()
    cloud.changes = ["--bucket", "null"]
    assert cloud("fetch", "--to", str(tmp_path / "x")) == 2
    assert "error: `fetch` copies from the bucket, which is null; set bucket as it was at the launch" in cloud.output
    with pytest.raises(ConfigError):
        fetch(cloud.run, tmp_path / "x", Console(file=StringIO()))
    cloud.changes = ["--bucket", "not-there"]
    assert cloud("fetch", "--to", str(tmp_path / "x")) == 1
    assert "error: AWS refused ListObjectsV2 (NoSuchBucket" in cloud.output


HOSTILE = [
    "../x", "a/../../x", "..", "./x", "a/./x", "a//x", "/etc/passwd", "~/x", ".fetched", ".ssh/authorized_keys", "a/.x",
    "C:\\x", "a\\..\\x", "a\nb", "a\x1b[2Jb", "name" * 100, "summary.json/x", "ünd", "*", "$HOME", "a;b",
]  # fmt: skip


def test_whatever_objects_are_called_nothing_lands_elsewhere(there, tmp_path):
    listed = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;0&quot;</ETag></Contents>"
        for key in (f"btard%2Fsmall%2F{_encoded(name)}" for name in [*HOSTILE, "folder/"])
    )

    def with_more(request: Request) -> Reply | None:
        if "/results" not in request.arguments.get("path", ""):
            return None
        own = "".join(
            f"<Contents><Key>btard/small/{name}</Key><Size>{len(content)}</Size><ETag>&quot;{i}&quot;</ETag></Contents>"
            for i, (name, content) in enumerate(FILES.items())
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>{own}{listed}"
        return Reply(f"{body}</ListBucketResult>")

    there.endpoint.answer("ListBucket", with_more)
    to = tmp_path / "deep" / "to"
    before = {str(path) for path in tmp_path.rglob("*")}
    out = Console(file=StringIO(), width=200)
    assert fetch(there.run, to, out) == len(FILES)
    assert files(to) == FILES
    made = {str(path) for path in tmp_path.rglob("*")} - before
    assert all(path in (str(to), str(to.parent)) or path.startswith(f"{to}/") for path in made)
    printed = out.file.getvalue()
    assert f"left out: {len(HOSTILE) - 3} more such names" in printed
    assert "left out: '../x', which is no name that a run gives to a file" in printed
    assert "\x1b" not in printed


def _encoded(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


def test_real_keys_that_climb_are_left_out(there, tmp_path):
    """The same through moto's own listing, for those that it takes."""
    put(there, "../climbed", b"x")
    put(there, "a/../../../climbed", b"x")
    to = tmp_path / "a" / "b" / "to"
    assert there("fetch", "--to", str(to)) == 0, there.output
    assert files(to) == FILES
    assert list(tmp_path.rglob("climbed")) == []
    assert there.output.count("left out: ") == 2


def test_links_in_the_folder_are_not_followed(there, tmp_path):
    to, elsewhere = tmp_path / "to", tmp_path / "elsewhere"
    to.mkdir()
    elsewhere.mkdir()
    (to / "checkpoints").symlink_to(elsewhere)
    assert there("fetch", "--to", str(to)) == 1
    assert f"error: {to}/checkpoints is a link, which may lead anywhere; remove it, then fetch again" in there.output
    assert list(elsewhere.iterdir()) == []
    (to / "checkpoints").unlink()
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (to / "metrics.jsonl").symlink_to(outside)
    (to / NOTES).unlink()
    assert there("fetch", "--to", str(to)) == 1
    assert f"{to} holds other files (metrics.jsonl), which would be lost; choose another --to" in there.output
    assert outside.read_bytes() == b"mine"


def test_a_folder_of_another_run_or_of_other_things_is_left_alone(there, tmp_path):
    to = tmp_path / "to"
    to.mkdir()
    (to / "config.yaml").write_bytes(b"precious")
    assert there("fetch", "--to", str(to)) == 1
    assert f"error: {to} holds other files (config.yaml), which would be lost; choose another --to" in there.output
    assert files(to) == {"config.yaml": b"precious"}

    other = tmp_path / "other"
    assert there("fetch", "--to", str(other), "--run_id", "small-other") == 0
    assert there("fetch", "--to", str(other)) == 1
    assert (
        f"error: {other} holds what was fetched from s3://results/btard/small-other; choose another --to"
        in there.output
    )
    assert files(other) == {"metrics.jsonl": b"another run's"}
    assert there("fetch", "--to", str(other / "metrics.jsonl")) == 1
    assert f"error: {other}/metrics.jsonl cannot be written: File exists; mend that, then fetch again" in there.output


def test_two_at_a_time_do_not_mix(there, tmp_path):
    assert there("fetch", "--to", str(tmp_path / "to")) == 0
    with (tmp_path / "to" / NOTES).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert there("fetch", "--to", str(tmp_path / "to")) == 1
        assert "another `fetch` copies into" in there.output


# Interruptions.

BIG = "checkpoints/step-00000950.safetensors"


def cut_at(there: Cloud, size: int, act: object = None) -> None:
    """The answers for the checkpoint break off after so many bytes, until the rule is gone."""
    content = FILES[BIG]

    def cut(request: Request) -> Reply | None:
        if not request.arguments.get("path", "").endswith(BIG):
            return None
        if callable(act):
            act()
        begin = int((request.arguments.get("range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        piece = content[begin : begin + size].decode()
        return Reply(
            piece, 206 if begin else 200, headers=(("ETag", there.etag), ("Content-Length", str(7000 - begin)))
        )

    there.etag = there.client("s3").head_object(Bucket="results", Key=f"btard/small/{BIG}")["ETag"]
    there.endpoint.answer("GetObject", cut)
    there.endpoint.asked.clear()


def ranges(there: Cloud) -> list[str | None]:
    """Which parts of the checkpoint were asked for."""
    asked = [r for r in there.endpoint.asked if r.action == "GetObject" and r.arguments["path"].endswith(BIG)]
    return [r.arguments.get("range") for r in asked]


def test_a_copy_that_breaks_off_goes_on_where_it_was(there, tmp_path):
    cut_at(there, 3000)
    assert there("fetch", "--to", str(tmp_path / "to")) == 0, there.output
    assert ranges(there) == [None, "bytes=3000-", "bytes=6000-"]
    assert files(tmp_path / "to") == FILES


def test_a_killed_copy_is_taken_up_by_the_next_one(there, tmp_path):
    to = tmp_path / "to"
    cut_at(there, 3000, lambda: os.kill(os.getpid(), signal.SIGINT) if len(ranges(there)) == 2 else None)
    assert there("fetch", "--to", str(to)) == 130
    assert BIG not in files(to)
    assert [len(content) for name, content in files(to).items() if name.startswith(PART)] == [3000]
    there.endpoint.rules.pop()
    there.endpoint.asked.clear()
    with (to / NOTES).open("a") as notes:
        notes.write('{"name": "config.ya')  # killed as it wrote
    assert there("fetch", "--to", str(to)) == 0, there.output
    assert ranges(there) == ["bytes=3000-"]
    assert files(to) == FILES
    assert there("fetch", "--to", str(to)) == 0
    assert "copied 0 files" in there.output


def test_an_object_that_has_changed_meanwhile_is_begun_again(there, tmp_path):
    to = tmp_path / "to"
    cut_at(there, 3000, lambda: os.kill(os.getpid(), signal.SIGINT) if len(ranges(there)) == 2 else None)
    assert there("fetch", "--to", str(to)) == 130
    there.endpoint.rules.pop()

    # Between the listing and the copy.
    there.endpoint.rules.append(
        lambda request: put(there, BIG, b"other" * 1000) if request.action == "ListBucket" else None
    )
    there.endpoint.asked.clear()
    assert there("fetch", "--to", str(to)) == 0, there.output
    assert files(to) == FILES | {BIG: b"other" * 1000}


def test_a_part_of_an_older_state_is_not_gone_on_with(there, tmp_path):
    """The object changes while it is copied: AWS refuses its further parts, and all of it comes anew."""
    cut_at(there, 3000, lambda: put(there, BIG, b"other" * 1000))
    first = there.endpoint.rules.pop()
    there.endpoint.rules.append(lambda request: first(request) if ranges(there) == [None] else None)
    assert there("fetch", "--to", str(tmp_path / "to")) == 0, there.output
    assert ranges(there) == [None, "bytes=3000-", None]
    assert files(tmp_path / "to")[BIG] == b"other" * 1000


def test_a_copy_that_gets_nowhere_ends_and_keeps_what_it_has(there, tmp_path):
    cut_at(there, 0)
    assert there("fetch", "--to", str(tmp_path / "to")) == 1
    assert there.output.splitlines()[-1].startswith("error: ")
    assert len(ranges(there)) == 8
    there.endpoint.rules.pop()
    there.endpoint.refuse("GetObject", "AccessDenied", "")
    assert there("fetch", "--to", str(tmp_path / "to")) == 1
    assert "error: missing right: GetObject was refused (AccessDenied)" in there.output
    there.endpoint.rules.pop()
    there.endpoint.refuse("GetObject", "SlowDown", "", times=30)
    there.endpoint.refuse("ListBucket", "SlowDown", "", times=3)
    assert there("fetch", "--to", str(tmp_path / "to")) == 0, there.output
    assert files(tmp_path / "to") == FILES


def test_a_full_disk_is_one_line(there, tmp_path, monkeypatch):
    def full(self: Path, *words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CloudError, match=r"to cannot be written: No space left on device; mend that, then fetch again"):
        fetch(there.run, tmp_path / "to", Console(file=StringIO()))


def test_what_is_noted_is_the_source_and_a_line_for_each_file(there, tmp_path):
    assert there("fetch", "--to", str(tmp_path)) == 0
    first, *rest = [json.loads(line) for line in (tmp_path / NOTES).read_text(encoding="utf-8").splitlines()]
    assert first == {"from": "s3://results/btard/small"}
    assert {note["name"]: note["size"] for note in rest} == {name: len(content) for name, content in FILES.items()}
