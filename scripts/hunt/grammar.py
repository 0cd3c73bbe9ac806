"""What a Byzantine peer can do: derived from the broadcasts and the hooks, so that a new one is included by itself.

A site is a broadcast, a field of one, or a hook. What can stand there follows from its type.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import fields, replace

from btard import protocol
from btard.protocol import messages
from btard.protocol.behaviour import Behaviour
from btard.protocol.messages import Claim
from scripts.hunt.cases import FOREVER, Gene, Program, Twin
from scripts.hunt.programs import COMPARE, MOMENTS, PLACES, hooks
from scripts.hunt.room import RECIPIENTS
from scripts.hunt.twins import DIFFERENCES, SIGHTS

COMMON = ("other", "fellow", "last", "life")
NUMBERS = ("zero", "negative", "nan", "inf", "huge", "denormal", "ulp", "inside", "outside", "scaled", "balance")
TENSORS = (*NUMBERS, "noise", "mean", "average", "near", "one_entry", "denormals", "shape", "dtype", "bytes", "vast")
COUNTS = ("zero", "plus", "minus", "huge", "nobody", "random")
BYTES = ("zero", "flip", "short")
TUPLES = ("drop", "repeat", "empty", "reverse", "add")
BROADCASTS = ("garbage", "oversize", "forged", "late", "two_faces")
CLAIMS = ("claim", "claims", "wild", "quiet")
VOTES = ("favour", "convict", "acquit", "abstain")
MAPS = ("nothing", "replay", "reveal", "swap", "tampered")
COVERS = (
    *("Report.norms", "Report.products", "Report", "CoinReveal.missing", "Lacking.pieces", "Votes.lacking"),
    *("hook vote", "hook disclose", "hook dispatch", "hook accuse", "hook crashed", "hook forward"),
)
"""Where a lie can be covered up afterwards."""
HIDDEN = ("late", "late", "two_faces", "omit")
"""What becomes of a message that some are to see late."""
PLOTS = 0.3
"""The share of programs with genes that do something only together."""
TWINS = 0.1
"""The share of programs with twins."""
SIZES = (1e-30, 1e-6, 1e-3, 0.1, 0.5, 0.9, 1.1, 2.0, 3.0, 10.0, 30.0, 1e3, 1e6, 1e15, 1e30, 3e38)


@dataclass(frozen=True)
class Site:
    """A place in the protocol where a Byzantine peer may differ."""

    name: str
    ways: tuple[str, ...]
    """The operations that fit the value there."""


def kinds() -> tuple[type[Struct], ...]:
    """The payloads of broadcasts: what `Signed.open` can return, except certificates, which are relayed."""
    return tuple(kind for kind in messages.P.__constraints__ if kind is not messages.Certificate)


def ways(form: Any) -> tuple[str, ...]:
    """The operations on a value of the declared type `form`."""
    origin = get_origin(form)
    if origin is Annotated:
        return ways(get_args(form)[0])
    if origin in (Union, UnionType):
        return tuple(dict.fromkeys(way for one in get_args(form) for way in ways(one)))
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Mapping):
        return MAPS
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Sequence):
        inner = ways(get_args(form)[0]) if get_args(form) else ()
        return tuple(dict.fromkeys((*(CLAIMS if get_args(form)[0] is Claim else ()), *TUPLES, *inner)))
    if form is NoneType:
        return ("omit",)
    if inspect.isclass(form):
        if issubclass(form, Struct) or is_dataclass(form):
            return ("changed",)
        if issubclass(form, torch.Tensor):
            return TENSORS
        if issubclass(form, bool):
            return ("true",)
        if issubclass(form, float):
            return NUMBERS
        if issubclass(form, int):
            return COUNTS
        if issubclass(form, bytes):
            return BYTES
        if issubclass(form, str):
            return ("word",)
    return ()


@cache
def sites() -> tuple[Site, ...]:
    """All of them, in a fixed order."""
    found = []
    for kind in kinds():
        found.append(Site(kind.__name__, ("omit", *COMMON, *BROADCASTS)))
        for field in fields(kind):
            found.append(Site(f"{kind.__name__}.{field.name}", tuple(dict.fromkeys((*ways(field.type), *COMMON)))))
    for name in hooks():
        form = get_type_hints(getattr(Behaviour, name), include_extras=True)["return"]
        extra = VOTES if name == "vote" else ()
        found.append(Site(f"hook {name}", tuple(dict.fromkeys((*extra, *ways(form), *COMMON)))))
    found.append(Site(COMPARE, ("omit", "flip")))
    return tuple(found)


SPEAKING, SENDING = ("broadcast", "say", "saying"), ("send", "sending")
"""The calls by which the protocol begins a phase of broadcasts, and one of packets."""


@cache
def phases(*calls: str) -> tuple[str, ...]:
    """The phases of a step that begin with one of `calls`, as the protocol's source names them there."""
    found = set()
    for name in _words(calls):
        name, attempts, _ = name.partition("/")
        found |= {name, *(f"{name}/{attempt}" for attempt in (0, 1) if attempts)}
    return (*endings(), *sorted(found))


