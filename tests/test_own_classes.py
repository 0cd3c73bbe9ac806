"""The pages about one's own attack and rule: their code runs, and every mistake is one line."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import btard
from btard.attacks import Collusion, make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.rules import RuleView, make_rule, rule_of
from btard.named import load_class
from btard.protocol.behaviour import Behaviour
from btard.protocol.config import ProtocolConfig
from btard.task import QuadraticTask
from resnet.config import load_config
from resnet.train import main
from tests.training import model

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "configs/resnet/digits.yaml")
SMALL = ["--peers=5", "--byzantine=2", "--model.width=2", "--batch_size=2", "--steps=4", "--attack.start=2"]
SMALL += ["--test_samples=20", "--threads=1", "--eval_every=4", "--checkpoint_every=4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("page", "words"),
    [("your-own-attack.md", ["--attack.options.share", "0.5"]), ("your-own-rule.md", ["--attack.name", "alie"])],
)
def test_the_code_of_the_page_runs_and_its_class_in_a_run(page: str, words: list[str], folder: Path) -> None:
    first, *rest = blocks(page)
    name = re.match(r"# (\w+)\.py\n", first)
    assert name is not None
    (folder / f"{name[1]}.py").write_text(first)
    space: dict[str, object] = {"__name__": "page"}
    for block in rest:
        exec(compile(block, page, "exec", dont_inherit=True), space)  # noqa: S102  (our own page)
    own = re.search(r"--(?:attack|aggregator)\.name (\w+:\w+)", (ROOT / "docs" / page).read_text())
    assert own is not None
    key = "--attack.name" if "attack" in page else "--aggregator.name"
    assert main([DIGITS, "--out", str(folder / "run"), *SMALL, key, own[1], "--protocol.heal=off", *words]) == 0
    assert f"name: {own[1]}" in (folder / "run/config.yaml").read_text()


MODULE = """
import torch
from btard import Attack, Rule, option

class Plain:
    pass

class Idle(Attack):
    pass

class Bare(Attack):
    scale: float = option(1.0, "help")
    def gradient(self, ctx, gradient):
        return gradient

class Reporter(Attack):
    def report(self, ctx, report):
        return report

class Greedy(Attack):
    def __init__(self, more, **options):
        super().__init__(**options)
    def gradient(self, ctx, gradient):
        return gradient

class Short(Attack):
    def gradient(self, ctx, gradient):
        return gradient[:3]

class Lazy(Rule):
    pass

class Scalar(Rule):
    def aggregate(self, x, ctx):
        return x.mean()

class Naked(Rule):
    scale: float = option(1.0, "help")
    def aggregate(self, x, ctx):
        return x[0]

class Needy(Rule):
    def __init__(self, more, **options):
        super().__init__(**options)
    def aggregate(self, x, ctx):
        return x[0]

class Late(Rule):
    def aggregate(self, x, ctx):
        return x[0] * (float("nan") if ctx.step == 1 else 1)

