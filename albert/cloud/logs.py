"""`logs`: what a peer or the coordinator printed."""

import re

from rich.console import Console

from albert.cloud.errors import CloudError, explained
from albert.cloud.machines import Machine, coordinator_of, find_machines
from albert.cloud.records import read_record
from albert.cloud.remote import OUTPUT_LIMIT, run_on
from albert.cloud.run import Run


def logs(run: Run, who: str, out: Console) -> None:
    """Print the last lines of the coordinator, of a peer by its number, or of a machine by its id.

    Raises CloudError if there is no such machine any more, or if it does not answer.
    """
    with explained():
        machines = [machine for machine in find_machines(run) if machine.alive]
        machine = _machine(run, who, machines)
        text = run_on(run, machine.id, log_command(run.config.log_lines))
    out.print(text.rstrip("\n") or f"{machine.id} has printed nothing yet", markup=False, soft_wrap=True)


def log_command(lines: int) -> str:
    """Return what is run on the machine: the service's journal, after the set-up's log while there is none."""
    journal = f"journalctl --unit btard --no-pager --output short-iso --lines {lines}"
    setup = f"tail -n {lines} /var/log/btard-setup.log"
    both = f"if systemctl is-enabled --quiet btard; then {journal}; else {setup}; fi"
    return f"({both}) 2>&1 | tail -c {OUTPUT_LIMIT - 1000}"


def _machine(run: Run, who: str, machines: list[Machine]) -> Machine:
    coordinator = coordinator_of(machines)
    if who == "coordinator":
        if coordinator is None:
            raise CloudError(f"run {run.config.run_id} has no coordinator; `status` says more, `launch` starts one")
        return coordinator
    if who.startswith("i-"):
        found = next((machine for machine in machines if machine.id == who), None)
        if found is None:
            raise CloudError(f"run {run.config.run_id} has no machine {who} that is alive; `status` lists them")
        return found
    if not re.fullmatch(r"\d+", who):
        raise CloudError(f"expected coordinator, a peer's number or an instance id, got {who}; `status` lists them")
    record = read_record(run, coordinator)
    if record is None:
        raise CloudError("the coordinator has not yet said who the peers are; give an instance id from `status`")
    peer = next((peer for peer in record.peers if peer.number == int(who)), None)
    if peer is None:
        numbers = ", ".join(str(peer.number) for peer in record.peers)
        raise CloudError(f"there is no peer {who}; there are {numbers or 'none yet'}")
    for machine in machines:
        if peer.instance == machine.id or peer.instance in machine.addresses:
            return machine
    where = peer.instance or "a machine outside AWS"
    raise CloudError(
        f"peer {who} was on {where}, which is gone, and its log with it; `status` lists those that are alive"
    )
