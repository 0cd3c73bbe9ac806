"""What a run will cost, and what it has cost so far."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from albert.cloud.config import words
from albert.cloud.errors import CloudError, explained
from albert.cloud.groups import history
from albert.cloud.machines import Machine
from albert.cloud.prices import ADDRESS_HOUR, DISK_GB_HOUR, SpotPrices, read_on_demand_price, read_spot_prices
from albert.cloud.run import Charter, Run
from albert.cloud.survey import survey_prices

PARTS = 4
"""Names of the parts that `hourly_costs` returns if all prices are known."""


@dataclass(frozen=True)
class Cost:
    """Dollars per hour of one part of a run: in the cheapest case, and in the most expensive."""

    name: str
    low: float
    high: float


def hourly_costs(run: Run, spot: SpotPrices | None, on_demand: dict[str, float]) -> list[Cost]:
    """Return what the run costs per hour, at the present prices; parts whose prices are not known are left out."""
    config = run.config
    trainers, types = config.trainers, words(config.trainers.types)
    costs = []
    prices = [spot.now(pool) for pool in spot.changes] if spot is not None else []
    if not trainers.spot:
        prices = [on_demand[name] for name in types if name in on_demand]
    if prices:
        bounded = min(max(prices), trainers.max_price or max(prices))
        low = min(prices)
        name = f"{trainers.count} trainers, {'spot' if trainers.spot else 'on-demand'}"
        costs.append(Cost(name, trainers.count * low, trainers.count * max(low, bounded)))
    if config.coordinator.type in on_demand:
        price = on_demand[config.coordinator.type]
        costs.append(Cost(f"coordinator, {config.coordinator.type}", price, price))
    disks = (trainers.count * trainers.disk_gb + config.coordinator.disk_gb) * DISK_GB_HOUR
    addresses = (trainers.count + 1) * ADDRESS_HOUR
    costs.append(Cost("disks", disks, disks))
    costs.append(Cost("public addresses", 0.0, addresses))
    return costs


def dollars_per_hour(run: Run) -> tuple[float, float]:
    """Return what the run would cost per hour at the present prices: in the cheapest case, and in the most expensive.

    It is what `plan` says, without traffic between zones. Launches nothing. Raises CloudError if a price is not known,
    as a sum without it would be no answer.
    """
    found = survey_prices(run)
    costs = hourly_costs(run, found.spot_prices, found.on_demand_prices)
    if found.findings or len(costs) < PARTS:
        problems = [f"{finding.found}; {finding.advice}".rstrip("; ") for finding in found.findings]
        where = f"{run.config.trainers.types} in {run.account.region}"
        problems += [f"no spot prices of {where}; change trainers.types, network.zones or region"]
        raise CloudError(problems[0])
    return sum(cost.low for cost in costs), sum(cost.high for cost in costs)


@dataclass(frozen=True)
class Life:
    """The time for which a machine was paid for. `type` is None for one that AWS does not list any more."""

    id: str
    type: str | None
    zone: str
    spot: bool
    began: datetime
    ended: datetime

    @property
    def hours(self) -> float:
        """How long that was."""
        return max(0.0, (self.ended - self.began).total_seconds() / 3600)


def lives(machines: list[Machine], history: list[dict[str, Any]], spot: bool, now: datetime) -> list[Life]:
    """Return when every machine of a run was paid for.

    AWS lists ended machines for an hour, and the doings of Auto Scaling groups (`history`) for six weeks: together they
    know of every trainer as long as the groups exist. An ended machine without a time of its end counts until now.
    """
    began: dict[str, datetime] = {}
    ended: dict[str, datetime] = {}
    zones: dict[str, str] = {}
    for activity in history:
        match = re.match(r"(Launching a new|Terminating) EC2 instance: (i-[0-9a-f]+)", activity["Description"])
        if match is None or (match[1] != "Terminating" and activity["StatusCode"] != "Successful"):
            continue
        (ended if match[1] == "Terminating" else began)[match[2]] = activity["StartTime"]
        zones.setdefault(match[2], _zone(activity))
    found = {
        m.id: Life(
            m.id, m.type, m.zone, m.spot, m.launched, now if m.alive else (m.ended or ended.get(m.id) or now)
        )
        for m in machines
    }  # fmt: skip
    for name in began.keys() - found.keys():
        found[name] = Life(name, None, zones[name], spot, began[name], ended.get(name, now))
    return sorted(found.values(), key=lambda life: (life.began, life.id))


@dataclass(frozen=True)
class Bill:
    """What a run has cost so far. It is our estimate from prices, not AWS's bill, which comes a day later."""

    machines: float
    extras: float
    """Disks and public addresses."""
    unpriced: tuple[str, ...]
    """Machines whose price is not known; they are not included."""

    @property
    def total(self) -> float:
        """Dollars."""
        return self.machines + self.extras


def bill(run: Run, found: list[Life], spot: SpotPrices, on_demand: dict[str, float]) -> Bill:
    """Return what the lives of a run's machines cost. An unknown type counts as the most expensive one."""
    total, extras, unpriced = 0.0, 0.0, []
    trainers, coordinator = run.config.trainers, run.config.coordinator
    for life in found:
        price = _price(run, life, spot, on_demand)
        if price is None:
            unpriced.append(life.id)
        else:
            total += price * life.hours
        size = coordinator.disk_gb if life.type == coordinator.type else trainers.disk_gb
        extras += (size * DISK_GB_HOUR + ADDRESS_HOUR) * life.hours
    return Bill(total, extras, tuple(unpriced))


def spent(run: Run, charter: Charter, machines: list[Machine], now: datetime) -> tuple[list[Life], Bill]:
    """Return the lives of all machines that the run has had, and what they have cost until now."""
    config = run.config
    found = lives(machines, history(run), config.trainers.spot, now)
    zones = sorted({life.zone for life in found})
    prices = read_spot_prices(run.account, words(config.trainers.types), zones, charter.started)
    asked = {life.type for life in found if not life.spot and life.type is not None}
    on_demand = {name: price for name in sorted(asked) if (price := _on_demand(run, name)) is not None}
    return found, bill(run, found, prices, on_demand)


def _on_demand(run: Run, name: str) -> float | None:
    if name == run.config.coordinator.type and run.config.coordinator.price is not None:
        return run.config.coordinator.price
    try:
        with explained():
            return read_on_demand_price(run.account, name)
    except CloudError:
        return None


def _price(run: Run, life: Life, spot: SpotPrices, on_demand: dict[str, float]) -> float | None:
    """Dollars per hour, the mean over a machine's life."""
    types = (life.type,) if life.type is not None else words(run.config.trainers.types)
    if not life.spot:
        return max((on_demand[name] for name in types if name in on_demand), default=None)
    pools = [pool for pool in spot.changes if pool[0] in types and life.zone in ("", pool[1])]
    if life.hours == 0:
        return max((spot.now(pool) for pool in pools), default=None)
    return max((spot.mean(pool, life.began, life.ended) for pool in pools), default=None)


def _zone(activity: dict[str, Any]) -> str:
    try:
        return str(json.loads(activity.get("Details") or "{}").get("Availability Zone", ""))
    except ValueError:
        return ""
