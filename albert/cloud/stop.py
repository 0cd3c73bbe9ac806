"""`stop`: removes everything of a run, found by its tag, and then lists what is left, which is nothing."""

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from albert.cloud.errors import KNOWN, explain, explained, unless
from albert.cloud.groups import empty_groups, find_groups, remove_groups
from albert.cloud.machines import end_machines, find_machines, find_volumes, remove_volumes
from albert.cloud.names import RUN_TAG
from albert.cloud.roles import find_profiles, find_roles, remove_roles
from albert.cloud.run import Run
from albert.cloud.security_group import find_group, remove_group
from albert.cloud.templates import find_templates, remove_templates
from btard.harness.tables import table


def stop(run: Run, out: Console) -> bool:
    """Remove the run; return whether nothing is left. Raises CloudError without valid credentials."""
    count, left = remove_run(run, out)
    if not count and not left:
        out.print(f"nothing of run {run.config.run_id} is there in {run.account.region}")
        return True
    if run.folder is not None:
        out.print(f"kept: what is in {run.folder}")
    if not left:
        out.print(f"nothing of run {run.config.run_id} is left")
        return True
    out.print(table("Left", ("what", "name"), left))
    out.print(
        f"[red]{len(left)} left[/]: run `stop` again in some minutes, or remove them in the console (tag {RUN_TAG})"
    )
    return False


def remove_run(run: Run, out: Console) -> tuple[int, list[tuple[str, str]]]:
    """Remove everything of the run; return how many things that were, and what is left as (what, name).

    What costs money goes first. One refusal does not keep the rest from being removed; it is printed.
    """
    steps: tuple[tuple[str, Callable[[], list[str]]], ...] = (
        ("Auto Scaling groups", lambda: _emptied(run)),
        ("machines", lambda: [f"machine {name}" for name in end_machines(run, out.print)]),
        ("Auto Scaling groups", lambda: remove_groups(run)),
        ("launch templates", lambda: remove_templates(run)),
        ("disks", lambda: remove_volumes(run)),
        ("address", lambda: _removed_address(run)),
        ("roles", lambda: remove_roles(run)),
        ("security group", lambda: [f"security group {run.names.base}"] if remove_group(run) else []),
    )
    count = 0
    for what, remove in steps:
        try:
            for removed in remove():
                out.print(f"removed {escape(removed)}")
                count += 1
        except KNOWN as error:
            out.print(f"[red]{what}[/]: {escape(str(explain(error)))}")
    return count, leftovers(run)


def leftovers(run: Run) -> list[tuple[str, str]]:
    """Return all there is of the run as (what, name). Raises CloudError if AWS does not let us look."""
    with explained():
        found = [("Auto Scaling group", group["AutoScalingGroupName"]) for group in find_groups(run)]
        found += [("machine", machine.id) for machine in find_machines(run) if machine.state != "terminated"]
        found += [("launch template", template["LaunchTemplateName"]) for template in find_templates(run)]
        found += [("disk", volume) for volume in find_volumes(run)]
        found += [("parameter", run.names.address)] if _has_address(run) else []
        found += [("instance profile", name) for name in find_profiles(run)]
        found += [("role", name) for name in find_roles(run)]
        found += [("security group", run.names.base)] if find_group(run) else []
    return found


def _emptied(run: Run) -> list[str]:
    empty_groups(run)
    return []


def _has_address(run: Run) -> bool:
    get = run.account.client("ssm").get_parameter
    return unless({"ParameterNotFound"}, get, Name=run.names.address) is not None


def _removed_address(run: Run) -> list[str]:
    if not _has_address(run):
        return []
    run.account.client("ssm").delete_parameter(Name=run.names.address)
    return [f"parameter {run.names.address}"]
