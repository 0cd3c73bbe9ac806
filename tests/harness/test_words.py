"""What programs say: the right program for a file, either spelling of an option, help that begins with what matters."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from albert.cloud.config import load as read_cloud
from albert.cloud.images import _alike
from albert.config import Config as AlbertConfig
from albert.data.errors import DataError
from albert.data.folder import read_record
from albert.experiments.grid import read_grid as read_series
from btard.harness.settings import help_text, parse_command_line, read_config
from btard.harness.typed_yaml import ConfigError, read_words
from btard.swarm.commands import COMMANDS, about
from btard.swarm.config import SwarmConfig
from btard.swarm.local import LINES, Told
from resnet.config import Config
from resnet.experiments.grid import read_grid

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
READERS = {
    "resnet.train": lambda file: read_config(Config, file),
    "resnet.sweep": lambda file: read_grid(file),
    "albert.swarm": lambda file: read_config(AlbertConfig, file),
    "albert.experiments": lambda file: read_series(file),
    "albert.cloud": lambda file: read_cloud(file, []),
}
FILES = {
    "resnet.train": "resnet/digits.yaml",
    "resnet.sweep": "resnet/tiny.yaml",
    "albert.swarm": "albert/tiny.yaml",
    "albert.experiments": "albert/experiments/tiny.yaml",
}
PAIRS = [(reader, owner) for reader in READERS for owner in FILES if reader != owner]


@pytest.mark.parametrize(("reader", "owner"), PAIRS, ids=lambda name: name)
def test_a_file_that_is_anothers_names_the_program_that_takes_it(reader: str, owner: str) -> None:
    file = CONFIGS / FILES[owner]
    with pytest.raises(ConfigError) as error:
        READERS[reader](file)
    said = str(error.value)
    assert f"python -m {owner}" in said or (reader, owner) in ALIKE, said


ALIKE = {
    ("resnet.sweep", "albert.swarm"),
    ("albert.experiments", "resnet.train"),
    ("resnet.sweep", "albert.experiments"),
}
ALIKE |= {("albert.experiments", "resnet.sweep"), ("albert.swarm", "resnet.train"), ("albert.cloud", "resnet.train")}
"""Files of one form: what is said is the key that is unknown."""


@pytest.mark.parametrize("file", [CONFIGS / name for name in FILES.values()], ids=lambda file: file.name)
def test_every_file_is_taken_by_its_own_program(file: Path) -> None:
    (owner,) = (name for name, of in FILES.items() if CONFIGS / of == file)
    READERS[owner](file)


def test_either_spelling_of_an_option_is_the_same() -> None:
    for word in ("--batch-size=3", "--batch_size=3"):
        assert read_words([word], Config)["batch_size"].value == "3"
    assert read_words(["--optimizer.weight-decay", "0"], Config).keys() == {"optimizer.weight_decay"}
    with pytest.raises(ConfigError, match="unknown key --batch-sise; did you mean --batch_size"):
        read_words(["--batch-sise", "3"], Config)
    words = [str(CONFIGS / FILES["resnet.train"]), "--out", "x", "--checkpoint-every", "7"]
    assert parse_command_line(Config, words, "test")[0].checkpoint_every == 7


@pytest.mark.parametrize("cls", [Config, AlbertConfig, SwarmConfig])
def test_help_begins_with_the_keys_that_are_changed_most(cls: type) -> None:
    text = help_text(cls, "python -m x", "About it.")
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert len(cls.common) == 10 and shown[:10] == [f"--{key}" for key in cls.common]
    assert len(shown) == len(set(shown)) and text.index("All other keys:") > text.index(shown[9])


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_a_swarm_has_words_and_an_example_of_its_own(command: str) -> None:
    texts = {name: about(name, f"python -m albert.{name}", "configs/albert/tiny.yaml") for name in COMMANDS}
    assert len(set(texts.values())) == len(COMMANDS)
    assert f"  python -m albert.{command} configs/albert/tiny.yaml --out" in texts[command]


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("data/synthetic", "synthetic --out data/synthetic (invented text, no download)"),
        ("wikitext-2", "wikitext-2 --out wikitext-2 --train-tokenizer --vocab-size 2000 --sequence-length 64"),
        ("data/wikitext-103", "wikitext-103 --out data/wikitext-103"),
    ],
)
def test_data_that_are_not_there_are_made_by_the_command_that_fits(
    folder: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        read_record(Path(folder))
    assert str(error.value).endswith(f"make it with: python -m albert.prepare --source {source}")


def test_a_log_has_a_line_for_each_part_of_a_run() -> None:
    told = Told(100)
    lines = [line for step in range(101) for _ in range(3) if (line := told.line(step, "8 peers"))]
    assert len(lines) == LINES + 1 and lines[0] == "step 0 of 100: 8 peers" and lines[-1].startswith("step 100 of")
    short = Told(3)
    assert [short.line(step, "") for step in (0, 1, 1, 3)] == ["step 0 of 3: ", "step 1 of 3: ", None, "step 3 of 3: "]


def test_images_that_are_named_alike_are_listed() -> None:
    names = [f"/aws/service/deeplearning/ami/x86_64/base-oss-{kind}/latest/ami-id" for kind in ("a", "b")]
    account = SimpleNamespace(pages=lambda *_, **__: [{"Name": name} for name in names])
    assert _alike(account, names[0].replace("-a/", "-c/")).startswith("there are /aws/service")
    broken = SimpleNamespace(pages=lambda *_, **__: 1 / 0)
    assert "get-parameters-by-path" in _alike(broken, "x")
