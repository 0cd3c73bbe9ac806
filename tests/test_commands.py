"""Every command of README and pages is one that its program takes, and a test or a notebook runs the program."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from albert.cloud import __main__ as cloud
from albert.config import Config as AlbertConfig
from btard.harness.settings import parse_command_line
from btard.swarm import commands as swarm
from resnet.config import Config as ResNetConfig
from scripts import step_scheme

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```bash\n([\s\S]*?)```|((?:^    (?:python|torchrun|bash) .*\n(?:^    .*\n)*))", re.MULTILINE)
INLINE = re.compile(r"`(python -m [a-z][\w.]+ [^`]*)`")

RUN_BY = {
    "albert.calibrate": "tests/albert/test_calibrate.py",
    "albert.cloud": "tests/albert/cloud/folders.py",
    "albert.coordinator": "tests/albert/test_tracking.py",
    "albert.evaluate": "tests/albert/test_export.py",
    "albert.experiments": "tests/albert/experiments/test_series.py",
    "albert.export": "tests/albert/test_export.py",
    "albert.prepare": "tests/albert/test_prepare.py",
    "albert.report": "tests/albert/experiments/test_report.py",
    "albert.swarm": "tests/albert/test_swarm.py",
    "albert.trainer": "tests/albert/test_trainer.py",
    "albert.workspace": "tests/albert/test_workspace.py",
    "btard.attacks": "tests/programs.py",
    "btard.audit": "tests/albert/test_swarm.py",
    "btard.export": "tests/albert/test_export.py",
    "btard.swarm": "tests/swarm/test_commands.py",
    "btard.swarm.identity": "tests/swarm/test_identity.py",
    "btard.watch": "tests/watch/test_story.py",
    "resnet.calibrate": "tests/resnet/test_calibrate.py",
    "resnet.figures": "tests/resnet/test_figures.py",
    "resnet.radii": "tests/resnet/test_radii.py",
    "resnet.report": "tests/resnet/test_report.py",
    "resnet.sweep": "tests/resnet/test_sweep.py",
    "resnet.train": "tests/resnet/test_torchrun.py",
    "scripts.api_docs": "tests/programs.py",
    "scripts.golden": "tests/scripts/test_golden.py",
    "scripts.gpu_check": "tests/scripts/test_gpu_check.py",
    "scripts.hunt": "tests/hunt/test_search.py",
    "scripts.settings_docs": "tests/scripts/test_settings_docs.py",
    "scripts.soak": "tests/programs.py",
    "scripts.step_scheme": "tests/test_commands.py",
    "scripts.sybil_price": "tests/programs.py",
    "scripts.threat_model": "tests/protocol/test_acceptance.py",
}
"""Program -> what runs it, or its functions, at a small size."""


STANDS_FOR = {"NAME": "absences_stay", "shrink": "zero"}
"""A word of the pages that the reader is to choose, or an attack that the reader writes: what has the same form."""


def commands() -> dict[str, list[list[str]]]:
    """Program -> the words of each of its commands, without comments, environment and what stands for more of them."""
    found: dict[str, list[list[str]]] = {}
    for page in PAGES:
        text = page.read_text()
        blocks = [one or other for one, other in BLOCK.findall(text)]
        if page.name != "migration.md":  # which has what is no longer
            blocks += [" ".join(inline.split()) for inline in INLINE.findall(text)]
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            match = re.search(r"(?:python|torchrun)\b.*? -m ([a-z][\w.]*)\b(.*)$", line)
            if match and "|" not in line.partition("#")[0]:
                words = shlex.split(re.split(r"\s[#>]|; |`", match[2])[0])
                found.setdefault(match[1], []).append([STANDS_FOR.get(word, word) for word in words if word != "..."])
    return found


COMMANDS = commands()


class Taken(BaseException):
    """The command line was taken. No Exception, or it would end at the boundary of the program."""


def takes_config(cls: type[Any]) -> Callable[[list[str]], None]:
    def take(words: list[str]) -> None:
        """A configuration that the reader is to write stands for one of ours."""
        file, *rest = words
        theirs = "configs/albert/tiny.yaml" if cls is AlbertConfig else "configs/resnet/digits.yaml"
        parse_command_line(cls, [re.sub("^(swarm|CONFIG).yaml$", theirs, file), *rest], "test")

    return take


def takes_cloud(words: list[str]) -> None:
    command, path, _, changes = cloud._parse(words)
    assert command in cloud.COMMANDS and (ROOT / path).exists()
    assert all(
        change.startswith("--") or not changes[place - 1].startswith("---") for place, change in enumerate(changes)
    )


def takes_swarm(words: list[str]) -> None:
    """A sentence may name one of its commands without any words."""
    assert words[0] in swarm.COMMANDS and (len(words) == 1 or ("--task" in words and "--out" in words))


def takes_file(words: list[str]) -> None:
    assert len(words) == 1 and not words[0].startswith("-")


OWN = {
    "albert.cloud": takes_cloud,
    "albert.coordinator": takes_config(AlbertConfig),
    "albert.swarm": takes_config(AlbertConfig),
    "albert.trainer": takes_config(AlbertConfig),
    "btard.swarm": takes_swarm,
    "btard.swarm.identity": takes_file,
    "resnet.train": takes_config(ResNetConfig),
}
"""Programs that read their words themselves."""


def takes_arguments(program: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Runs the program up to where its parser has taken the words."""
    usual = argparse.ArgumentParser.parse_known_args

    def known(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        usual(self, args, namespace)
        raise Taken

    def all_of(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        _, rest = usual(self, args, namespace)
        assert not rest, f"{program} takes no {rest}"
        raise Taken

    def take(words: list[str]) -> None:
        monkeypatch.setattr("sys.argv", [program, *words])
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", known)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", all_of)
        try:
            module = importlib.import_module(f"{program}.__main__")
        except ModuleNotFoundError:
            module = importlib.import_module(program)
        with pytest.raises(Taken):
            module.main()

    return take


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_the_commands_of_the_pages_are_taken(program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    for page in PAGES:  # modules that the reader is to write
        for name, code in re.findall(r"```python\n# (my_\w+)\.py\n(.*?)```", page.read_text(), re.DOTALL):
            (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    take = OWN.get(program) or takes_arguments(program, monkeypatch)
    for words in COMMANDS[program]:
        if "--help" not in words:
            take(words)


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_something_runs_each_program(program: str) -> None:
    text = (ROOT / RUN_BY[program]).read_text()
    package, _, name = program.rpartition(".")
    forms = (program, f"from {package} import {name}")
    assert any(form in text for form in forms), f"{RUN_BY[program]} no longer runs {program}"


def test_files_that_commands_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"(?:bash|jupyter lab) ((?:scripts|notebooks)/\S+?)(?=[\s`;])", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_scheme_in_the_readme_is_what_the_script_draws() -> None:
    for theme in step_scheme.THEMES:
        assert (ROOT / f"docs/images/step-{theme}.svg").read_text() == step_scheme.drawn(theme)


def test_the_model_in_the_readme_trains(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "steps=200" in block
    space: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block.replace("steps=200", "steps=5"), "README.md", "exec"), space)  # noqa: S102  (our own page)
    assert capsys.readouterr().out and space["run"].bans is not None


def test_the_readme_is_one_screen_and_a_half() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    listed = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (ROOT / "docs/index.md").read_text()))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= listed, f"docs/index.md does not list {sorted(pages - listed)}"