@cache
def endings() -> tuple[str, ...]:
    """Attempts, and the words that follow them where something is said in other words or once more."""
    words = {name.partition("/")[2].partition("/")[2] for name in _words(SPEAKING)} - {""}
    constants = {value for tree in _modules() for value in _constants(tree).values() if value[:1] == "/"}
    return ("/0", "/1", *sorted({f"/{word}" for word in words} | constants))


@cache
def _modules() -> tuple[ast.Module, ...]:
    return tuple(ast.parse(file.read_text()) for file in sorted(Path(protocol.__path__[0]).glob("*.py")))


def _constants(tree: ast.Module) -> dict[str, str]:
    """The words that a module has a name for."""
    return {
        target.id: line.value.value
        for line in tree.body
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
        for target in line.targets
        if isinstance(target, ast.Name)
    }


def _words(calls: Sequence[str]) -> set[str]:
    """What stands where `calls` take the name of a phase: all of it, or the beginning if the rest is put in."""
    found = set()
    for tree in _modules():
        known = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in calls:
                for word in node.args[1:2]:
                    said = known.get(word.id, "") if isinstance(word, ast.Name) else ""
                    names = [n.value for n in ast.walk(word) if isinstance(n, ast.Constant)]
                    found |= {str(name) for name in (said, *names[:1]) if name}
    return found


def gene(rng: np.random.Generator, steps: int, how: str = "") -> Gene:
    """A random one; `how`: the operation, if the site has it."""
    return _at(rng, steps, _sites(rng), how)


def _at(rng: np.random.Generator, steps: int, among: Sequence[Site], how: str = "") -> Gene:
    site = among[int(rng.integers(len(among)))]
    if how not in site.ways:
        how = _way(rng, site)
    known, often = _phases(site), 0.7 if "phase" in _arguments(site) else 0.1
    start = int(rng.integers(0, steps))
    span = rng.random()
    stop = FOREVER if span < 0.45 else start + 1 if span < 0.85 else start + int(rng.integers(1, steps + 1))
    return Gene(
        site.name,
        how,
        who=-1 if rng.random() < 0.5 else int(rng.integers(0, 8)),
        start=start,
        stop=stop,
        every=1 if rng.random() < 0.85 else 2,
        when="always" if rng.random() < 0.65 else str(rng.choice(sorted(MOMENTS))),
        to="all" if rng.random() < 0.4 else str(rng.choice(sorted(RECIPIENTS))),
        phase=str(rng.choice(known)) if rng.random() < often else "",
        where="all" if rng.random() < 0.4 else str(rng.choice(sorted(PLACES))),
        size=float(rng.choice(SIZES)),
        pick=int(rng.integers(0, 64)),
    )


def crime(rng: np.random.Generator, steps: int) -> list[Gene]:
    """A wrong tensor, and what may keep it from being found out: rarely does one without the other do anything."""
    lie = _at(rng, steps, [site for site in sites() if site.name.startswith("hook ") and "ulp" in site.ways])
    later = [_at(rng, steps, _named(str(rng.choice(COVERS)))) for _ in range(int(rng.integers(1, 4)))]
    return [lie, *(replace(cover, where="mine") if rng.random() < 0.5 else cover for cover in later)]


def conspiracy(rng: np.random.Generator, steps: int) -> list[Gene]:
    """Liars deny honest peers the certificate of a phase, and show some of them late what they had kept back in it."""
    said = rng.choice([kind.__name__ for kind in kinds()], int(rng.choice((1, 1, 2, 4))), replace=False)
    hidden = [replace(_at(rng, steps, _named(str(kind))), how=str(rng.choice(HIDDEN))) for kind in said]
    denied = _at(rng, steps, _named(COMPARE))
    shown = [_at(rng, steps, _named("hook relay")) for _ in range(int(rng.integers(1, 3)))]
    phase = "" if rng.random() < 0.7 else str(rng.choice(phases(*SPEAKING)))
    everybody = replace(denied, who=-1, to="all" if rng.random() < 0.5 else denied.to, phase=phase)
    late = [replace(one, how="reveal", phase=phase, who=-1 if rng.random() < 0.7 else one.who) for one in shown]
    return [*hidden, everybody, *late]


def _named(name: str) -> list[Site]:
    return [site for site in sites() if site.name == name]


def twin(rng: np.random.Generator, steps: int) -> Twin:
    """A random one."""
    return Twin(
        who=int(rng.integers(0, 8)),
        start=int(rng.integers(0, steps)),
        to=str(rng.choice([name for name in sorted(RECIPIENTS) if name != "all"])),
        sees=str(rng.choice(SIGHTS)),
        differ=str(rng.choice(DIFFERENCES)),
        pick=int(rng.integers(0, 64)),
    )


