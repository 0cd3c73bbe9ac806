import pytest
import torch

from btard.aggregation import AGGREGATORS
from btard.attacks import Attack, make_attack
from btard.drivers.rules import Rule, RuleError, RuleView, applied, make_rule
from btard.drivers.server import ServerDriver
from btard.protocol.behaviour import HookError, View
from btard.protocol.collusion import Collusion
from btard.task import QuadraticTask


def final_norm(rule: str, attack: str | None, scale: float | None = None) -> float:
    peers, members = 11, frozenset({3, 8})
    collusion = Collusion(members, peers)
    options = {} if scale is None else {"scale": scale}
    behaviours = {} if attack is None else {i: make_attack(attack, collusion, **options) for i in members}
    driver = ServerDriver(
        "server test",
        peers,
        make_rule(rule, byzantine=2, tau=1.0),
        QuadraticTask(40, noise=0.1),
        behaviours=behaviours,
        collusion=collusion,
    )
    params = torch.ones(40)
    for _ in range(80 if rule == "clip_around_last" else 40):  # it has to build its aggregate up
        result = driver.step(params)
        assert result.active == tuple(range(peers)) and not result.removed
        params = params - 0.1 * result.gradient
    return float(params.norm())


@pytest.mark.parametrize("rule", list(AGGREGATORS))
def test_every_rule_trains_without_attack(rule: str) -> None:
    assert final_norm(rule, None) < 1.0


@pytest.mark.parametrize("rule", [name for name in AGGREGATORS if name != "mean"])
def test_robust_rules_withstand_a_sign_flip_that_destroys_the_mean(rule: str) -> None:
    scale = 10.0 if rule == "rfa" else None  # three steps do not get far from a mean that is far off
    assert final_norm(rule, "sign_flip", scale) < 3.0 < final_norm("mean", "sign_flip", scale=10.0)


class Recorded(Rule):
    """The mean; `seen` has the rows and the view of each step."""

    def __post_init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, RuleView]] = []

    def aggregate(self, x: torch.Tensor, ctx: RuleView) -> torch.Tensor:
        self.seen.append((x.clone(), ctx))
        return x.mean(dim=0)


class Ramp(QuadraticTask):
    """Peer i's gradient in step t is (t + 1) * 10^i."""

    def gradients(self, params, requests, out, **_):  # type: ignore[no-untyped-def]
        for row, request in zip(out, requests, strict=True):
            row.fill_((request.step + 1) * 10.0**request.peer)


class FarOut(Attack):
    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return self.collusion.rows[0] + 7


def test_peers_send_momentum_and_attackers_see_that_of_the_honest() -> None:
    rule, collusion = Recorded(), Collusion(frozenset({1}), 2)
    driver = ServerDriver(
        "m", 2, rule, Ramp(1), behaviours={1: FarOut(collusion=collusion)}, collusion=collusion, momentum=0.75
    )
    for _ in range(3):
        driver.step(torch.zeros(1))
    # 1; 0.75 * 1 + 0.25 * 2; 0.75 * 1.25 + 0.25 * 3.
    assert [x.flatten().tolist() for x, _ in rule.seen] == [[1.0, 8.0], [1.25, 8.25], [1.6875, 8.6875]]
    last = [ctx.last if ctx.last is None else ctx.last.item() for _, ctx in rule.seen]
    assert last == [None, 4.5, 4.75] and [ctx.step for _, ctx in rule.seen] == [0, 1, 2]


def test_the_rule_that_attackers_try_is_the_one_that_is_applied() -> None:
    """Bucketing draws its buckets: an attacker's calls must not change them, nor see others."""
    tried: list[torch.Tensor] = []

    class Curious(Attack):
        def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
            assert ctx.rule is not None
            rows = torch.stack([*self.collusion.rows, gradient])
            tried[:] = [ctx.rule(rows), ctx.rule(rows)]
            return gradient

    collusion = Collusion(frozenset({6}), 7)
    driver = ServerDriver(
        "b",
        7,
        make_rule("coordinate_median", mixing="bucketing"),
        QuadraticTask(5),
        behaviours={6: Curious(collusion=collusion)},
        collusion=collusion,
    )
    results = [driver.step(torch.ones(5)).gradient for _ in range(2)]
    assert torch.equal(tried[0], tried[1]) and torch.equal(tried[0], results[1])


