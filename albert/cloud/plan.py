"""`plan`: prints what a launch would start, what that costs, and what prevents it. Changes nothing."""

from datetime import timedelta

from rich.console import Console
from rich.table import Table

from albert.cloud.config import words
from albert.cloud.costs import hourly_costs
from albert.cloud.machine_types import MachineType
from albert.cloud.run import Run
from albert.cloud.survey import Survey, survey
from albert.cloud.tables import dollars, findings_table, span
from btard.harness.tables import table


def plan(run: Run, out: Console) -> bool:
    """Print all of it; return whether a launch would begin. Raises CloudError without valid credentials."""
    found = survey(run)
    out.print(machines_table(found))
    if found.spot_prices is not None and found.spot_prices.changes:
        out.print(prices_table(found))
    out.print(costs_table(found))
    out.print(findings_table(found.findings))
    count = len(found.obstacles)
    if count:
        out.print(f"[red]launch would refuse[/]: {count} {'thing stops' if count == 1 else 'things stop'} it")
    else:
        out.print(f"launch would begin; it ends by itself after {run.config.max_hours:g} hours")
    return not count


def machines_table(found: Survey) -> Table:
    """Return what would be started."""
    run, config = found.run, found.run.config
    rows = []
    for role, size in run.sizes.items():
        coordinator = role == "coordinator"
        names = (config.coordinator.type,) if coordinator else words(config.trainers.types)
        types = [found.types[name] for name in names if name in found.types]
        disk = config.coordinator.disk_gb if coordinator else config.trainers.disk_gb
        bought = "spot" if config.trainers.spot and not coordinator else "on-demand"
        shown = " or ".join(_described(kind) for kind in types) or " or ".join(names)
        rows.append([role, str(size), bought, shown, f"{disk} GB"])
    return table(f"Machines of run {config.run_id}", ("role", ">number", "bought", "type", ">disk"), rows)


def prices_table(found: Survey) -> Table:
    """Return the spot prices of the last day, in dollars per hour."""
    prices, end = found.spot_prices, found.time
    assert prices is not None
    begin = end - timedelta(days=1)
    rows = []
    for pool in prices.changes:
        low, high = prices.extremes(pool, begin, end)
        amounts = (prices.now(pool), prices.mean(pool, begin, end), low, high)
        rows.append([*pool, *(dollars(amount) for amount in amounts)])
    title = "Spot prices of the last day, dollars per hour"
    return table(title, ("type", "zone", ">now", ">mean", ">lowest", ">highest"), rows)


def costs_table(found: Survey) -> Table:
    """Return what the run costs: per hour, for its expected length, and at most."""
    config = found.run.config
    costs = hourly_costs(found.run, found.spot_prices, found.on_demand_prices)
    rows = [[c.name, *_amounts(c.low, c.high, config.hours, config.max_hours)] for c in costs]
    low, high = sum(c.low for c in costs), sum(c.high for c in costs)
    rows.append(["[bold]all[/]", *_amounts(low, high, config.hours, config.max_hours)])
    columns = ("", ">an hour", f">{config.hours:g} hours (hours)", f">{config.max_hours:g} hours (max_hours)")
    return table("Dollars, from the cheapest type and zone to the dearest", columns, rows, markup=True)


def _amounts(low: float, high: float, *lengths: float) -> list[str]:
    return [span(low * hours, high * hours) for hours in (1.0, *lengths)]


def _described(kind: MachineType) -> str:
    parts = [f"{kind.vcpus} vCPU", f"{kind.memory_gb:g} GB", *([kind.gpu] if kind.gpu else [])]
    return f"{kind.name} ({', '.join(parts)})"
