"""`wait`: shows the progress of a run until it has finished, or has ended without finishing."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from time import sleep

from rich.console import Console
from rich.markup import escape

from albert.cloud.account import Account
from albert.cloud.costs import spent
from albert.cloud.errors import EXPIRED, KNOWN, CloudError, code_of, explain, passes
from albert.cloud.groups import emptied
from albert.cloud.machines import Machine, coordinator_of, find_machines
from albert.cloud.records import Record, has_finished, newest_checkpoint, read_record
from albert.cloud.run import Charter, Run, now, shown
from albert.cloud.security_group import read_charter
from albert.cloud.tables import dollars
from btard.harness.progress import Bar, duration
from btard.harness.typed_yaml import ConfigError

POLL_SECONDS = 30.0
"""Seconds between two checks; the bucket has news every minute."""
DOLLARS_EVERY = timedelta(minutes=10)
GONE_FOR = timedelta(minutes=5)
"""How long something must be missing: AWS lists new things late, and somebody may be launching it again."""
LAST_COPY = timedelta(minutes=10)
"""How long machines may take for it after the run's end."""
LATE_SECONDS = 900.0
"""After this time the coordinator is said to be silent. Its preparation also takes this long."""
LATELY_SECONDS = 60.0
"""A peer that the coordinator has heard of within them is alive."""

LOG_SECONDS = 600.0
"""Seconds between two lines about the run in a log."""

Listen = Callable[[int], None]


def wait(run: Run, out: Console, listen: Listen | None = None) -> bool:
    """Show the run's progress until it ends; return whether it has finished: then all of its folder is in the bucket.

    False after a line that says what to do: it was stopped, has come to max_hours, or has lost its coordinator.
    `listen` is told the step that the run has come to at every look. Requests that fail are made again, until max_hours
    at most. Raises ConfigError without a bucket, CloudError if AWS refuses the first look, and KeyboardInterrupt, which
    leaves the run alone.
    """
    if run.folder is None:
        raise ConfigError("`wait` looks into the bucket, which is null; set bucket before the launch, or use `status`")
    with Bar(f"run {run.config.run_id}", unit="", out=out, every=LOG_SECONDS) as bar:
        watch = _Watch(run, bar, listen, ends=now() + timedelta(hours=run.config.max_hours))
        try:
            while (finished := watch.look()) is None:
                sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            out.print(
                f"no longer waiting; the run goes on, until {shown(watch.ends)} at the latest: `wait` waits again, "
                "`stop` ends it"
            )
            raise
    out.print(watch.verdict)
    return finished


