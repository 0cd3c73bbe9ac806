"""`fetch`: copies a run's folder from the bucket: what is new or has changed, each file whole or not at all."""

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from time import monotonic, sleep
from types import TracebackType
from urllib.parse import urlparse

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from albert.cloud.errors import KNOWN, CloudError, code_of, explain, explained, passes
from albert.cloud.records import SUMMARY
from albert.cloud.run import Run
from btard.files import put_in_place
from btard.harness.progress import Bar
from btard.harness.typed_yaml import ConfigError

NOTES = ".fetched"
"""A file in the folder that records where its files come from, with a line for each file."""
PART = ".fetching-"
"""Prefix of the name of a file that is being copied."""
CHUNK = 1 << 20
TRIES = 8
"""How often in a row a copy may break off without progress."""
PAUSE_SECONDS = 2.0
"""Seconds to wait after the first such break; it grows."""

_WORD = re.compile(r"[\w,+=@-][\w.,+=@ -]{0,199}", re.ASCII)


@dataclass(frozen=True)
class Remote:
    """A file of the run folder in the bucket. `name` is its path there: harmless words with / between them."""

    key: str
    name: str
    size: int
    etag: str


def fetch(run: Run, folder: Path, out: Console, *, checkpoints: bool = True) -> int:
    """Copy the run folder from the bucket into `folder`; return how many of the files are there afterwards.

    Without `checkpoints` these are left where they are: they are nearly all of its bytes.

    0, after a line that says so, if the bucket has none. What is there is not copied again, and an interrupted copy
    goes on. Raises ConfigError without a bucket, and CloudError if AWS refuses, if the folder holds something else, or
    if it cannot be written.
    """
    if run.folder is None:
        raise ConfigError("`fetch` copies from the bucket, which is null; set bucket as it was at the launch")
    with explained():
        remotes, strange = _listed(run)
    if not checkpoints:
        remotes = [remote for remote in remotes if not remote.name.startswith("checkpoints/")]
    for name in strange[:3]:
        out.print(f"[yellow]left out[/]: {escape(ascii(name))}, which is no name that a run gives to a file")
    if len(strange) > 3:
        out.print(f"[yellow]left out[/]: {len(strange) - 3} more such names")
    if not remotes:
        out.print(f"nothing to fetch: {run.folder} is empty; a coordinator copies there every minute once it has begun")
        return 0
    try:
        with _Folder(folder, run.folder) as here:
            wanted = here.wanted(remotes)
            size = _copy(run, here, wanted, out)
    except OSError as error:
        raise CloudError(
            f"{folder} cannot be written: {error.strerror or error}; mend that, then fetch again"
        ) from None
    known = len(remotes) - len(wanted)
    others = f"; {known} were there" if known else ""
    out.print(f"copied {len(wanted)} files, {decimal(size)}, to {escape(str(folder))}{others}")
    return len(remotes)


