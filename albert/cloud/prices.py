"""What machines cost: spot prices over time and zones, on-demand prices, disks and addresses."""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from albert.cloud.account import Account

DISK_GB_HOUR = 0.08 / 730
"""Dollars per hour for a GB of gp3 disk, in us-east-1; up to a fifth more elsewhere."""
ADDRESS_HOUR = 0.005
"""Dollars per hour for a public IPv4 address."""

Pool = tuple[str, str]
"""Instance type, zone."""


@dataclass(frozen=True)
class SpotPrices:
    """Prices that held from a time on, by instance type and zone, in the order of time."""

    changes: dict[Pool, list[tuple[datetime, float]]]

    def now(self, pool: Pool) -> float:
        """Return the last price, in dollars per hour."""
        return self.changes[pool][-1][1]

    def between(self, pool: Pool, begin: datetime, end: datetime) -> list[tuple[float, float]]:
        """Return (seconds, dollars per hour) of the prices that held between two times."""
        times = [time for time, _ in self.changes[pool]]
        first = max(0, bisect_right(times, begin) - 1)
        spans = []
        for index in range(first, len(times)):
            left = begin if index == first else times[index]
            right = end if index + 1 == len(times) else min(end, times[index + 1])
            if right > left:
                spans.append(((right - left).total_seconds(), self.changes[pool][index][1]))
        return spans

    def dollars(self, pool: Pool, begin: datetime, end: datetime) -> float:
        """Return what a machine cost from one time to another."""
        return sum(seconds / 3600 * price for seconds, price in self.between(pool, begin, end))

    def mean(self, pool: Pool, begin: datetime, end: datetime) -> float:
        """Return the mean price between two times that are not the same."""
        return self.dollars(pool, begin, end) / ((end - begin).total_seconds() / 3600)

    def extremes(self, pool: Pool, begin: datetime, end: datetime) -> tuple[float, float]:
        """Return the lowest and the highest price between two times."""
        prices = [price for _, price in self.between(pool, begin, end)]
        return min(prices), max(prices)


def read_spot_prices(account: Account, types: Sequence[str], zones: Sequence[str], since: datetime) -> SpotPrices:
    """Return all spot prices of some types in some zones since a time, with the one that held then."""
    history = account.pages(
        "ec2",
        "describe_spot_price_history",
        "SpotPriceHistory",
        InstanceTypes=list(types),
        ProductDescriptions=["Linux/UNIX"],
        StartTime=since,
    )
    changes: dict[Pool, list[tuple[datetime, float]]] = defaultdict(list)
    for entry in history:
        if entry["AvailabilityZone"] in zones:
            pool = entry["InstanceType"], entry["AvailabilityZone"]
            changes[pool].append((entry["Timestamp"], float(entry["SpotPrice"])))
    return SpotPrices({pool: sorted(changes[pool]) for pool in sorted(changes)})


def read_on_demand_price(account: Account, name: str) -> float | None:
    """Return the on-demand price of an instance type with Linux, in dollars per hour; None if the list has none."""
    fields = {
        "instanceType": name,
        "regionCode": account.region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()]
    products = account.client("pricing").get_products(ServiceCode="AmazonEC2", Filters=filters)["PriceList"]
    prices = [price for product in products for price in _dollars(json.loads(product))]
    return max(prices, default=None)


def _dollars(product: dict[str, Any]) -> list[float]:
    terms = product.get("terms", {}).get("OnDemand", {}).values()
    dimensions = [dimension for term in terms for dimension in term["priceDimensions"].values()]
    return [price for d in dimensions if (price := float(d["pricePerUnit"].get("USD", 0))) > 0]