@dataclass
class _Watch:
    """What was seen so far, and when."""

    run: Run
    bar: Bar
    listen: Listen | None
    ends: datetime
    verdict: str = ""
    reached: bool = False
    """Whether AWS has ever answered."""
    problem: str = ""
    missing_since: datetime | None = None
    silent: bool = False
    cost: float | None = None
    reckoned: datetime | None = None

    def look(self) -> bool | None:
        """Check once; return whether the run has finished, None if it is still running."""
        try:
            finished = self._look()
        except KNOWN as error:
            return self._fail(error)
        if self.problem:
            self.bar.out.print("AWS answers again")
        self.reached, self.problem = True, ""
        return finished

    def _fail(self, error: Exception) -> bool | None:
        if not self.reached and not passes(error):
            raise explain(error) from None
        if now() >= self.ends + LAST_COPY:
            raise CloudError(f"{explain(error)}; by now the run has ended by itself, `wait` again to see how") from None
        if code_of(error) in EXPIRED or "expired" in str(explain(error)):
            # A new login changes files that a session reads only once.
            with suppress(CloudError):
                config = self.run.config
                self.run = replace(self.run, account=Account(config.region, config.profile))
        if str(explain(error)) != self.problem:
            self.problem = str(explain(error))
            self.bar.out.print(f"[yellow]still waiting, although[/] {escape(self.problem)}")
        return None

    def _look(self) -> bool | None:
        run, time = self.run, now()
        record, problem = self._record()
        if has_finished(run):
            self._show(record, time, last=True)
            return self._end(True, "has finished; `fetch` copies its folder, `stop` removes what is left of it")
        charter = read_charter(run)
        if charter is None and not self.reached:
            return self._end(False, f"is not there, and has not finished in {run.folder}; `launch` starts it")
        machines = find_machines(run)
        missing = self._missing(charter, machines, time)
        if missing is not None:
            since = self.missing_since = self.missing_since or time
            return self._end(False, missing) if time - since >= GONE_FOR else None
        assert charter is not None
        self.missing_since, self.ends = None, charter.ends
        self._reckon(charter, machines, time)
        self._tell_silence(record, problem, time, charter.started)
        self._show(record, time)
        return None

    def _missing(self, charter: Charter | None, machines: list[Machine], time: datetime) -> str | None:
        """What keeps the run from finishing, None if nothing does."""
        if charter is None:
            return f"was stopped before it had finished; {self._further()}"
        coordinator = coordinator_of(machines) is not None
        if time >= charter.ends and (not coordinator or time >= charter.ends + LAST_COPY):
            return (
                f"came to its end at {shown(charter.ends)} (max_hours) before it had finished; `stop` removes what is "
                f"left of it; {self._further()}"
            )
        if not charter.complete:
            return "is half-made; `launch` completes it, `stop` removes it"
        if coordinator:
            return None
        if emptied(self.run):
            return f"ended without a summary in {self.run.folder}; `stop` removes what is left of it; {self._further()}"
        return (
            "has lost its coordinator, and its trainers still cost money; `launch` starts another, which goes on from "
            f"{self.run.folder}, `stop` ends the run"
        )

    def _further(self) -> str:
        """How to continue without the peers, which are gone."""
        start = newest_checkpoint(self.run)
        if start is None:
            return "it has kept no checkpoint from which to continue"
        return f"to continue, launch another run_id with swarm.start_from {start}"

    def _end(self, finished: bool, verdict: str) -> bool:
        self.verdict = escape(f"run {self.run.config.run_id} {verdict}")
        return finished

    def _record(self) -> tuple[Record | None, str]:
        try:
            return read_record(self.run, None), ""
        except CloudError as error:
            return None, str(error)

    def _reckon(self, charter: Charter, machines: list[Machine], time: datetime) -> None:
        if self.reckoned is not None and time - self.reckoned < DOLLARS_EVERY:
            return
        self.reckoned = time
        with suppress(*KNOWN):  # the run matters more than its price
            self.cost = spent(self.run, charter, machines, time)[1].total

    def _tell_silence(self, record: Record | None, problem: str, time: datetime, started: datetime) -> None:
        heard = record.time if record is not None else started.timestamp()
        silent = time.timestamp() - heard >= LATE_SECONDS
        if silent and not self.silent:
            why = f" ({escape(problem)})" if problem else ""
            self.bar.out.print(
                f"[yellow]no news from the coordinator[/] for {duration(time.timestamp() - heard)}{why}: "
                "`logs coordinator` shows what it does"
            )
        self.silent = silent

    def _show(self, record: Record | None, time: datetime, *, last: bool = False) -> None:
        if record is None:
            done, total, parts = 0, None, [] if last else ["the coordinator has written nothing yet"]
        else:
            done, total, parts = record.step, record.steps, _parts(record, last)
        if self.cost is not None:
            parts.append(f"about {dollars(self.cost)} dollars")
        self.bar.move(done, ", ".join(parts), total=total)
        if self.listen is not None and record is not None:
            self.listen(done)


def _parts(record: Record, last: bool) -> list[str]:
    parts = [f"step {record.step}" + (f" of {record.steps}" if record.steps is not None else "")]
    staying = [peer for peer in record.peers if peer.active and peer.banned is None]
    if not last:
        alive = sum(record.time - (peer.last_seen or 0.0) <= LATELY_SECONDS for peer in staying)
        parts.append(f"{alive} of {len(record.peers)} peers alive")
    parts.append(f"{sum(peer.banned is not None for peer in record.peers)} banned")
    if record.steps_per_hour and not last:
        parts.append(f"{record.steps_per_hour:.0f} steps an hour")
        if record.steps is not None:
            parts.append(f"{duration(3600 * max(0, record.steps - record.step) / record.steps_per_hour)} left")
    return parts
