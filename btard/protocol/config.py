"""The settings all peers of a run agree on. Two peers with different settings cannot work together."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ProtocolConfig:
    """Every field has the same value at every peer; `n`, `b`, `m`, `tau` as in the paper."""

    peers: int
    """n: peers at the start of the run."""
    byzantine: int = 0
    """b: how many of them may be Byzantine. Only checked against n and m; nobody knows who they are."""
    validators: int = 1
    """m: validators per step. Raise it to catch attackers sooner, at the price of m fewer gradients per step."""
    tau: float | Literal["auto"] = 1.0
    """Clipping radius of CenteredClip on each part; inf is the mean. Lower it if accuracy dips under attack.
    auto: follows the distances that the workers reported in the step before (`btard.protocol.radius`)."""
    tau_quantile: float = 0.5
    """auto: which quantile of a part's distances. Below 0.5 it clips more, and stands fewer liars."""
    tau_start: float = 1.0
    """auto: the radius of the first step, and of the next ones until there is a distance to go by."""
    run_id: str = "btard"
    """Names the run in every hash and signature, so that no message can be replayed in another run."""
    tol: float = 1e-6
    """Relative residual to which aggregators solve (CC)."""
    residual_tol: float = 1e-5
    """A judge convicts an aggregator above this relative residual of (CC); rounding of the aggregate is added to it."""
    scalar_tol: float = 1e-5
    """A judge convicts a reporter whose norm or s is off by more than this, relative to the clipped difference."""
    validation: Literal["exact", "tolerant"] = "exact"
    """exact: a validator compares hashes, so all peers have to compute alike to the bit. tolerant: the target shows
    what it committed to, and distances decide; for peers on different hardware."""
    gradient_tol: float = 0.1
    """tolerant: how far apart, relative to the larger norm, honest peers' gradients of one batch may be; a judge
    convicts above it, a validator accuses above twice. Take it from a calibration on the hardware in use."""
    cosine_tol: float | None = None
    """tolerant: the same for 1 - cosine; accused above four times, for it is a distance squared. None: no check."""
    directions: int = 1
    """How many random directions z V2 projects on. More make a narrow miss by chance rarer."""
    delta_max: float | None = None
    """V3: a part is checked when over half of the workers are farther than this from its aggregate.
    None: 10 times the median over the parts of their median distance, in the same step."""
    clip_lambda: float | None = None
    """BTARD-Clipped-SGD: peers scale their gradients to at most this norm. None: no clipping."""
    relays: int | None = None
    """Rounds in which differing broadcasts are passed on. As many as there are colluding Byzantine peers keep the
    honest ones in agreement whatever these do; None: `byzantine`. 0 trusts the network to show everybody the same."""
    max_absences: int = 3
    """Steps in a row that a peer may miss the commit phase before it counts as gone."""
    probation: int | None = None
    """T_join: steps in which a newcomer computes gradients that are checked and not used. Raise it if new identities
    are too cheap for what they can do until they are banned. None: nobody can join. Where peers join, `byzantine` is
    how many of the members of any step may be Byzantine."""
    max_newcomers: int = 1
    """Newcomers admitted per step, at most. Each costs the members d floats per step while it is on probation."""

    def __post_init__(self) -> None:
        n, b, m = self.peers, self.byzantine, self.validators
        if n < 1 or b < 0 or m < 0:
            raise ValueError(f"peers must be >= 1, byzantine and validators >= 0; got n={n}, b={b}, m={m}")
        if 2 * b >= n:
            raise ValueError(f"byzantine must be < peers / 2, got b={b} of n={n}: no majority would be honest")
        if m and n < 2 * m + 1:
            raise ValueError(f"validators need targets and workers: peers >= 2 m + 1, got n={n}, m={m}")
        if 2 * b >= n - m and b:
            warnings.warn(
                f"b={b} >= (n - m)/2 = {(n - m) / 2:g}: with all validators honest, the workers of a step have no "
                "honest majority and V3 can tie; use fewer validators or more peers",
                stacklevel=3,
            )
        if isinstance(self.tau, str):
            if self.tau != "auto":
                raise ValueError(f"tau must be a number or auto, got {self.tau!r}")
        elif not self.tau > 0:
            raise ValueError(f"tau must be > 0, got {self.tau}")
        for name in ("tau_start", "tol", "residual_tol", "scalar_tol"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 < self.tau_quantile <= 0.5:
            raise ValueError(f"tau_quantile must be > 0 and <= 0.5, got {self.tau_quantile}: above, fewer liars do")
        if self.tau == "auto" and b and not b < self.tau_quantile * (n - m):
            raise ValueError(
                f"tau auto with tau_quantile {self.tau_quantile} needs byzantine < tau_quantile (peers - validators) = "
                f"{self.tau_quantile * (n - m):g}, got {b}: liars could choose the radius; raise tau_quantile up to "
                "0.5, use fewer validators or more peers, or a number for tau"
            )
        if math.isinf(self.tol) or self.residual_tol < self.tol:
            raise ValueError(f"residual_tol must be >= tol = {self.tol}, got {self.residual_tol}: honesty would fail")
        if self.validation not in ("exact", "tolerant"):
            raise ValueError(f"validation must be exact or tolerant, got {self.validation!r}")
        if not 0 < self.gradient_tol < 0.5:  # a gradient of zero is at distance 1 and has to be accused
            raise ValueError(f"gradient_tol must be > 0 and < 0.5, got {self.gradient_tol}")
        if self.cosine_tol is not None and not 0 < self.cosine_tol < 0.25:  # likewise one at a right angle
            raise ValueError(f"cosine_tol must be > 0 and < 0.25 (or null), got {self.cosine_tol}")
        if not 1 <= self.directions <= 1024:  # a report with more would be refused as too long
            raise ValueError(f"directions must be >= 1 and <= 1024, got {self.directions}")
        if self.relays is not None and not 0 <= self.relays < n:
            raise ValueError(f"relays must be >= 0 and < peers = {n} (or null), got {self.relays}")
        if self.max_absences < 1:
            raise ValueError(f"max_absences must be >= 1, got {self.max_absences}")
        if self.probation is not None and self.probation < 1:
            raise ValueError(f"probation must be >= 1 steps (or null: nobody can join), got {self.probation}")
        if not 1 <= self.max_newcomers <= n:  # a message that names more would be refused as too long
            raise ValueError(f"max_newcomers must be >= 1 and <= peers = {n}, got {self.max_newcomers}")
        for name in ("delta_max", "clip_lambda"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0 or null, got {value}")

    @property
    def rounds(self) -> int:
        """How many rounds of relays follow a broadcast."""
        return self.byzantine if self.relays is None else self.relays

    @property
    def first_tau(self) -> float:
        """The clipping radius of the first step."""
        return self.tau_start if isinstance(self.tau, str) else float(self.tau)
