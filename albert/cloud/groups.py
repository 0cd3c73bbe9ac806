"""The Auto Scaling groups of honest and Byzantine trainers: AWS itself replaces an interrupted peer in its role."""

from datetime import datetime, timedelta
from typing import Any

from albert.cloud.account import once_profiles_are_known, wait_for
from albert.cloud.config import words
from albert.cloud.errors import unless
from albert.cloud.names import Role
from albert.cloud.places import Places
from albert.cloud.run import Charter, Run, shown

EARLIER = timedelta(minutes=2)
"""How long before machines end themselves the groups are emptied; otherwise some would still be replaced."""
REMOVAL_SECONDS = 300.0


def find_groups(run: Run) -> list[dict[str, Any]]:
    """Return the run's groups as AWS describes them."""
    return run.account.pages(
        "autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups", Filters=run.names.filters
    )


def group_arguments(run: Run, role: Role, places: Places) -> dict[str, Any]:
    """Return the arguments that create a role's group: for its final size, and without machines."""
    trainers = run.config.trainers
    distribution: dict[str, Any] = {
        "OnDemandBaseCapacity": 0,
        "OnDemandPercentageAboveBaseCapacity": 0 if trainers.spot else 100,
        "SpotAllocationStrategy": "price-capacity-optimized",
    }
    if trainers.spot and trainers.max_price is not None:
        distribution["SpotMaxPrice"] = f"{trainers.max_price:g}"
    template = {"LaunchTemplateName": run.names.of(role), "Version": "$Latest"}
    tags = [{**tag, "PropagateAtLaunch": False} for tag in run.names.tags(role)]  # machines have the template's
    return {
        "AutoScalingGroupName": run.names.of(role),
        "MinSize": 0,  # or a finished trainer could not leave
        "MaxSize": run.groups[role],
        "DesiredCapacity": 0,
        "VPCZoneIdentifier": ",".join(subnet.id for subnet in places.trainers),
        "HealthCheckType": "EC2",
        "CapacityRebalance": trainers.spot and trainers.rebalance,
        "MixedInstancesPolicy": {
            "LaunchTemplate": {
                "LaunchTemplateSpecification": template,
                "Overrides": [{"InstanceType": name} for name in words(trainers.types)],
            },
            "InstancesDistribution": distribution,
        },
        "Tags": tags,
    }


def ensure_group(run: Run, role: Role, places: Places, charter: Charter, *, make: bool) -> None:
    """Create a role's group, still without machines, if it is not there yet (`make`), and its end in any case.

    The end comes before the first machine, so that no group is ever without.
    """
    scaling = run.account.client("autoscaling")
    name = run.names.of(role)
    if make:
        arguments = group_arguments(run, role, places)
        once_profiles_are_known(lambda: scaling.create_auto_scaling_group(**arguments))
    scaling.put_scheduled_update_group_action(
        AutoScalingGroupName=name,
        ScheduledActionName=run.names.end_action(role),
        StartTime=charter.ends - EARLIER,
        MinSize=0,
        MaxSize=0,
        DesiredCapacity=0,
    )
    # To balance zones, AWS would end peers that train.
    scaling.suspend_processes(AutoScalingGroupName=name, ScalingProcesses=["AZRebalance"])


def fill_group(run: Run, role: Role) -> None:
    """Ask for all machines of a role."""
    run.account.client("autoscaling").set_desired_capacity(
        AutoScalingGroupName=run.names.of(role), DesiredCapacity=run.groups[role], HonorCooldown=False
    )


def troubles(run: Run, since: datetime) -> list[str]:
    """Return what AWS says about machines that it could not start since a time, the newest first, each once."""
    found = []
    for group in find_groups(run):
        for activity in _activities(run, group["AutoScalingGroupName"]):
            if activity["StatusCode"] in ("Failed", "Cancelled") and activity["StartTime"] >= since:
                message = activity.get("StatusMessage") or activity["Description"]
                when = shown(activity["StartTime"])
                found.append(f"({when}) {group['AutoScalingGroupName']}: {' '.join(message.split())}")
    return list(dict.fromkeys(found))


def emptied(run: Run) -> bool:
    """Whether the run's groups are there and may have no machine any more: it has finished, or its end has come."""
    groups = find_groups(run)
    return bool(groups) and all(group["MaxSize"] == 0 for group in groups)


def history(run: Run) -> list[dict[str, Any]]:
    """Return all starts and ends of machines in the run's groups, the newest first."""
    return [activity for group in find_groups(run) for activity in _activities(run, group["AutoScalingGroupName"])]


def empty_groups(run: Run) -> None:
    """Have all machines of all groups ended, and none replaced."""
    scaling = run.account.client("autoscaling")
    for group in find_groups(run):
        name = group["AutoScalingGroupName"]
        scaling.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, MaxSize=0, DesiredCapacity=0)


def remove_groups(run: Run) -> list[str]:
    """Remove the run's groups with their machines; return what was removed."""
    scaling = run.account.client("autoscaling")
    names = [group["AutoScalingGroupName"] for group in find_groups(run)]
    for name in names:
        try:
            scaling.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
        except scaling.exceptions.ClientError as error:
            if "not found" not in str(error):
                raise

    def gone() -> bool | None:
        return None if find_groups(run) else True

    if names:
        wait_for(gone, REMOVAL_SECONDS)
    return [f"Auto Scaling group {name}" for name in names]


def _activities(run: Run, name: str) -> list[dict[str, Any]]:
    def listed() -> list[dict[str, Any]]:
        return run.account.pages("autoscaling", "describe_scaling_activities", "Activities", AutoScalingGroupName=name)

    return unless({"ValidationError"}, listed) or []  # a group that was removed in between
