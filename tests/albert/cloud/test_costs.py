"""Prices over time, and what machines cost, by numbers known by hand."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from albert.cloud.config import Config
from albert.cloud.costs import Life, bill, dollars_per_hour, hourly_costs, lives
from albert.cloud.errors import CloudError
from albert.cloud.machines import Machine, _ended
from albert.cloud.prices import ADDRESS_HOUR, DISK_GB_HOUR, SpotPrices
from albert.cloud.run import Run
from albert.cloud.tables import ago, dollars, span
from tests.albert.cloud import answers

T = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
SMALL, LARGE = ("g4dn.xlarge", "a"), ("g4dn.2xlarge", "a")
SPOT = SpotPrices({SMALL: [(T, 0.1), (T + 2 * HOUR, 0.3)], LARGE: [(T, 0.5)]})
RUN = Run(SimpleNamespace(region="us-east-1"), Config())  # type: ignore[arg-type]


def machine(name: str, **changes: object) -> Machine:
    whole = Machine(name, "honest", "g4dn.xlarge", "a", "running", True, T, None, frozenset())
    return replace(whole, **changes)  # type: ignore[arg-type]


def activity(kind: str, name: str, start: datetime, status: str = "Successful") -> dict:
    return {
        "Description": f"{kind} EC2 instance: {name}",
        "StatusCode": status,
        "StartTime": start,
        "Details": '{"Subnet ID":"subnet-1","Availability Zone":"a"}',
    }


@pytest.mark.parametrize(
    ("begin", "end", "cost"),
    [(0, 2, 0.2), (1, 3, 0.1 + 0.3), (2, 5, 0.9), (0.5, 1, 0.05), (-3, 0, 0.3), (4, 4, 0.0)],
)
def test_a_machine_costs_what_held_hour_by_hour(begin, end, cost):
    assert SPOT.dollars(SMALL, T + begin * HOUR, T + end * HOUR) == pytest.approx(cost)


def test_mean_extremes_and_the_last_price():
    assert SPOT.mean(SMALL, T, T + 4 * HOUR) == pytest.approx(0.2)
    assert SPOT.extremes(SMALL, T, T + 4 * HOUR) == (0.1, 0.3)
    assert SPOT.extremes(SMALL, T, T + HOUR) == (0.1, 0.1)
    assert SPOT.now(SMALL) == 0.3


def test_hours_come_from_ec2_and_for_machines_it_has_forgotten_from_their_group():
    seen = [
        machine("i-1", launched=T),
        machine("i-2", launched=T, state="terminated", ended=T + HOUR),
        machine("i-4", launched=T, state="terminated"),
    ]
    history = [
        activity("Terminating", "i-3", T + 3 * HOUR),
        activity("Launching a new", "i-3", T + HOUR),
        activity("Launching a new", "i-9", T + HOUR, status="Failed"),
        activity("Terminating", "i-4", T + 2 * HOUR),
    ]
    found = {life.id: (life.type, life.hours) for life in lives(seen, history, True, T + 4 * HOUR)}
    assert found == {
        "i-1": ("g4dn.xlarge", 4.0),
        "i-2": ("g4dn.xlarge", 1.0),
        "i-3": (None, 2.0),
        "i-4": ("g4dn.xlarge", 2.0),
    }


def test_the_bill_has_spot_at_its_prices_and_a_forgotten_type_at_the_dearest():
    config = RUN.config
    found = [
        Life("i-1", "g4dn.xlarge", "a", True, T, T + 4 * HOUR),  # 0.1, 0.1, 0.3, 0.3
        Life("i-2", None, "a", True, T, T + HOUR),  # at most 0.5
        Life("i-3", "m6i.large", "a", False, T, T + 2 * HOUR),  # 2 x 0.096
        Life("i-4", "c5.large", "a", False, T, T + HOUR),  # nobody knows
    ]
    sum_ = bill(RUN, found, SPOT, {"m6i.large": 0.096})
    assert sum_.machines == pytest.approx(0.8 + 0.5 + 0.192)
    assert sum_.unpriced == ("i-4",)
    gigabytes = config.trainers.disk_gb * 6 + config.coordinator.disk_gb * 2
    assert sum_.extras == pytest.approx(gigabytes * DISK_GB_HOUR + 8 * ADDRESS_HOUR)


def test_costs_per_hour_from_the_cheapest_to_the_dearest():
    costs = {cost.name: (cost.low, cost.high) for cost in hourly_costs(RUN, SPOT, {"m6i.large": 0.096})}
    assert costs["16 trainers, spot"] == (pytest.approx(4.8), pytest.approx(8.0))
    assert costs["coordinator, m6i.large"] == (0.096, 0.096)
    assert costs["public addresses"] == (0.0, pytest.approx(0.085))
    assert costs["disks"][0] == pytest.approx((16 * 120 + 50) * 0.08 / 730)
    assert {cost.name for cost in hourly_costs(RUN, None, {})} == {"disks", "public addresses"}


def test_a_run_has_its_dollars_per_hour_without_being_launched(cloud):
    low, high = dollars_per_hour(cloud.run)
    # 3 spot machines at 0.18 (the cheapest now) to 0.26; a coordinator; 410 GB of disk; up to 4 addresses.
    fixed = 0.096 + 410 * DISK_GB_HOUR
    assert low == pytest.approx(3 * 0.18 + fixed)
    assert high == pytest.approx(3 * 0.26 + fixed + 4 * ADDRESS_HOUR)
    assert cloud("plan") == 0
    assert f"│{span(low, high)}" in cloud.output.replace("│ ", "│")
    cloud.endpoint.asked.clear()
    dollars_per_hour(cloud.run)
    assert cloud.endpoint.changes() == []
    assert "SimulatePrincipalPolicy" not in {request.action for request in cloud.endpoint.asked}
    cloud.changes = ["--trainers.spot", "false", "--coordinator.price", "0.5", "--trainers.types", "g4dn.xlarge"]
    low, high = dollars_per_hour(cloud.run)
    assert (low, high) == (pytest.approx(low), pytest.approx(low + 4 * ADDRESS_HOUR))
    assert low == pytest.approx(3 * 0.526 + 0.5 + 410 * DISK_GB_HOUR)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("GetProducts", "missing right: GetProducts was refused"),
        ("DescribeSpotPriceHistory", "missing right: DescribeSpotPriceHistory was refused"),
        ("DescribeSubnets", "missing right: DescribeSubnets was refused"),
    ],
)
def test_a_price_that_is_not_known_is_an_error_and_no_smaller_sum(cloud, action, message):
    cloud.endpoint.refuse(action, "AccessDeniedException" if action == "GetProducts" else "UnauthorizedOperation")
    with pytest.raises(CloudError, match=message):
        dollars_per_hour(cloud.run)


def test_types_that_are_sold_nowhere_have_no_price(cloud):
    cloud.endpoint.answer("DescribeSpotPriceHistory", answers.spot_prices({}))
    with pytest.raises(CloudError, match=r"no spot prices of g4dn\.xlarge g4dn\.2xlarge in us-east-1; "):
        dollars_per_hour(cloud.run)


def test_the_end_of_a_machine_stands_in_its_reason():
    assert _ended("User initiated (2026-01-31 12:00:00 GMT)") == datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
    assert _ended("") is None


def test_numbers_as_people_read_them():
    assert [dollars(x) for x in (0.16, 2.5, 1234.5)] == ["0.1600", "2.50", "1,234"]
    assert (span(1.0, 2.0), span(1.0, 1.001)) == ("1.00 to 2.00", "1.00")
    assert [ago(s) for s in (-1, 59, 150, 7300, 200_000)] == ["0 s ago", "59 s ago", "2 min ago", "2 h ago", "2 d ago"]
