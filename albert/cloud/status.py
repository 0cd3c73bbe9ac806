"""`status`: every peer and every machine, the speed of the run, and what it has cost so far."""

from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.markup import escape

from albert.cloud.costs import spent
from albert.cloud.errors import CloudError, explained
from albert.cloud.groups import emptied, troubles
from albert.cloud.machines import Machine, coordinator_of, find_machines
from albert.cloud.records import Peer, Record, read_record
from albert.cloud.run import Charter, Run, now, shown
from albert.cloud.security_group import read_charter
from albert.cloud.tables import ago, dollars
from btard.harness.tables import table

LATE_SECONDS = 300.0
"""A coordinator that has written nothing for this long deserves a check."""


@dataclass(frozen=True)
class Row:
    """A machine and its peer; one of them may be missing: a machine that still starts, a peer whose machine is gone."""

    machine: Machine | None
    peer: Peer | None


def status(run: Run, out: Console) -> bool:
    """Print the state of the run; return whether there is one. Raises CloudError if AWS or the coordinator refuses."""
    with explained():
        charter = read_charter(run)
        if charter is None:
            out.print(f"no run {run.config.run_id} in {run.account.region}; `launch` starts it")
            return False
        time = now()
        machines = find_machines(run)
        record, problem = _record(run, machines)
        out.print(_peers_table(run, join(machines, record), time))
        if problem:
            out.print(f"[yellow]no news from the coordinator[/]: {escape(problem)}")
        elif record is not None:
            out.print(_progress(record, time))
        _print_dollars(run, charter, machines, time, out)
        for trouble in troubles(run, charter.started)[:3]:
            out.print(f"[yellow]AWS says[/] {escape(trouble)}")
        _print_state(run, charter, machines, time, out)
    return True


def join(machines: list[Machine], record: Record | None) -> list[Row]:
    """Return machines that are alive with their peers, coordinator first; then peers whose machines are gone.

    Each peer says itself on which machine it is. If several name one, all that are not banned are listed there: a
    restarted trainer may be a new peer, and a liar must not take the place of another.
    """
    alive = [machine for machine in machines if machine.alive]
    peers = list(record.peers) if record is not None else []
    rows = []
    for machine in alive:
        own = [p for p in peers if p.instance == machine.id or p.instance in machine.addresses]
        own.sort(key=lambda peer: peer.last_seen or 0.0)
        own = [] if machine.role == "coordinator" else [p for p in own if p.banned is None] or own[-1:]
        rows += [Row(machine, peer) for peer in own] or [Row(machine, None)]
    seen = {id(row.peer) for row in rows}
    return rows + [Row(None, peer) for peer in peers if id(peer) not in seen]


def _record(run: Run, machines: list[Machine]) -> tuple[Record | None, str]:
    try:
        record = read_record(run, coordinator_of(machines))
    except CloudError as error:
        return None, str(error)
    if record is None:
        return None, "it has written nothing yet; `logs coordinator` shows how far it is"
    return record, ""


def _peers_table(run: Run, rows: list[Row], time: datetime) -> object:
    lines = []
    for row in rows:
        machine, peer = row.machine, row.peer
        place = [machine.role, machine.id, machine.zone, machine.type] if machine else ["", "gone", "", ""]
        if peer is None:
            state = machine.state if machine is not None and machine.role == "coordinator" else "starting"
            lines.append([*place, "", "", "", state])
            continue
        seen = ago(time.timestamp() - peer.last_seen) if peer.last_seen is not None else "never"
        state = "training" if peer.active else "waiting"
        state = f"[red]banned[/]: {escape(peer.banned)}" if peer.banned is not None else state
        lines.append([*place, str(peer.number), "" if peer.step is None else str(peer.step), seen, state])
    columns = ("role", "instance", "zone", "type", ">peer", ">step", ">last seen", "state")
    return table(f"Run {run.config.run_id}", columns, lines, markup=True)


def _progress(record: Record, time: datetime) -> str:
    age = time.timestamp() - record.time
    rate = "" if record.steps_per_hour is None else f", {record.steps_per_hour:.0f} steps an hour"
    active = sum(peer.active and peer.banned is None for peer in record.peers)
    banned = sum(peer.banned is not None for peer in record.peers)
    line = f"step {record.step}{rate}; {active} peers train, {banned} are banned; written {ago(age)}"
    return line if age < LATE_SECONDS else f"{line} [yellow](late: see `logs coordinator`)[/]"


def _print_dollars(run: Run, charter: Charter, machines: list[Machine], time: datetime, out: Console) -> None:
    found, sum_ = spent(run, charter, machines, time)
    hours = sum(life.hours for life in found)
    out.print(
        f"about {dollars(sum_.total)} dollars so far: {dollars(sum_.machines)} for {hours:.1f} hours of {len(found)} "
        f"machines, {dollars(sum_.extras)} for disks and addresses; traffic is not in it"
    )
    if sum_.unpriced:
        out.print(
            f"[yellow]not in it[/]: {len(sum_.unpriced)} machines without a known price (coordinator.price sets one)"
        )


def _print_state(run: Run, charter: Charter, machines: list[Machine], time: datetime, out: Console) -> None:
    out.print(f"launched {shown(charter.started)}, ends {shown(charter.ends)} at the latest")
    if time >= charter.ends:
        out.print("[yellow]ended[/]: `stop` removes what is left of it")
    elif not charter.complete:
        out.print("[yellow]half-made[/]: `launch` completes it, `stop` removes it")
    elif emptied(run):
        out.print("[yellow]finished[/]: `stop` removes what is left of it")
    elif coordinator_of(machines) is None:
        out.print("[yellow]no coordinator[/]: it has failed; `launch` starts another, `stop` ends the run")
