"""YAML that says something else than people mean, or that is made to harm: the right value, or one line."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from btard.harness.typed_yaml import ConfigError, build, converted, read_settings
from resnet.config import Config

RIGHT = {
    "an alias": ("peers: &n 8\nsteps: *n\n", {"peers": 8, "steps": 8}),
    "a merge key": ("optimizer: {<<: {lr: 0.5}, momentum: 0.5}\n", {"optimizer.lr": 0.5, "optimizer.momentum": 0.5}),
    "merged mappings": (
        "optimizer: {<<: [{lr: 0.5}, {momentum: 0.1}]}\n",
        {"optimizer.lr": 0.5, "optimizer.momentum": 0.1},
    ),
    "hexadecimal": ("peers: 0x10\n", {"peers": 16}),
    "binary digits": ("peers: 0b100\n", {"peers": 4}),
    "underscores": ("steps: 1_000\n", {"steps": 1000}),
    "an exponent": ("optimizer: {lr: 1e-3}\n", {"optimizer.lr": 0.001}),
    "infinity": ("protocol: {tau: .inf}\n", {"protocol.tau": float("inf")}),
    "off": ("protocol: {heal: off}\n", {"protocol.heal": "off"}),
    "a byte order mark": ("\ufeffpeers: 8\n", {"peers": 8}),
    "a word that looks like a truth": ("attack: {name: y}\n", {"attack.name": "y"}),
    "a comment": ("peers: 8 # sixteen\n", {"peers": 8}),
    "a section without keys": ("optimizer:\npeers: 8\n", {"peers": 8}),
}
NAMES = "abcdefghi"
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise(NAMES))
WRONG = {
    "a bomb of aliases": (BOMB, "unknown key a"),
    "a bomb as a value": (
        f"{BOMB}peers: *i\n".replace("a: &a", "data: &a", 1),
        "data must be a section of",
    ),
    "an alias of nothing": ("peers: *nobody\n", "line 1, column 8: found undefined alias 'nobody'"),
    "an alias of itself": ("optimizer: &o {lr: *o}\n", "optimizer.lr must be a number, got a mapping"),
    "a merge of a number": ("optimizer: {<<: 3}\n", "expected a mapping or list of mappings for merging"),
    "merged mappings that overlap": (
        "optimizer: {<<: [{lr: 1}, {lr: 2}]}\n",
        "the key lr stands in two of the",
    ),
    "two merges": ("optimizer: {<<: {lr: 1}, <<: {lr: 2}}\n", "the key << stands there twice"),
    "a key twice": ("optimizer: {lr: 1, lr: 2}\n", "line 1, column 20: the key lr stands there twice"),
    "a key in both spellings": (
        "optimizer.lr: 1\noptimizer: {lr: 2}\n",
        "optimizer.lr stands there twice, once",
    ),
    "a tab": ("optimizer:\n\tlr: 1\n", "line 2, column 1: found character '\\t' that cannot start any token"),
    "a binary": ("peers: !!binary aGVsbG8=\n", "peers must be an integer, got b'hello'"),
    "an object of Python": (
        "peers: !!python/name:os.getcwd []\n",
        "could not determine a constructor for the tag",
    ),
    "a tag of one's own": ("peers: !mine 8\n", "could not determine a constructor for the tag '!mine'"),
    "a tag that does not fit": ("peers: !!int eight\n", "'eight' is not clearly a value of type int"),
    "a set": ("attack: !!set {a, b}\n", "attack must be a section of keys, got a set"),
    "sexagesimal": ("steps: 1:30\n", "'1:30' is not clearly a value of type int; write it in decimal digits"),
    "a sexagesimal float": ("optimizer: {lr: 1:30.5}\n", "'1:30.5' is not clearly a value of type float; write it in"),
    "octal of YAML 1.1": ("seed: -010\n", "'-010' is not clearly a value of type int; write 10"),
    "octal of YAML 1.2": ("peers: 0o16\n", "peers must be an integer, got '0o16'"),
    "no": (
        "device: no\n",
        "device must be one of auto, cpu, cuda, got false; YAML reads a bare yes, no",
    ),
    "yes": ("peers: yes\n", "peers must be an integer, got true"),
    "a key that is read as a truth": ("on: 3\n", "unknown key true"),
    "a key that is nothing": ("~: 3\n", "unknown key null"),
    "a key that is a number": ("16: peers\n", "unknown key 16"),
    "no number": ("optimizer: {lr: .nan}\n", "optimizer.lr must be a number, got nan"),
    "an infinite integer": ("steps: .inf\n", "steps must be an integer, got inf"),
    "an infinite rate": ("optimizer: {lr: .inf}\n", "optimizer.lr must be"),
    "a moment": ("steps: 2001-12-14t21:59:43.10-05:00\n", "steps must be an integer, got '2001-12-14t21"),
    "a date by its tag": ("steps: !!timestamp 2001-99-14\n", "'2001-99-14' is not clearly a value of type timestamp"),
    "two documents": ("peers: 8\n---\npeers: 9\n", "line 2, column 1: but found another document"),
    "another YAML": ("%YAML 3.0\n---\npeers: 8\n", "found incompatible YAML document"),
    "zeros": ("peers: 8\x00\n", "a character that YAML does not allow"),
    "digits of another script": ("peers: \uff18\n", "peers must be an integer, got '\uff18'"),
    "a text without end": (f"device: {'x' * 100_000}\n", "xxx... (100002 characters); choose one of them"),
}


@pytest.mark.parametrize("what", RIGHT)
def test_a_value_is_the_one_that_people_mean(what: str, tmp_path: Path) -> None:
    text, values = RIGHT[what]
    (tmp_path / "some.yaml").write_text(text, encoding="utf-8")
    assert converted(read_settings(tmp_path / "some.yaml", Config), Config) == values


@pytest.mark.parametrize("what", WRONG)
def test_what_nobody_means_is_one_line(what: str, tmp_path: Path) -> None:
    text, message = WRONG[what]
    file = tmp_path / "some.yaml"
    file.write_text(text, encoding="utf-8")
    started = time.process_time()
    with pytest.raises(ConfigError) as error:
        build(Config, read_settings(file, Config), str(file))
    said = str(error.value)
    assert said.startswith(f"{file}: ") and message in said, said
    assert "\n" not in said and len(said) < 600
    assert time.process_time() - started < 2, "what is small to write is small to read"
