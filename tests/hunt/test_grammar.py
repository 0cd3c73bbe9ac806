"""Whatever the protocol lets a peer say or do is a site of the grammar, and every operation does something."""

from __future__ import annotations

import inspect
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import fields

from btard.protocol import messages
from btard.protocol.behaviour import Behaviour
from btard.protocol.hashing import stream
from btard.protocol.signed import Relayed, Signed
from scripts.hunt import environments, grammar, programs
from scripts.hunt.alter import any_change
from scripts.hunt.cases import Case, Gene, read
from scripts.hunt.moment import Moment
from scripts.hunt.play import play


def test_every_broadcast_and_every_field_is_a_site() -> None:
    names = {site.name for site in grammar.sites()}
    kinds = set(messages.P.__constraints__) - {messages.Certificate}  # which nobody broadcasts
    assert len(kinds) >= 9
    for kind in kinds:
        assert kind.__name__ in names
        assert {f"{kind.__name__}.{field.name}" for field in fields(kind)} <= names


def test_every_hook_is_a_site() -> None:
    names = {site.name for site in grammar.sites()}
    taking = {
        name
        for name, hook in inspect.getmembers(Behaviour, inspect.isfunction)
        if "ctx" in inspect.signature(hook).parameters
    }
    assert {f"hook {name}" for name in taking - {"acts", "say"}} == {name for name in names if name.startswith("hook")}
    assert hasattr(programs.Programmed, "say")


@pytest.mark.parametrize("site", grammar.sites(), ids=lambda site: site.name)
def test_every_site_has_operations_of_its_type(site: grammar.Site) -> None:
    assert set(site.ways) - set(grammar.COMMON), f"nothing is known about what stands at {site.name}"


def test_types_have_the_operations_that_fit_them() -> None:
    assert set(grammar.NUMBERS) <= set(grammar.ways(tuple[float, ...]))
    assert "empty" in grammar.ways(tuple[float, ...])
    assert "claim" in grammar.ways(tuple[messages.Claim, ...])
    assert "denormals" in grammar.ways(torch.Tensor | bytes | None)
    assert "omit" in grammar.ways(torch.Tensor | None)
    assert "omit" not in grammar.ways(torch.Tensor)


def test_phases_are_found_by_their_names_and_by_those_of_constants() -> None:
    said, sent = grammar.phases(*grammar.SPEAKING), grammar.phases(*grammar.SENDING)
    assert {"commit", "announce", "coin_commit/0", "coin_reveal/1", "vote/0", "heal", "/lacks", "/again"} <= {*said}
    assert {"part", "aggregate", "bring_up", "evidence/1"} <= {*sent} and "commit" not in sent


def test_every_phase_of_a_run_is_one_that_a_gene_can_be_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the protocol calls what it says or sends there."""
    met: dict[str, set[str]] = {"hook relay": set(), "hook dispatch": set()}
    passed = programs.Honest._passed

    def noting(self: programs.Honest, name: str, ctx: Any, args: Any, value: Any) -> Any:
        if f"hook {name}" in met:
            met[f"hook {name}"].add(args["phase"])
        return passed(self, name, ctx, args, value)

    monkeypatch.setattr(programs.Honest, "_passed", noting)
    for seed in range(12):
        rng = stream("phases", seed)
        play(Case(seed, 3, environments.draw(rng, 3), grammar.program(rng, 3)))
    for site, phases in met.items():
        assert len(phases) >= 6
        known = [Gene(site, "", phase=phase) for phase in grammar._phases(grammar.Site(site, ())) if phase[0] != "/"]
        assert not [phase for phase in phases if not any(programs.in_phase(gene, phase) for gene in known)]


def test_programs_are_data_and_mutations_stay_so() -> None:
    rng = stream("test grammar", 0)
    sites: Counter[str] = Counter()
    program = grammar.program(rng, 5)
    for _ in range(300):
        program = grammar.mutated(grammar.crossed(program, grammar.program(rng, 5), rng), rng, 5)
        assert program.genes
        assert len(program.genes) <= 12
        for gene in program.genes:
            known = {site.name: site.ways for site in grammar.sites()}
            assert gene.how in known[gene.site]
        sites.update(gene.site for gene in program.genes)
    assert len(sites) > 0.9 * len(grammar.sites())


def test_a_line_that_is_no_case_is_refused_in_a_line() -> None:
    for line in ("", "{}", '{"seed": 1, "steps": "many"}', '{"case": {}}', "[1]"):
        with pytest.raises(ValueError, match="not a case of the hunt"):
            read(line)


def test_the_draws_of_a_gene_follow_from_its_stream() -> None:
    draws: list[Gene] = [grammar.gene(stream("same", 1), 4) for _ in range(2)]
    assert draws[0] == draws[1]


def test_what_is_passed_on_keeps_the_form_that_a_wire_carries() -> None:
    signed = Signed(1, 0, "commit", b"said", bytes(64))
    item = Relayed(signed, ((2, bytes(64)), (3, bytes(64))))
    room: Any = SimpleNamespace(members=frozenset())
    ctx: Any = SimpleNamespace(active=range(5))
    said = [("sender", int), ("step", int), ("phase", str), ("payload", bytes), ("signed", bytes)]
    chain = tuple[tuple[int, bytes], ...]
    wired = msgspec.defstruct("Wired", [("message", msgspec.defstruct("Said", said)), ("chain", chain)])
    gene = Gene(site="hook relay", how="tampered")
    found = {any_change(item, Moment(room, ctx, gene, (), {}, stream("alter", seed)), ()) for seed in range(300)}
    assert len(found) > 10
    for changed in found:
        plain = msgspec.to_builtins(changed)
        assert msgspec.to_builtins(msgspec.convert(plain, wired)) == plain
        assert changed.nbytes > 0
