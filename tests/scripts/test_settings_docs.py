"""docs/settings.md is what the settings say of themselves."""

from pathlib import Path

import pytest

import albert.config
import resnet.config
from btard.harness.typed_yaml import ConfigError, build, keys, read_words
from scripts import settings_docs

STORED = (Path(__file__).parents[2] / "docs/settings.md").read_text(encoding="utf-8")


def test_the_stored_file_is_what_the_script_writes(tmp_path: Path) -> None:
    settings_docs.main(["--out", str(tmp_path / "settings.md")])
    assert (tmp_path / "settings.md").read_text(encoding="utf-8") == STORED


@pytest.mark.parametrize("cls", [albert.config.Config, resnet.config.Config])
def test_every_key_is_there_and_says_what_it_does(cls: type) -> None:
    rows = [line.split(" | ") for line in STORED.splitlines() if line.startswith("| `")]
    said = {cells[0].strip("| `"): cells[3] for cells in rows}
    assert all(len(said[key]) > 10 and doc.replace("|", "\\|") in STORED for key, (_, doc) in keys(cls).items())


def test_marks() -> None:
    def marks(key: str) -> str:
        return next(line for line in STORED.splitlines() if line.startswith(f"| `{key}` |"))

    assert marks("protocol.tau").endswith("*Alike*. |") and marks("threads").endswith("*Alike if exact*. |")
    assert marks("loss_scale").endswith("*Alike*. |") and marks("network.port").endswith("*May change*. |")
    assert marks("data.path").endswith("*Alike* in what is in it. *May change*. |")
    assert "like" not in marks("device") and "*" not in marks("attack.start")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--network.relay use", "network.relay must be none or serve without network.initial_peers, got use; name the"),
        (
            "--network.relay use --network.initial_peers /ip4/1.2.3.4/tcp/1/p2p/1 --network.announce 1.2.3.4 "
            "--network.port 1",
            "network.announce must be null with network.relay use, got 1.2.3.4; a reachable peer needs no relay",
        ),
        ("--network.relay true", "network.relay must be one of none, use, serve, got true"),
    ],
)
def test_relays_that_cannot_be(words: str, message: str) -> None:
    settings = read_words(words.split(), albert.config.Config)
    with pytest.raises(ConfigError) as raised:
        build(albert.config.Config, settings, "a.yaml")
    assert message in str(raised.value)