@pytest.mark.parametrize("mixing", ["nnm", "bucketing"])
def test_a_mixing_comes_before_the_rule(mixing: str) -> None:
    x = torch.tensor([[0.0], [1.0], [5.0], [100.0]])
    value = applied(make_rule("coordinate_median", byzantine=1, mixing=mixing), x, RuleView())
    # nnm: 2, 2, 2, 106/3. Buckets of two have means of which the median of two is the mean of all.
    assert value.item() == pytest.approx({"nnm": 2.0, "bucketing": 26.5}[mixing])


class Broken(Rule):
    made: object = None

    def aggregate(self, x: torch.Tensor, ctx: RuleView) -> torch.Tensor:
        if self.made == "refuse":
            raise ValueError("too\nfew")
        return self.made  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "aggregate returned a NoneType, expected a tensor of shape (2,)"),
        (torch.zeros(3), "aggregate returned shape (3,), expected (2,): one number for each parameter"),
        (torch.zeros(()), "aggregate returned shape (), expected (2,)"),
        (torch.zeros(2).double(), "aggregate returned torch.float64 on cpu, expected torch.float32 on cpu as the rows"),
        (torch.tensor([1.0, float("nan")]), "aggregate returned 1 of 2 numbers that are NaN or infinite"),
        ("refuse", "step 4: too few"),
    ],
)
def test_what_is_no_aggregate_is_one_line_with_the_rules_name(made: object, message: str) -> None:
    rule = Broken()
    rule.made = made
    with pytest.raises(RuleError) as caught:
        applied(rule, torch.zeros(3, 2), RuleView(step=4))
    said = str(caught.value)
    assert said.startswith(f"aggregation rule {__name__}:Broken, step 4: ") and message in said and "\n" not in said


def test_an_attack_that_sends_no_vector_is_one_line_too() -> None:
    class Short(Attack):
        def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
            return gradient[:-1]

    driver = ServerDriver(
        "s", 2, lambda x: x[0], QuadraticTask(4), behaviours={1: Short(collusion=Collusion(frozenset(), 2))}
    )
    with pytest.raises(
        HookError, match=r"Short, step 0, peer 1: gradient returned torch.float32 \(3,\) on cpu, expected"
    ):
        driver.step(torch.zeros(4))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("medain", {}, "unknown rule 'medain'; there are mean, coordinate_median"),
        ("mean", {"mixing": "stirring"}, "unknown mixing 'stirring'; there are nnm, bucketing"),
        ("btard.drivers.rules:RuleView", {}, "must be a subclass of btard.Rule, got class RuleView(object)"),
        ("btard.drivers.rules:Rule", {}, "must be a subclass of btard.Rule, got that class itself"),
        (f"{__name__}:Aimless", {}, "must define aggregate(self, x, ctx)"),
        (f"{__name__}:NeedsMore", {}, "missing 1 required"),
    ],
)
def test_rules_that_cannot_be_made(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        make_rule(name, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


class Aimless(Rule):
    pass


class NeedsMore(Recorded):
    def __init__(self, more: int, **options: float) -> None:
        super().__init__(**options)


def test_an_own_rule_gets_what_the_settings_say() -> None:
    rule = make_rule(f"{__name__}:Recorded", byzantine=3, tau=2.0)
    assert (rule.byzantine, rule.tau) == (3, 2.0) and isinstance(rule, Rule)
    assert applied(rule, torch.ones(2, 2), RuleView()).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_is_a_share(momentum: float) -> None:
    with pytest.raises(ValueError, match=">= 0 and < 1"):
        ServerDriver("m", 2, lambda x: x[0], QuadraticTask(4), momentum=momentum)


def test_an_interrupted_run_goes_on_to_the_same_bits() -> None:
    def make() -> ServerDriver:
        collusion = Collusion(frozenset({3}), 4)
        attack = make_attack("mimic", collusion, warmup=4)
        rule = make_rule("clip_around_last", tau=0.5, mixing="bucketing")
        return ServerDriver(
            "server test", 4, rule, QuadraticTask(9), behaviours={3: attack}, collusion=collusion, momentum=0.9
        )

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
