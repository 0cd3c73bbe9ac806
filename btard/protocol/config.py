"""The settings all peers of a run agree on. Two peers with different settings cannot work together."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

from btard.checks import require

Tensorial = Literal["part", "aggregate"]
"""The kinds of packets that carry a tensor."""
TENSORIAL: tuple[Tensorial, ...] = get_args(Tensorial)
HALVED: dict[str, tuple[Tensorial, ...]] = {"float32": (), "float16-parts": ("part",), "float16": TENSORIAL}
"""`wire` -> the kinds of tensors that travel as float16."""
MAX_PEERS = 2**12
"""Most peers that a run can begin with, and that a file or a page of a run tells of."""
ROUNDED_APART = 2.0**-10
"""How much farther apart two gradients can be as float16: each moves by up to 2^-11 of itself (`half.ROUNDING`)."""


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """What peers do to keep each other honest."""

    validators: int = 1
    """m: peers per step that check another peer's work of the step before instead of computing. More of them catch
    attackers sooner, and leave that many gradients fewer per step."""
    tau: float | Literal["auto"] = "auto"
    """Clipping radius of CenteredClip on each part. auto: follows the distances that the workers reported in the step
    before, so it fits gradients of any size (`btard.protocol.radius`). A number is fixed, as in the paper; inf is the
    mean."""
    tau_quantile: float = 0.5
    """auto: which quantile of a part's distances. Below 0.5 it clips more, and withstands fewer liars."""
    tau_start: float = 1e-9
    """auto: the radius of the first step, and of the next steps until there is a distance to follow. Leave it small:
    then the first step takes about the geometric median, which fits any gradients. One that is too large lets liars
    that attack in the first steps slow down how the radius comes to fit."""
    tol: float = 1e-6
    """Relative residual to which aggregators solve (CC)."""
    residual_tol: float = 1e-5
    """A judge convicts an aggregator above this relative residual of (CC); rounding of the aggregate is added to it."""
    scalar_tol: float = 1e-5
    """A judge convicts a reporter whose norm or size is off by more than this, relative to itself, or whose s is off by
    ten times this, relative to the clipped difference."""
    validation: Literal["exact", "tolerant"] = "exact"
    """exact: a validator compares hashes, so all peers must compute the same bits. tolerant: the target shows
    what it committed to, and distances decide; for peers on different hardware."""
    gradient_tol: float = 0.1
    """tolerant: how far apart, relative to the larger norm, honest peers' gradients of one batch may be; a judge
    convicts above it, a validator accuses above twice. Take it from a calibration on the hardware in use. Raise it if
    honest peers are banned for wrong_gradient; any gradient within it passes for honest. At least 2^-9 where gradients
    travel as float16."""
    cosine_tol: float | None = None
    """tolerant: the same for 1 - cosine; accused above four times, as it is a squared distance. null: no check."""
    directions: int = 1
    """Number of random directions z that V2 projects on. More make a miss by chance rarer, and reports longer."""
    delta_max: float | None = None
    """V3: a part is checked if all honest workers may be farther than this from its aggregate. null: 10 times the
    size of an honest gradient's part in the same step, plus tau. Set it if you know how far apart honest gradients
    are, to leave colluders less room."""
    clip_lambda: float | None = None
    """BTARD-Clipped-SGD: peers scale their gradients to at most this norm. Lower it if the loss jumps. null: no
    clipping."""
    wire: Literal["float32", "float16-parts", "float16"] = "float32"
    """What is sent, committed to and computed with: float16 for gradients' parts and aggregates, float16-parts for the
    parts alone (`btard.protocol.half`). Take float16 for home uplinks: half the bytes, and every number rounded to 11
    bits, so that a hostile owner can move its part by about a hundredth of a gradient unseen. float16-parts: three
    quarters of the bytes, and such an owner moves as little as with float32."""
    relays: int | None = None
    """Rounds in which differing broadcasts are passed on. With as many rounds as colluding Byzantine peers the honest
    peers stay in agreement, whatever the colluders do; null: that many. They take time only where peers have heard
    different things, or a liar claims so. 0 trusts the network to show everybody the same."""
    max_absences: int = 3
    """Steps in a row that a peer may miss the commit phase before it counts as gone. Raise it if peers need longer to
    restart and steps are long; if steps are short, raise `max_away`."""
    max_away: float | None = None
    """Seconds that a peer may be away before it counts as gone, however many steps that are. Raise it if a peer takes
    longer to restart; lower it if peers that are lost for good leave places empty for too long. Measured by the clocks
    of the peers, whose time no minority can speed up or stop. null: only steps count, as in a simulation."""
    probation: int | None = None
    """T_join: steps in which a newcomer computes gradients that are checked and not used. Raise it if new identities
    are too cheap for the harm that they can do before they are banned. null: nobody can join. If peers can join,
    `byzantine` is the number of members of any step that may be Byzantine."""
    heal: int | Literal["auto", "off"] = "off"
    """After a member was removed, all peers go back by at most this many steps, to an earlier state that was clearly
    better on a public batch (`btard.protocol.heal`). auto: as many steps as nine in ten attackers need to be caught.
    off: the harm of an attack stays, as in the paper. It is the default here, because a step that goes back hands its
    caller a state instead of a gradient; programs, `simulate` and `distributed` take it, and have auto."""
    max_newcomers: int = 1
    """Newcomers admitted per step, at most. Each costs the members d floats per step while it is on probation, up
    to (b_t + 2) d if it asks for what it has been sent. At most `peers` newcomers are on probation at once."""

    def __post_init__(self) -> None:
        require(self.validators >= 0, "validators", ">= 0", self.validators, "1 is the paper's protocol")
        if isinstance(self.tau, str):
            require(self.tau == "auto", "tau", "a number or auto", repr(self.tau), "use inf for the plain mean")
        else:
            require(self.tau > 0, "tau", "> 0", self.tau, "use inf for the plain mean")
        quantile = self.tau_quantile
        require(0 < quantile <= 0.5, "tau_quantile", "> 0 and <= 0.5", quantile, "0.5 withstands the most liars")
        for name in ("tau_start", "tol", "residual_tol", "scalar_tol"):
            require(getattr(self, name) > 0, name, "> 0", getattr(self, name), "leave it out for the default")
        fits = self.residual_tol >= self.tol and not math.isinf(self.tol)
        rule = f"finite and >= tol = {self.tol}"
        require(fits, "residual_tol", rule, self.residual_tol, "honest aggregates would fail", beside="tol")
        known = self.validation in ("exact", "tolerant")
        require(known, "validation", "exact or tolerant", repr(self.validation), "choose one")
        words = "float32, float16-parts or float16"
        require(self.wire in HALVED, "wire", words, repr(self.wire), "float32 is the paper's")
        tol, cosine = self.gradient_tol, self.cosine_tol
        require(0 < tol < 0.5, "gradient_tol", "> 0 and < 0.5", tol, "at 0.5 a gradient of zero would pass")
        fits = cosine is None or 0 < cosine < 0.25
        require(fits, "cosine_tol", "> 0 and < 0.25, or null", cosine, "at 0.25 one at a right angle would pass")
        if self.validation == "tolerant":
            fix = "float16 moves equal gradients of two machines that far apart"
            rule = f">= {2 * self.rounding:g} with wire {self.wire}"
            require(tol >= 2 * self.rounding, "gradient_tol", rule, tol, fix, beside="wire")
            least = 2 * self.rounding**2  # half of the squared distance
            require(cosine is None or cosine >= least, "cosine_tol", f">= {least:g} with wire {self.wire}", cosine, fix)
        fits = 1 <= self.directions <= 1024
        require(fits, "directions", ">= 1 and <= 1024", self.directions, "a longer report would be refused")
        for name in ("delta_max", "clip_lambda"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "> 0 or null", value, "null is the default")
        if isinstance(self.heal, str):
            require(self.heal in ("auto", "off"), "heal", "a number of steps, auto or off", repr(self.heal), "use auto")
        else:
            fits = self.heal is not True and 1 <= self.heal <= 10**6
            rule = ">= 1 and <= 1000000 steps, auto or off"
            require(fits, "heal", rule, self.heal, "use off to keep what an attack did")
        for name in ("max_absences", "max_newcomers"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name), "1 is the least")
        away = self.max_away
        fits = away is None or 0.001 <= away <= 10**6
        require(fits, "max_away", ">= 0.001 and <= 1000000 seconds, or null", away, "null counts steps alone")
        fits = away is None or self.max_absences <= 1000
        require(fits, "max_absences", "<= 1000 with max_away", self.max_absences, "raise max_away", beside="max_away")
        steps = self.probation
        require(steps is None or steps >= 1, "probation", ">= 1 steps or null", steps, "with null nobody can join")

    @property
    def halved(self) -> tuple[Tensorial, ...]:
        """The kinds of tensors that travel as float16."""
        return HALVED[self.wire]

    @property
    def rounding(self) -> float:
        """How much farther apart than as float32 two gradients can be once they travel, relative to their norms."""
        return ROUNDED_APART if "part" in self.halved else 0.0

    @property
    def whole_step(self) -> int:
        """The weight of a step that a peer misses: if time counts too, a short step counts for millionths of it."""
        return 1 if self.max_away is None else 10**6

    @property
    def longest_absence(self) -> int:
        """The weight of the consecutive missed steps after which a peer is gone."""
        return self.max_absences * self.whole_step

    @property
    def first_tau(self) -> float:
        """The clipping radius of the first step."""
        return self.tau_start if isinstance(self.tau, str) else float(self.tau)


