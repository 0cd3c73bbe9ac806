"""Rules of a trusted server as objects: those of `btard.aggregation` by name, those of other people, and what checks
what comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from btard.aggregation import AGGREGATORS, MIXINGS
from btard.named import load_class, own
from btard.options import check_known, check_options, option_names


@dataclass(frozen=True)
class RuleView:
    """What a rule may use in addition to the rows."""

    step: int = 0
    last: Tensor | None = None
    """The aggregate [d] of the step before; None in the first step."""
    stream: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    """Random numbers of this step: the same if the step is repeated."""


class RuleError(ValueError):
    """A rule returned something that is no aggregate; one line."""


@dataclass(kw_only=True, eq=False)
class Rule:
    """How a trusted server combines the vectors of all peers into one. A subclass overrides `aggregate`.

    Options of its own are dataclass fields with `btard.option`, as those of an attack.

    It keeps nothing from step to step, so that an interrupted run can go on: what it needs of the step before is in
    `ctx.last`.

    >>> import btard, torch
    >>> class Midrange(btard.Rule):
    ...     def aggregate(self, x, ctx):
    ...         return x.amin(dim=0) / 2 + x.amax(dim=0) / 2
    >>> server = btard.ServerDriver("docs", 8, Midrange(), btard.QuadraticTask(3, noise=0))
    >>> server.step(torch.ones(3)).gradient
    tensor([1., 1., 1.])
    """

    byzantine: int = 0
    """The largest number of Byzantine rows."""
    tau: float | None = None
    """The clipping radius, for rules that clip."""

    def __post_init__(self) -> None:
        """Called once, when the rule is made. Errors: FieldError for an option that is not as it was declared."""
        check_options(self, f"aggregation rule {type(self).__name__}")

    def aggregate(self, x: Tensor, ctx: RuleView) -> Tensor:
        """The aggregate [d] of the rows `x` [n, d], peer i's is row i; in the dtype and on the device of `x`.

        `x` is only to be read. Errors: ValueError for rows that it cannot aggregate.
        """
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Named(Rule):
    """The rule `name` of `AGGREGATORS`."""

    name: str

    def aggregate(self, x: Tensor, ctx: RuleView) -> Tensor:
        return AGGREGATORS[self.name](x, byzantine=self.byzantine, tau=self.tau, last=ctx.last)


@dataclass(kw_only=True, eq=False)
class Mixed(Rule):
    """`rule` after the mixing of this name; `bucket` is the number of rows in a bucket."""

    rule: Rule
    mixing: str
    bucket: int = 2

    def aggregate(self, x: Tensor, ctx: RuleView) -> Tensor:
        return self.rule.aggregate(MIXINGS[self.mixing](x, self.byzantine, self.bucket, ctx.stream), ctx)


@dataclass(kw_only=True, eq=False)
class Plain(Rule):
    """A rule that is a function of the rows alone."""

    function: Callable[[Tensor], Tensor]

    def aggregate(self, x: Tensor, ctx: RuleView) -> Tensor:
        return self.function(x)


def rule_class(name: str) -> type[Rule]:
    """The class of a user's own rule, module:Class. Errors: ValueError, in a line that continues after `name`."""
    found = load_class(name, Rule)
    if found.aggregate is Rule.aggregate:
        raise ValueError("must define aggregate(self, x, ctx), which returns the aggregate [d] of the rows x [n, d]")
    return found


def make_rule(
    name: str,
    *,
    byzantine: int = 0,
    tau: float | None = None,
    mixing: str | None = None,
    bucket: int = 2,
    options: Mapping[str, Any] | None = None,
) -> Rule:
    """The rule `name`, of `AGGREGATORS` or module:Class, behind the mixing of that name: "nnm" or "bucketing".

    `byzantine` and `tau` are the rule's; `bucket` is how many rows bucketing puts together. `options`: those that
    somebody's own class declares, by name.
    Errors: ValueError in one line for a name that there is not, a class that is no rule, and options that it refuses.

    >>> import btard, torch
    >>> rule = btard.make_rule("trimmed_mean", byzantine=2, mixing="nnm")
    >>> btard.ServerDriver("docs", 8, rule, btard.QuadraticTask(3, noise=0)).step(torch.ones(3)).gradient
    tensor([1., 1., 1.])
    >>> btard.make_rule("medain")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: unknown rule 'medain'; there are mean, ...
    """
    made: Rule
    if own(name):
        try:
            kind = rule_class(name)
        except ValueError as error:
            raise ValueError(f"aggregation rule {name} {error}") from None
        made = rule_of(kind, byzantine=byzantine, tau=tau, options=options)
    elif name in AGGREGATORS:
        check_known(options or (), [], f"aggregation rule {name}")
        made = Named(name=name, byzantine=byzantine, tau=tau)
    else:
        raise ValueError(f"unknown rule {name!r}; there are {', '.join(AGGREGATORS)}, and module:Class")
    if mixing is None:
        return made
    if mixing not in MIXINGS:
        raise ValueError(f"unknown mixing {mixing!r}; there are {', '.join(MIXINGS)}")
    return Mixed(rule=made, mixing=mixing, bucket=bucket, byzantine=byzantine, tau=tau)


def rule_of(
    kind: type[Rule], *, byzantine: int = 0, tau: float | None = None, options: Mapping[str, Any] | None = None
) -> Rule:
    """The rule of somebody's own class. Errors: FieldError for options that it does not take; ValueError."""
    name = f"{kind.__module__}:{kind.__qualname__}"
    check_known(options or (), option_names(kind), f"aggregation rule {name}")
    try:
        return kind(byzantine=byzantine, tau=tau, **(options or {}))
    except TypeError as error:
        raise ValueError(f"aggregation rule {name} cannot be made: {error}; options are dataclass fields") from None


def name_of(rule: Rule) -> str:
    """The name to show: its name in the registry, or that of its class or function."""
    if isinstance(rule, Mixed):
        return name_of(rule.rule)
    if isinstance(rule, Named):
        return rule.name
    if isinstance(rule, Plain):
        return getattr(rule.function, "__qualname__", type(rule.function).__name__)
    return f"{type(rule).__module__}:{type(rule).__qualname__}"


def applied(rule: Rule, x: Tensor, ctx: RuleView) -> Tensor:
    """The aggregate [d] of the rows `x` [n, d].

    Errors: RuleError if the rule refuses the rows, or what it returns is no finite vector [d] like them.
    """
    said = f"aggregation rule {name_of(rule)}, step {ctx.step}: aggregate returned"
    try:
        value = rule.aggregate(x, ctx)
    except ValueError as error:
        raise RuleError(f"{said.removesuffix(' aggregate returned')} {' '.join(str(error).split())}") from error
    if not isinstance(value, Tensor):
        raise RuleError(f"{said} a {type(value).__name__}, expected a tensor of shape {(x.shape[1],)}")
    if value.shape != x.shape[1:]:
        raise RuleError(f"{said} shape {tuple(value.shape)}, expected {(x.shape[1],)}: one number for each parameter")
    if value.dtype != x.dtype or value.device != x.device:
        raise RuleError(f"{said} {value.dtype} on {value.device}, expected {x.dtype} on {x.device} as the rows")
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise RuleError(f"{said} {bad} of {len(value)} numbers that are NaN or infinite; finite rows must give finite")
    return value