echo = 3
"""

WRONG = [
    (
        "attack",
        "no_such_module:X",
        "cannot be loaded: there is no module no_such_module; start in the folder that has it",
    ),
    ("attack", "mine:", "must be module:Class, such as my_module:MyClass"),
    ("attack", ":X", "must be module:Class"),
    ("attack", "mine:Idel", "cannot be loaded: module mine has no Idel; did you mean Idle?"),
    ("attack", "mine:echo", "must be a subclass of btard.Attack, got a int"),
    ("attack", "mine:Plain", "must be a subclass of btard.Attack, got class Plain(object)"),
    ("attack", "mine:Scalar", "must be a subclass of btard.Attack, got class Scalar(Rule)"),
    ("attack", "mine:Idle", "overrides no hook of btard.Behaviour, such as gradient(self, ctx, gradient)"),
    ("attack", "mine:Bare", "has the option scale: write @dataclass(kw_only=True, eq=False) above the class"),
    ("attack", "mine:Reporter", 'overrides report, a hook of the protocol: say level = "protocol" in the class'),
    ("attack", "mine:Greedy", "missing 1 required positional argument: 'more'"),
    ("attack", "fails:X", "cannot be loaded: module fails fails: ZeroDivisionError: division by zero"),
    ("attack", "mangled:X", "cannot be loaded: module mangled fails: AttributeError: module 'math' has no attribute"),
    ("attack", "needs:X", "cannot be loaded: module needs imports no_such_package, which is missing"),
    ("attack", "mine:Short", "attack mine:Short, step 2, peer"),
    ("aggregator", "no.such:X", "cannot be loaded: there is no module no;"),
    ("aggregator", "mine:Short", "must be a subclass of btard.Rule, got class Short(Attack)"),
    ("aggregator", "mine:Lazy", "must define aggregate(self, x, ctx), which returns the aggregate [d]"),
    ("aggregator", "mine:Scalar", "aggregate returned shape (), expected (6,)"),
    ("aggregator", "mine:Late", "aggregation rule mine:Late, step 1: aggregate returned"),
    ("aggregator", "mine:Naked", "has the option scale: write @dataclass(kw_only=True, eq=False) above the class"),
    ("aggregator", "mine:Needy", "cannot be made: "),
    ("aggregator", "medain", "must be btard, emulated, one of mean, coordinate_median"),
]


@pytest.mark.parametrize(("section", "name", "message"), WRONG)
def test_every_mistake_ends_the_program_with_one_line(
    section: str, name: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.py").write_text(MODULE)
    (folder / "fails.py").write_text("1 / 0\n")
    (folder / "mangled.py").write_text("import math\nmath.no_such_thing\n")
    (folder / "needs.py").write_text("import no_such_package\n")
    words = {"attack.name": "zero", "aggregator.name": "mean", f"{section}.name": name}
    with pytest.raises(SystemExit) as stopped:
        main([DIGITS, "--out", str(folder / "run"), *SMALL, *(f"--{key}={value}" for key, value in words.items())])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    said = [line for line in lines if not line.startswith("run: ")]  # progress
    assert len(said) == 1 and said[0].startswith("error: ") and message in said[0]
    assert name.partition(":")[0] in said[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--aggregator.mixing=nnm"], "--aggregator.mixing is for the rule of a server; set aggregator.name"),
        (["--aggregator.momentum=0.9"], "--aggregator.momentum is for the rule of a server"),
        (["--aggregator.name=mean", "--aggregator.momentum=1"], "momentum must be >= 0 and < 1, got 1.0"),
        (["--aggregator.name=mean", "--aggregator.bucket=0"], "bucket must be >= 1, got 0"),
        (["--aggregator.name=krmu"], "got 'krmu'; did you mean krum?"),
    ],
)
def test_settings_of_servers(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config([DIGITS, "--out", "x", *words])
    assert message in capsys.readouterr().err


def test_an_own_attack_has_options_and_a_name_in_messages(folder: Path) -> None:
    (folder / "my_attacks.py").write_text(blocks("your-own-attack.md")[0])
    collusion = Collusion(frozenset({1}), 4)
    attack = make_attack("my_attacks:Echo", collusion, share=0.25, start=7)
    assert isinstance(attack, Behaviour) and attack.byzantine and not attack.active(6) and attack.active(7)
    for options, message in [
        ({"share": 2.0}, "attack Echo: share must be >= 0 and <= 1, got 2.0"),
        ({"shear": 0.1}, "attack my_attacks:Echo has no option 'shear', did you mean 'share'?"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            make_attack("my_attacks:Echo", collusion, **options)


def test_the_owner_of_the_page_that_shifts_its_part_is_caught() -> None:
    space: dict[str, Any] = {}
    exec(compile(blocks("your-own-attack.md")[1], "page", "exec", dont_inherit=True), space)  # noqa: S102
    collusion = Collusion(frozenset({2}), 5)
    attackers = {2: space["Shift"](collusion=collusion, start=1)}
    driver = LocalDriver(ProtocolConfig(5, 1, "shift"), QuadraticTask(32), behaviours=attackers, collusion=collusion)
    removed = [entry for _ in range(2) for entry in driver.step(torch.ones(32)).removed]
    assert [(entry.step, entry.kind, entry.peers) for entry in removed] == [(1, "wrong_aggregate", (2,))]


def test_an_own_rule_has_options_by_name_as_a_class_and_in_settings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "my_rules.py").write_text(blocks("your-own-rule.md")[0])
    name = "my_rules:NearestHalf"
    x = torch.ones(4, 5)
    assert torch.equal(make_rule(name, options={"share": 0.5}).aggregate(x, RuleView()), x[0] / 2)
    task = lambda: model.task()  # noqa: E731
    few = {"optimizer": model.adam, "steps": 2, "peers": 4}
    kind = importlib.import_module("my_rules").NearestHalf
    runs = [
        btard.simulate(task(), rule=rule, rule_options=options, **few).losses
        for rule, options in ((name, {"share": 0.0}), (kind, {"share": 0.0}), (kind(share=0.0), None), (name, None))
    ]
    assert runs[0] == runs[1] == runs[2] != runs[3], "a share of 0 trains nothing"
    with pytest.raises(TypeError, match="rule_options are for a rule by its name or class"):
        btard.simulate(task(), rule=kind(), rule_options={"share": 0.5}, **few)
    for options, message in (
        ({"share": 2.0}, "share must be >= 0 and <= 1, got 2.0"),
        ({"share": "half"}, "share must be float, got 'half'"),
        ({"shear": 0.1}, "shear is no option, did you mean 'share'?; it has share"),
    ):
        for make in (partial(make_rule, name, options=options), partial(rule_of, kind, options=options)):
            with pytest.raises(ValueError, match=re.escape(message)):
                make()
        [(option, value)] = options.items()
        words = [f"--aggregator.name={name}", f"--aggregator.options.{option}={value}"]
        with pytest.raises(SystemExit):
            load_config([DIGITS, "--out", "x", "--protocol.heal=off", *words])
        assert f"--aggregator.options.{message}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="aggregation rule krum: f is no option; it has none"):
        make_rule("krum", options={"f": 1})
    with pytest.raises(SystemExit):
        load_config([DIGITS, "--out", "x", "--aggregator.name=krum", "--aggregator.options.f=1"])
    assert "--aggregator.options.f is for a rule of your own" in capsys.readouterr().err


def test_a_module_that_fails_is_tried_again(folder: Path) -> None:
    """Somebody who mends it in a notebook must not hear of the old mistake."""
    (folder / "mending.py").write_text("1 / 0")
    with pytest.raises(ValueError, match="fails: ZeroDivisionError"):
        load_class("mending:X", object)
    (folder / "mending.py").write_text("class X: pass")
    importlib.invalidate_caches()
    assert load_class("mending:X", object).__name__ == "X"