@dataclass(frozen=True)
class ProtocolConfig(ProtocolSettings):
    """The settings of one run; `n`, `b`, `m`, `tau` as in the paper. Every field is equal at every peer.

    Raises FieldError for settings that cannot work; warns if the workers of a step may have no honest majority.

    >>> import btard
    >>> config = btard.ProtocolConfig(peers=16, byzantine=7, validators=1, tau="auto", run_id="docs")
    >>> config.rounds  # of relays, unless `relays` says otherwise
    7
    >>> btard.ProtocolConfig(peers=4, byzantine=2)
    Traceback (most recent call last):
    btard.checks.FieldError: byzantine must be >= 0 and < peers / 2 = 2, got 2; the honest must be the majority
    """

    peers: int
    """n: peers at the start of the run."""
    byzantine: int = 0
    """b: how many of the peers may be Byzantine. Only checked against n and m; nobody knows which peers they are."""
    run_id: str = "btard"
    """Names the run in every hash and signature, so that no message can be replayed in another run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        n, b, m = self.peers, self.byzantine, self.validators
        require(1 <= n <= MAX_PEERS, "peers", f">= 1 and <= {MAX_PEERS}", n, "statuses and pages tell of no more")
        rule = f">= 0 and < peers / 2 = {n / 2:g}"
        require(0 <= 2 * b < n, "byzantine", rule, b, "the honest must be the majority", beside="peers")
        rule = f">= 0 and at most (peers - 1) / 2 = {(n - 1) // 2}"
        require(2 * m < n, "validators", rule, m, "every validator needs a target among the workers", beside="peers")
        if 2 * b >= n - m and b:
            warnings.warn(
                f"b={b} >= (n - m)/2 = {(n - m) / 2:g}: with all validators honest, the workers of a step have no "
                "honest majority, and liars can have parts skipped and hold back a tau that is auto at no cost; use "
                "fewer validators or more peers",
                stacklevel=3,
            )
        elif self.tau == "auto":  # with more liars than that no quantile would do, and the radius is only drawn nearer
            fits = not b or b < self.tau_quantile * (n - m)
            rule = f"> byzantine / (peers - validators) = {b / max(1, n - m):.3g} with tau auto"
            fix = "or else liars hold the radius back: leave it at 0.5, or use a number as tau"
            require(fits, "tau_quantile", rule, self.tau_quantile, fix, beside="byzantine")
        fits = self.relays is None or 0 <= self.relays < n
        rule = f">= 0 and < peers = {n}, or null"
        require(fits, "relays", rule, self.relays, "null is the safe choice", beside="peers")
        rule = f">= 1 and <= peers = {n}"
        fix = "a message that names more would be refused as too long"
        require(self.max_newcomers <= n, "max_newcomers", rule, self.max_newcomers, fix, beside="peers")

    @property
    def rounds(self) -> int:
        """How many rounds of relays follow a broadcast."""
        return self.byzantine if self.relays is None else self.relays
