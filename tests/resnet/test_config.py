"""Settings: defaults, files, the command line, and the one line that each mistake gets."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from btard.aggregation import AGGREGATORS
from btard.harness.settings import config_text, differing_keys, read_config
from btard.harness.typed_yaml import ConfigError, keys, read_settings
from resnet.config import RULES, Config, load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "resnet"


def load(folder: Path, text: str, *words: str) -> Config:
    file = folder / "some.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config([str(file), "--out", str(folder / "run"), *words])[0]


def test_papers_file_spells_out_every_default():
    file = CONFIGS / "paper_defaults.yaml"
    paper = replace(Config().protocol, tau=1.0, tau_start=1.0, heal="off")  # the defaults need no tuning
    assert read_config(Config, file) == replace(Config(), protocol=paper)
    assert set(read_settings(file, Config)) == set(keys(Config))


@pytest.mark.parametrize("name", ["digits.yaml", "cifar10_small.yaml"])
def test_other_files_attack_within_their_steps(name):
    config, _ = load_config([str(CONFIGS / name), "--out", "x", "--byzantine", "7", "--attack.name", "sign_flip"])
    assert config.attack.start < config.steps / 2
    assert config.schedule_steps == config.steps


def test_every_key_is_explained():
    assert [key for key, (_, doc) in keys(Config).items() if not doc.endswith(".")] == []


def test_aggregators_are_the_protocol_its_emulation_and_the_librarys_rules():
    assert list(RULES) == list(AGGREGATORS)
    doc = keys(Config)["aggregator.name"][1]
    assert all(f" {name}," in doc for name in RULES) and "emulated: " in doc


def test_command_line_goes_over_the_file(tmp_path):
    config = load(
        tmp_path,
        "peers: 8\nseed: 1\nattack: {name: alie, start: 5}\nbyzantine: 1\n",
        "--seed", "3", "--seed=4", "--protocol.tau", "inf", "--attack.options.z", "0.5", "--optimizer.lr=1e-3",
        "--data.label", "007", "--attack.stop", "null",
    )  # fmt: skip
    assert (config.peers, config.seed, config.protocol.tau, config.optimizer.lr) == (8, 4, math.inf, 1e-3)
    assert config.attack.start == 5
    assert config.attack.chosen() == {"z": 0.5}
    assert config.data.label == "007"
    assert config.attack.stop is None


def test_out_may_stand_anywhere_after_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.touch()
    assert load_config([str(file), "--seed", "2", "--out=r"]) == (Config(seed=2), Path("r"))


def test_values_that_follow_from_others(tmp_path):
    attacked = "steps: 10\nbyzantine: 7\nattack: {name: zero, start: 1}\n"
    assert load(tmp_path, attacked).attack.chosen() == {}
    assert load(tmp_path, attacked, "--attack.stop", "3").attack.chosen() == {}
    scaled = load(tmp_path, attacked.replace("zero", "sign_flip"), "--attack.scale", "3")
    assert scaled.attack.chosen() == {"scale": 3.0}
    assert load(tmp_path, attacked).schedule_steps == 10
    assert load(tmp_path, attacked, "--optimizer.schedule_steps", "25").schedule_steps == 25


@pytest.mark.parametrize("value", [math.inf, 1e-7, 2.5, "auto"])
def test_saved_settings_read_back_equal_and_the_text_is_always_the_same(tmp_path, value):
    config = load(tmp_path, f"protocol: {{tau: {value}}}", "--attack.options", "{a_b: 1, c: text}")
    (tmp_path / "one.yaml").write_text(config_text(config), encoding="utf-8")
    again = read_config(Config, tmp_path / "one.yaml")
    assert again == config
    assert config_text(again) == (tmp_path / "one.yaml").read_text(encoding="utf-8")


def test_differing_keys_names_them_and_leaves_out_what_changes_no_result():
    assert differing_keys(Config(), Config(checkpoint_every=7)) == []
    assert differing_keys(Config(), Config(seed=7, checkpoint_every=7)) == [("seed", 0, 7)]


WRONG_FILES = [
    ("peerz: 3", "unknown key peerz; did you mean peers?"),
    ("attack: {nmae: alie}", "unknown key attack.nmae; did you mean attack.name?"),
    ("tau: 3", "unknown key tau; did you mean protocol.tau?"),
    ("qqqqq: 3", "unknown key qqqqq; --help lists all keys"),
    ("peers: many", "peers must be an integer, got 'many'"),
    ("peers: 16.5", "peers must be an integer, got 16.5"),
    ("peers: true", "peers must be an integer, got true"),
    ("peers: null", "peers must be an integer, got null"),
    ("peers: [1]", "peers must be an integer, got a list"),
    ("threads: x", "threads must be an integer or null, got 'x'"),
    ("data: {path: 3}", "data.path must be text or null, got 3"),
    ("protocol: {tau: .nan}", "protocol.tau must be a number or auto, got nan"),
    ("protocol: {tau: automatic}", "protocol.tau must be a number or auto, got 'automatic'"),
    ("aggregator: {radius: auto}", "aggregator.radius must be a number, got 'auto'"),
    ("protocol: {tau: auto, tau_quantile: 0.6}", "protocol.tau_quantile must be > 0 and <= 0.5, got 0.6"),
    (
        "protocol: {tau: auto, tau_quantile: 0.2, byzantine: 3}",
        "protocol.tau_quantile must be > byzantine / (peers - v",
    ),
    ("protocol: {tau: 0}", "protocol.tau must be > 0, got 0.0; use inf for the plain mean"),
    ("aggregator: {radius: 0}", "aggregator.radius must be > 0, got 0.0; use inf for the plain mean"),
    ("aggregator: {byzantine: 3}", "aggregator.byzantine is protocol.byzantine where aggregator.name is btard"),
    ("aggregator: {name: krum, byzantine: 8}", "aggregator.byzantine must be >= 0 and < peers / 2 = 8, got 8"),
    ("protocol: {byzantine: 8}", "protocol.byzantine must be >= 0 and < peers / 2 = 8, got 8"),
    ("protocol: {tol: 1}", "protocol.residual_tol (by default) must be finite and >= tol = 1.0, got 1e-05"),
    ("protocol: {peers: 8}", "unknown key protocol.peers; did you mean peers?"),
    ("mode: bached", "mode must be one of batched, per_peer, got 'bached'; did you mean batched?"),
    ("attack: 3", "attack must be a section of keys, got 3"),
    ("attack: {options: [1]}", "attack.options must be a mapping of names to values, got a list"),
    ("- peers", "expected a mapping of keys to values, got a list"),
    ("peers: [1", "not valid YAML in line"),
    ("peers: 1\npeers: 2", "not valid YAML in line 2, column 1: the key peers stands there twice"),
    ("data: {name: folder}", "data.path (by default) must be set if data.name is folder, got null"),
    ("byzantine: 8\nattack: {name: alie}", "byzantine must be >= 0 and < peers / 2 = 8, got 8"),
    ("protocol: {validators: 8}", "protocol.validators must be >= 0 and at most (peers - 1) / 2 = 7, got 8"),
    ("protocol: {relays: 16}", "protocol.relays must be >= 0 and < peers = 16, or null, got 16"),
    ("protocol: {gradient_tol: 0.5}", "protocol.gradient_tol must be > 0 and < 0.5, got 0.5"),
    ("byzantine: 7", "byzantine must be 0 without an attack, got 7; set attack.name"),
    ("attack: {name: alie}", "byzantine (by default) must be > 0 with the attack alie, got 0"),
    ("steps: 20\nbyzantine: 7\nattack: {name: alie}", "attack.start (by default) must be < steps = 20, got 1000"),
    ("attack: {name: alei}", "got alei; did you mean alie?"),
    ("byzantine: 1\nattack: {name: zero, epsilon: 1}", "attack.epsilon is no option of zero"),
    ("byzantine: 1\nattack: {name: zero, options: {zz: 1}}", "attack.options.zz is no option of zero"),
    ("byzantine: 2\nattack: {name: ipm, epsilon: -1}", "attack.epsilon must be >= 0, got -1"),
    (
        "byzantine: 2\nattack: {name: zero, options: {when: now}}",
        "attack.options.when must be one of always, checked, covered",
    ),
    (
        "byzantine: 2\nattack: {name: zero, options: {when: seldom}}\nprotocol.validators: 0",
        "validators, and this run has none",
    ),
    ("byzantine: 2\nattack: {name: zero, options: {when: seldom}}\naggregator: {name: krum}", "this run has none"),
    ("optimizer: {momentum: 1}", "optimizer.momentum must be >= 0 and < 1, got 1.0"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_FILES)
def test_a_mistake_in_the_file_is_one_line_that_names_file_and_key(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as stop:
        load(tmp_path, text)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"error: {tmp_path / 'some.yaml'}: ")
    assert message in printed.err


WRONG_WORDS = [
    (["--peerz", "3"], "unknown key --peerz; did you mean --peers?"),
    (["--data.label.x", "3"], "unknown key --data.label.x"),
    (["--attack.nam", "alie"], "unknown key --attack.nam; did you mean --attack.name?"),
    (["--peers"], "--peers needs a value"),
    (["--peers", "--seed", "3"], "--peers needs a value"),
    (["peers", "3"], "unexpected word 'peers'"),
    (["--peers", "x"], "--peers must be an integer, got 'x'"),
    (["--peers", "[1"], "--peers must be an integer, got '[1'"),
    (["--peers", "0"], "--peers must be >= 1, got 0"),
    (["--optimizer.lr", "-1"], "--optimizer.lr must be > 0 and finite, got -1.0"),
    (["--peers", "2"], "protocol.validators (by default) must be >= 0 and at most (peers - 1) / 2 = 0, got 1"),
    (
        ["--byzantine", "3", "--attack.name", "alie", "--attack.options.z", "inf", "--attack.start", "1"],
        "--attack.options.z must be finite, got inf",
    ),
]


@pytest.mark.parametrize(("words", "message"), WRONG_WORDS)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        load(tmp_path, "seed: 1", *words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: command line: {message}")


def test_an_old_key_is_refused_with_its_new_name(tmp_path, capsys):
    for text, words, message in (
        ("aggregator: {tau: 1}", [], "some.yaml: aggregator.tau is protocol.tau (for centered_clip aggregator.radius)"),
        ("aggregator.relays: 1", [], "some.yaml: aggregator.relays is protocol.relays"),
        ("validators: 2", [], "some.yaml: validators is protocol.validators"),
        ("", ["--aggregator.gradient_tol", "0.2"], "line: --aggregator.gradient_tol is --protocol.gradient_tol"),
    ):
        with pytest.raises(SystemExit):
            load(tmp_path, text, *words)
        error = capsys.readouterr().err
        assert f"{message} since version 0.2\n" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a configuration file first"),
        (["none.yaml", "--out", "x"], "none.yaml: no such file"),
        ([str(CONFIGS), "--out", "x"], "cannot be read"),
        ([str(CONFIGS / "digits.yaml")], "--out RUN_DIR is missing"),
        ([str(CONFIGS / "digits.yaml"), "--out"], "--out RUN_DIR is missing"),
    ],
)
def test_missing_files_and_words(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        load_config(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert [key for key in keys(Config) if f"--{key} " not in printed] == []


def test_a_saved_file_that_was_damaged_is_an_error_of_the_reader(tmp_path):
    (tmp_path / "config.yaml").write_text("peers: sixteen", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml: peers must be an integer"):
        read_config(Config, tmp_path / "config.yaml")
