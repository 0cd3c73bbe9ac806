"""What AWS would say where moto knows nothing: public parameters, prices, quotas, rights, what machines print."""

import json
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any
from xml.sax.saxutils import escape

from tests.albert.cloud.endpoint import Endpoint, Reply, Request, refusal, told

IMAGE = "ami-785db401"
"""The one of amis.json."""
PRICES = {
    ("g4dn.xlarge", "us-east-1a"): (0.16, 0.20),
    ("g4dn.xlarge", "us-east-1b"): (0.18, 0.18),
    ("g4dn.2xlarge", "us-east-1a"): (0.30, 0.26),
}
"""A day ago, and since half a day."""
ON_DEMAND = {"m6i.large": 0.096, "g4dn.xlarge": 0.526, "g4dn.2xlarge": 0.752}


def say_what_aws_would(endpoint: Endpoint) -> None:
    """The answers of an account in which everything is fine."""
    endpoint.answer("GetParameter", public_parameter)
    endpoint.answer("DescribeSpotPriceHistory", spot_prices())
    endpoint.answer("GetProducts", price_list)
    endpoint.answer("GetServiceQuota", quota({}))
    endpoint.answer("SimulatePrincipalPolicy", simulation(set()))


def public_parameter(request: Request) -> Reply | None:
    name = request.arguments["Name"]
    if not name.startswith("/aws/service/"):
        return None
    if "nowhere" in name:
        return refusal("ssm", "ParameterNotFound", "")
    return told({"Parameter": {"Name": name, "Type": "String", "Value": IMAGE}})


def spot_prices(prices: dict[tuple[str, str], tuple[float, float]] = PRICES, now: datetime | None = None) -> Reply:
    now = now or datetime.now(timezone.utc)
    items = ""
    for (kind, zone), (before, since) in prices.items():
        for age, price in ((30, before), (12, since)):
            time = (now - timedelta(hours=age)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            items += (
                f"<item><instanceType>{kind}</instanceType><productDescription>Linux/UNIX</productDescription>"
                f"<spotPrice>{price}</spotPrice><timestamp>{time}</timestamp>"
                f"<availabilityZone>{zone}</availabilityZone></item>"
            )
    name = "DescribeSpotPriceHistoryResponse"
    return Reply(f"<{name}><spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken/></{name}>")


def price_list(request: Request) -> Reply:
    wanted = {item["Field"]: item["Value"] for item in request.arguments["Filters"]}
    price = ON_DEMAND.get(wanted["instanceType"])
    dimension = {"priceDimensions": {"b": {"pricePerUnit": {"USD": f"{price}"}}}}
    products = [] if price is None else [json.dumps({"terms": {"OnDemand": {"a": dimension}}})]
    return told({"FormatVersion": "aws_v1", "PriceList": products})


def quota(values: dict[str, float], default: float = 256.0) -> Any:
    def reply(request: Request) -> Reply:
        code = request.arguments["QuotaCode"]
        return told({"Quota": {"QuotaCode": code, "Value": values.get(code, default)}})

    return reply


def simulation(missing: set[str]) -> Any:
    def reply(request: Request) -> Reply:
        names = [value for key, value in request.arguments.items() if key.startswith("ActionNames.")]
        members = ""
        for name in names:
            decision = "implicitDeny" if name in missing else "allowed"
            members += (
                f"<member><EvalActionName>{name}</EvalActionName><EvalResourceName>*</EvalResourceName>"
                f"<EvalDecision>{decision}</EvalDecision></member>"
            )
        inner = f"<EvaluationResults>{members}</EvaluationResults><IsTruncated>false</IsTruncated>"
        name = "SimulatePrincipalPolicy"
        return Reply(f"<{name}Response><{name}Result>{inner}</{name}Result></{name}Response>")

    return reply


def activities(entries: Iterable[dict[str, str]]) -> Reply:
    """Doings of an Auto Scaling group, the newest first."""
    members = ""
    for number, entry in enumerate(entries):
        fields = {"ActivityId": str(number), "AutoScalingGroupName": "x", "Cause": "", "Progress": "100"} | entry
        inner = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in fields.items())
        members += f"<member>{inner}</member>"
    name = "DescribeScalingActivities"
    return Reply(f"<{name}Response><{name}Result><Activities>{members}</Activities></{name}Result></{name}Response>")


def printed(output: str, status: str = "Success", error: str = "") -> Reply:
    """What Systems Manager says of a command that has run."""
    return told({"Status": status, "StandardOutputContent": output, "StandardErrorContent": error})