class _Folder:
    """The folder into which files are copied, and its contents. Only one `fetch` at a time writes there.

    Raises CloudError, when it is entered, if it has files of another run.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self._etags: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> "_Folder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._notes: TextIOWrapper = (self.path / NOTES).open("a+", encoding="utf-8")
        try:
            self._read_notes()
        except BaseException:
            self._notes.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for part in self.path.glob(f"{PART}*"):  # of files that have changed since
                part.unlink()
        self._notes.close()

    def wanted(self, remotes: list[Remote]) -> list[Remote]:
        """Return what is missing or has changed."""
        wanted = [remote for remote in remotes if not self._has(remote)]
        unknown = [r.name for r in wanted if r.name not in self._etags and (self.path / r.name).exists()]
        if unknown and not self._etags:
            raise CloudError(f"{self.path} holds other files ({unknown[0]}), which would be lost; choose another --to")
        return wanted

    def part(self, name: str, etag: str) -> Path:
        """Return the temporary path of one state of a file."""
        return self.path / f"{PART}{hashlib.sha256(f'{etag}/{name}'.encode()).hexdigest()[:32]}"

    def keep(self, name: str, etag: str) -> None:
        """Put a completely copied file in its place."""
        part, target = self.part(name, etag), self.path / name
        for parent in _parents(name):
            if (self.path / parent).is_symlink():
                raise CloudError(
                    f"{self.path / parent} is a link, which may lead anywhere; remove it, then fetch again"
                )
        target.parent.mkdir(parents=True, exist_ok=True)
        size = part.stat().st_size
        put_in_place(part, target)
        self._note({"name": name, "etag": etag, "size": size})

    def _has(self, remote: Remote) -> bool:
        file = self.path / remote.name
        etag, size = self._etags.get(remote.name, ("", -1))
        return etag == remote.etag and file.is_file() and file.stat().st_size == size

    def _read_notes(self) -> None:
        try:
            fcntl.flock(self._notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CloudError(f"another `fetch` copies into {self.path}; wait until it is done") from None
        self._notes.seek(0)
        text = self._notes.read()
        if text and not text.endswith("\n"):  # killed while it wrote
            self._notes.write("\n")
        source = ""
        for line in text.splitlines():
            try:
                note = json.loads(line)
                source = note.get("from", source)
                if "name" in note:
                    self._etags[note["name"]] = str(note["etag"]), int(note["size"])
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        if source and source != self.source:
            raise CloudError(f"{self.path} holds what was fetched from {source}; choose another --to")
        if not source:
            self._note({"from": self.source})

    def _note(self, content: dict[str, object]) -> None:
        self._notes.write(json.dumps(content) + "\n")
        self._notes.flush()


def _listed(run: Run) -> tuple[list[Remote], list[str]]:
    """The files of the run folder, and the names of objects that cannot be files of a run."""
    objects = run.account.files(run.folder or "")
    strange = [name for name in objects if not _is_plain(name) or any(str(p) in objects for p in _parents(name))]
    remotes = [
        Remote(entry["Key"], name, int(entry["Size"]), str(entry["ETag"]))
        for name, entry in objects.items()
        if name not in strange
    ]
    # The summary says that all of it is there, here as in the bucket.
    return sorted(remotes, key=lambda remote: (remote.name == SUMMARY, remote.name)), strange


def _is_plain(name: str) -> bool:
    return all(_WORD.fullmatch(word) for word in name.split("/"))


def _parents(name: str) -> list[PurePosixPath]:
    """The folders of a name, the outermost first."""
    return list(PurePosixPath(name).parents)[-2::-1]


def _copy(run: Run, here: _Folder, wanted: list[Remote], out: Console) -> int:
    """Copy files; return how many bytes they have."""
    total = sum(remote.size for remote in wanted)
    if not wanted:
        return 0
    came, done, begun = 0, 0, monotonic()
    with Bar("fetch", total, unit="", out=out) as bar:
        for number, remote in enumerate(wanted):
            for have, more in _download(run, here, remote):
                came += more
                speed = decimal(int(came / max(monotonic() - begun, 1e-3)))
                text = f"{number} of {len(wanted)} files, {decimal(done + have)} of {decimal(total)}, {speed}/s"
                bar.move(done + have, text)
            done += remote.size
        bar.move(total, f"{len(wanted)} of {len(wanted)} files, {decimal(total)}")
    return total


def _download(run: Run, here: _Folder, remote: Remote) -> Iterator[tuple[int, int]]:
    """Copy a file; yields how many bytes of it are here, and how many came just now.

    It goes on where it broke off if the object is still the same, and begins again if not: those of a run that goes on
    change all the time.
    """
    s3, bucket = run.account.client("s3"), urlparse(run.folder or "").netloc
    etag = remote.etag
    part = here.part(remote.name, etag)
    have = part.stat().st_size if part.exists() else 0
    failures = 0
    while have == 0 or have < remote.size or etag != remote.etag:
        try:
            further = {"Range": f"bytes={have}-", "IfMatch": etag} if have else {}
            answer = s3.get_object(Bucket=bucket, Key=remote.key, **further)
            etag = str(answer["ETag"])
            part = here.part(remote.name, etag)
            with part.open("ab" if have else "wb") as file:
                for chunk in answer["Body"].iter_chunks(CHUNK):
                    file.write(chunk)
                    have, failures = have + len(chunk), 0
                    yield have, len(chunk)
            break
        except KNOWN as error:
            changed = code_of(error) in ("PreconditionFailed", "InvalidRange")
            have = 0 if changed else have
            failures += 1
            if failures >= TRIES or not (changed or passes(error)):
                raise explain(error) from None
            sleep(PAUSE_SECONDS * failures if not changed else 0)
    here.keep(remote.name, etag)
