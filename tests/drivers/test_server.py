import pytest
import torch

from btard.aggregation import AGGREGATORS
from btard.attacks import make_attack
from btard.drivers.server import ServerDriver
from btard.protocol.collusion import Collusion
from btard.task import QuadraticTask


def final_norm(rule: str, attack: str | None, steps: int = 40, scale: float | None = None) -> float:
    peers, members = 11, frozenset({3, 8})
    collusion = Collusion(members, peers)
    options = {} if scale is None else {"scale": scale}
    behaviours = {} if attack is None else {i: make_attack(attack, collusion, **options) for i in members}
    driver = ServerDriver(
        "server test",
        peers,
        lambda x: AGGREGATORS[rule](x, byzantine=2, tau=1.0),
        QuadraticTask(40, noise=0.1),
        behaviours=behaviours,
        collusion=collusion,
    )
    params = torch.ones(40)
    for _ in range(steps):
        result = driver.step(params)
        assert result.active == tuple(range(peers)) and not result.removed
        params = params - 0.1 * result.gradient
    return float(params.norm())


@pytest.mark.parametrize("rule", list(AGGREGATORS))
def test_every_rule_trains_without_attack(rule: str) -> None:
    assert final_norm(rule, None) < 1.0


@pytest.mark.parametrize("rule", [name for name in AGGREGATORS if name != "mean"])
def test_robust_rules_withstand_a_sign_flip_that_destroys_the_mean(rule: str) -> None:
    assert final_norm(rule, "sign_flip") < 3.0 < final_norm("mean", "sign_flip", scale=10.0)


def test_an_interrupted_run_goes_on_to_the_same_bits() -> None:
    def make() -> ServerDriver:
        return ServerDriver("server test", 4, lambda x: x.mean(0), QuadraticTask(9))

    whole, parts = make(), make()
    a = b = torch.ones(9)
    for _ in range(6):
        a = a - 0.1 * whole.step(a).gradient
    for _ in range(3):
        b = b - 0.1 * parts.step(b).gradient
    resumed = make()
    resumed.restore(*parts.state())
    for _ in range(3):
        b = b - 0.1 * resumed.step(b).gradient
    assert torch.equal(a, b)