def _arguments(site: Site) -> tuple[str, ...]:
    return ("phase",) if site.name == COMPARE else hooks().get(site.name.removeprefix("hook "), ())


def _phases(site: Site) -> tuple[str, ...]:
    """Those in which something passes at `site`; where it does not know them, it knows the attempt."""
    if "phase" not in _arguments(site):
        return endings()
    calls = {"hook dispatch": SENDING, "hook crashed": (*SPEAKING, *SENDING)}.get(site.name, SPEAKING)
    return phases(*calls)


def _sites(rng: np.random.Generator) -> list[Site]:
    """A broadcast, the fields of one, or the hooks, each kind as likely as the next."""
    every = sites()
    if rng.random() < 0.5:
        return [site for site in every if site.name.startswith("hook ")]
    kind = str(rng.choice([kind.__name__ for kind in kinds()]))
    whole = rng.random() < 0.5
    return [site for site in every if (site.name == kind if whole else site.name.startswith(f"{kind}."))]


def _way(rng: np.random.Generator, site: Site) -> str:
    """Most other things depend on silence and accusations."""
    favoured = [way for way in site.ways if way in ("omit", "nothing", "empty", *CLAIMS)]
    return str(rng.choice(favoured if favoured and rng.random() < 0.3 else site.ways))


def program(rng: np.random.Generator, steps: int) -> Program:
    """A random one: mostly few genes, which often belong together."""
    count = int(rng.choice([1, 2, 3, 4, 6, 9], p=[0.2, 0.25, 0.2, 0.15, 0.12, 0.08]))
    how = str(rng.choice((*NUMBERS, "omit", "two_faces"))) if rng.random() < 0.3 else ""
    drawn = [gene(rng, steps, how) for _ in range(count)]
    first, kind = drawn[0], rng.random()
    if kind < PLOTS:
        plot = crime(rng, steps) if kind < PLOTS / 2 else conspiracy(rng, steps)
        first, drawn = plot[0], [*plot, *drawn[: count // 3]]
    elif rng.random() < 0.5:
        drawn = [replace(one, who=first.who) for one in drawn]
    if kind < PLOTS or rng.random() < 0.6:  # an attack that happens at once
        drawn = [replace(one, start=first.start, stop=first.stop, when=first.when) for one in drawn]
    twins: tuple[Twin, ...] = ()
    if rng.random() < TWINS:
        twins = tuple(twin(rng, steps) for _ in range(int(rng.integers(1, 3))))
        drawn = drawn if rng.random() < 0.6 else []
    return Program(tuple(drawn), loyal=bool(rng.random() < 0.75), twins=twins)


def for_lives(old: Program, rng: np.random.Generator) -> Program:
    """If a run has two lives, part of a program is often for one of them."""
    lives = ("first_life", "second_life")
    return replace(
        old, genes=tuple(replace(g, when=str(rng.choice(lives))) if rng.random() < 0.4 else g for g in old.genes)
    )


def mutated(old: Program, rng: np.random.Generator, steps: int) -> Program:
    """A neighbour of `old`."""
    genes, twins = list(old.genes), old.twins
    if rng.random() < TWINS:
        twins = (twin(rng, steps),) if not twins else twins[1:]
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.random()
        if kind < 0.3 or not genes:
            genes.insert(int(rng.integers(0, len(genes) + 1)), gene(rng, steps))
        elif kind < 0.45 and len(genes) > 1:
            genes.pop(int(rng.integers(len(genes))))
        else:
            at = int(rng.integers(len(genes)))
            fresh = gene(rng, steps)
            together = genes[int(rng.integers(len(genes)))]
            names = ["how", "who", "when", "to", "where", "size", "pick", "phase", "time"]
            name = str(rng.choice(names))
            if name == "how":
                known = {site.name: site for site in sites()}
                genes[at] = replace(genes[at], how=_way(rng, known[genes[at].site]))
            elif name == "phase":
                genes[at] = replace(genes[at], phase=str(rng.choice(("", *_phases(Site(genes[at].site, ()))))))
            elif name == "time":
                when = fresh if rng.random() < 0.5 else together
                genes[at] = replace(genes[at], start=when.start, stop=when.stop, every=when.every)
            else:
                genes[at] = replace(genes[at], **{name: getattr(fresh, name)})
    loyal = old.loyal if rng.random() < 0.9 else not old.loyal
    return Program(tuple(genes[:12]), loyal=loyal, twins=twins)


def crossed(one: Program, other: Program, rng: np.random.Generator) -> Program:
    """Genes of both."""
    genes = [g for g in (*one.genes, *other.genes) if rng.random() < 0.6]
    return Program(tuple(genes[:12]) or one.genes, loyal=one.loyal, twins=one.twins or other.twins)
