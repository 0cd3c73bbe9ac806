"""`launch`: creates what is missing of a run. A second launch completes a half-made one; a failed one undoes itself."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType

from rich.console import Console
from rich.markup import escape

from albert.cloud.account import wait_for
from albert.cloud.costs import hourly_costs
from albert.cloud.errors import KNOWN, CloudError, explain
from albert.cloud.groups import emptied, ensure_group, fill_group, find_groups, troubles
from albert.cloud.images import describe_image
from albert.cloud.machines import find_coordinator, start_coordinator
from albert.cloud.names import kind_of
from albert.cloud.places import Places
from albert.cloud.roles import ensure_roles
from albert.cloud.run import Charter, Run, now, shown
from albert.cloud.security_group import find_group, make_group, mark_complete, read_charter, set_rules, wanted_rules
from albert.cloud.stop import remove_run
from albert.cloud.survey import Survey, survey
from albert.cloud.tables import finding_line, span
from albert.cloud.templates import find_templates, make_template, template_data
from albert.cloud.user_data import user_data

STOP = "run `stop` until it says that nothing is left"

Ask = Callable[[str, bool], bool]
"""Puts a question to the user; True is yes. The second argument is the answer if nobody is there."""


def launch(run: Run, out: Console, ask: Ask) -> bool:
    """Start the run, or what is missing of it; return whether all of it is there.

    False, with nothing made, if something stands in the way. Raises CloudError if AWS refuses something: a run that
    was never complete is then removed, a complete one left as it is. So is KeyboardInterrupt, after asking.
    """
    found = survey(run)
    if found.obstacles:
        for obstacle in found.obstacles:
            out.print(finding_line(obstacle))
        out.print("[red]nothing was launched[/]; `plan` shows everything that was looked at")
        return False
    for finding in found.findings:
        if finding.level == "note":
            out.print(finding_line(finding))
    begun = now()
    with _terminations_as_interrupts():
        try:
            charter = _make(run, found, out)
        except KeyboardInterrupt:
            _offer_removal(run, out, ask)
            raise
        except KNOWN as error:
            raise _undone(run, out, explain(error)) from None
        except Exception:  # a bug of ours must not leave machines behind either
            out.print(str(_undone(run, out, CloudError("internal error"))))
            raise
    costs = hourly_costs(run, found.spot_prices, found.on_demand_prices)
    price = span(sum(cost.low for cost in costs), sum(cost.high for cost in costs))
    end = shown(charter.ends)
    out.print(f"run {run.config.run_id} is launched, at {price} dollars an hour; it ends {end} at the latest")
    try:
        _watch(run, out, begun)
    except KeyboardInterrupt:
        out.print("no longer watching; the machines keep starting")
    out.print("look at it with `status`, remove it with `stop`")
    return True


def _make(run: Run, found: Survey, out: Console) -> Charter:
    assert found.places is not None
    places, rules = found.places, wanted_rules(run)
    charter = read_charter(run)
    if charter is None:
        charter = found.charter()
        _say(out, f"security group {make_group(run, places.vpc, charter)}", True)
    else:
        charter.check(run, found.swarm_settings, found.commit, now())
        if charter.complete and emptied(run):
            raise CloudError(
                f"run {run.config.run_id} has finished; `stop` removes what is left of it, then launch again"
            )
        state = "complete" if charter.complete else "half-made"
        out.print(f"run {run.config.run_id} is there, {state}, launched {shown(charter.started)}")
    group = find_group(run)
    if group is None:
        raise CloudError(
            f"the security group {run.names.base} has vanished; is somebody else stopping this run? try again"
        )
    group_id = str(group["GroupId"])
    if set_rules(run, group_id, rules):
        _say(out, "the group's rules", True)
    for made in ensure_roles(run):
        _say(out, made, True)
    _make_templates(run, charter, group_id, found, out)
    there = {group["AutoScalingGroupName"] for group in find_groups(run)}
    for role in run.groups:
        name = run.names.of(role)
        ensure_group(run, role, places, charter, make=name not in there)
        _say(out, f"Auto Scaling group {name}", name not in there)
    _ensure_coordinator(run, places, charter, out)
    if not charter.complete:  # of a complete run, finished trainers have left for good
        for role, size in run.groups.items():
            fill_group(run, role)
            _say(out, f"trainers, {role}: {size}", True)
        mark_complete(run, group_id, charter)
    return charter


def _make_templates(run: Run, charter: Charter, group_id: str, found: Survey, out: Console) -> None:
    there = {template["LaunchTemplateName"] for template in find_templates(run)}
    for role in run.sizes:
        name = run.names.of(role)
        if name not in there:
            kind = kind_of(role)
            image = found.images[kind]
            if image.id != charter.images[kind]:  # a newer one has come out since the first launch
                image = describe_image(run.account, charter.images[kind], "the run's charter")
            script = user_data(run, role, charter, found.swarm_settings)
            make_template(run, role, template_data(run, role, image, group_id, script))
        _say(out, f"launch template {name}", name not in there)


def _ensure_coordinator(run: Run, places: Places, charter: Charter, out: Console) -> None:
    machine = find_coordinator(run)
    if machine is None:
        _say(out, f"coordinator {start_coordinator(run, places.coordinator, charter)}", True)
    else:
        _say(out, f"coordinator {machine.id}", False)


def _say(out: Console, what: str, made: bool) -> None:
    out.print(f"{'made' if made else 'found'} {escape(what)}")


def _undone(run: Run, out: Console, problem: CloudError) -> CloudError:
    """Remove what was created of a run that was never complete; return the error to report."""
    try:
        charter = read_charter(run)
        if charter is None:
            return problem
        if charter.complete:
            return CloudError(f"{problem}; the run continues as it was; launch again to repair it, or `stop` it")
        out.print(f"[red]failed[/]: {escape(str(problem))}")
        out.print("removing what was made")
        _, left = remove_run(run, out)
    except KNOWN as error:
        return CloudError(f"{problem}; removing what was made failed, too ({explain(error)}): {STOP}")
    if left:
        return CloudError(f"{problem}; left of it: {', '.join(name for _, name in left)}: {STOP}")
    return CloudError(f"{problem}; nothing is left of the attempt")


def _offer_removal(run: Run, out: Console, ask: Ask) -> None:
    out.print()
    charter = read_charter(run)
    if charter is None:
        out.print("interrupted; nothing was made")
    elif ask(f"Interrupted. Remove all of run {run.config.run_id}?", not charter.complete):
        _, left = remove_run(run, out)
        out.print("nothing is left" if not left else STOP)
    else:
        out.print("left as it is: `launch` completes it, `stop` removes it")


def _watch(run: Run, out: Console, since: datetime) -> None:
    """Print how many machines run, until all do or wait_minutes are over, and why AWS does not start the others."""
    told: set[str] = set()
    last = ""

    def all_running() -> bool | None:
        nonlocal last
        counts = {group["AutoScalingGroupName"]: _in_service(group) for group in find_groups(run)}
        parts = [f"{counts.get(run.names.of(role), 0)} of {size} {role}" for role, size in run.groups.items()]
        if (line := ", ".join(parts)) != last:
            out.print(f"running: {line}")
            last = line
        for trouble in troubles(run, since):
            if trouble not in told:
                told.add(trouble)
                out.print(f"[yellow]AWS says[/] {escape(trouble)}")
        full = all(counts.get(run.names.of(role), 0) >= size for role, size in run.groups.items())
        return True if full else None

    if run.config.wait_minutes > 0 and wait_for(all_running, 60 * run.config.wait_minutes) is None:
        out.print("AWS has not started all of them yet, and keeps trying; more trainers.types or zones help")


def _in_service(group: dict[str, list[dict[str, str]]]) -> int:
    return sum(instance["LifecycleState"] == "InService" for instance in group["Instances"])


@contextmanager
def _terminations_as_interrupts() -> Iterator[None]:
    """Within it, `kill` has the effect of Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
