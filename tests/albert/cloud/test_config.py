"""Settings: the paper's file, the command line, and the one line that each mistake gets."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from albert.cloud.__main__ import COMMANDS, main
from albert.cloud.config import Config, fixed_text, load
from albert.cloud.names import KINDS, ROLES, Names
from btard.harness.typed_yaml import keys, read_settings

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "configs" / "albert" / "aws.yaml"


def load_text(folder: Path, text: str, *words: str) -> Config:
    file = folder / "some.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, words)


def test_papers_file_spells_out_every_default_but_the_swarms_options():
    config = load(PAPER, [])
    assert dataclasses.replace(config, swarm=dataclasses.replace(config.swarm, options={})) == Config()
    assert set(read_settings(PAPER, Config)) == set(keys(Config))


def test_papers_swarm():
    trainers = load(PAPER, []).trainers
    assert (trainers.count, trainers.byzantine, trainers.spot) == (16, 7, True)
    assert trainers.types.split() == ["g4dn.xlarge", "g4dn.2xlarge"]


def test_every_key_is_explained():
    assert [key for key, (_, doc) in keys(Config).items() if not doc.endswith(".")] == []


def test_nothing_heavy_is_imported():
    command = "import sys, albert.cloud.__main__; print({'torch', 'hivemind', 'resnet', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_help_shows_every_command_and_key(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [command for command in COMMANDS if f"    {command} " not in printed] == []
    assert [key for key in keys(Config) if f"--{key} " not in printed] == []


def test_options_of_the_swarm_may_be_dotted_and_go_over_the_files(tmp_path):
    text = "swarm: {options: {threads: 2, protocol.tau: 1}}"
    config = load_text(
        tmp_path, text, "--swarm.options.protocol.tau", "0.5", "--swarm.options.wandb=null", "--run_id", "x"
    )
    assert config.swarm.options == {"threads": 2, "protocol.tau": 0.5, "wandb": None}
    assert config.run_id == "x"


def test_names_are_the_same_every_time_and_apart_for_each_run_and_region():
    one, other = Names("albert", "us-east-1"), Names("albert", "eu-west-1")
    assert one.of("byzantine") == "btard-albert-byzantine"
    assert one.address == "/btard/albert/coordinator"
    assert one.iam("trainer") == "btard-albert-us-east-1-trainer" != other.iam("trainer")
    longest = Names("a" * 24, "ap-southeast-1")
    assert max(len(longest.iam(kind)) for kind in KINDS) <= 64  # IAM's limit
    assert len({longest.of(role) for role in ROLES}) == 3


def test_what_may_change_between_launches_is_not_in_the_fixed_text():
    changed = dataclasses.replace(Config(), hours=1.0, wait_minutes=0.0, log_lines=5)
    assert fixed_text(changed) == fixed_text(Config())
    assert fixed_text(dataclasses.replace(Config(), max_hours=40.0)) != fixed_text(Config())


WRONG = [
    ("run_id: Albert", "run_id must be 1 to 24 of a-z, 0-9 and - inside, got 'Albert'"),
    ("run_id: -a", "run_id must be 1 to 24 of a-z, 0-9 and - inside, got '-a'"),
    ("hours: 40", "max_hours (by default) must be >= hours = 40 and at most 168, got 36"),
    ("max_hours: 200", "max_hours must be >= hours = 25 and at most 168, got 200; nothing may run on unwatched"),
    ("bucket: s3://results", "digits, dots and hyphens, got s3://results; leave out s3://"),
    ("prefix: /btard/", "prefix must be a folder such as btard or results/btard, got '/btard/'"),
    ("code: {repository: 'git@github.com:a/b.git'}", "code.repository must be a public https:// address"),
    ("code: {wheel: btard.whl}", "code.wheel must be s3://BUCKET/PATH.whl, got btard.whl; upload it"),
    (
        "code: {wheel: 's3://b/a.whl', repository: 'https://x.org/a'}",
        "code.wheel must be null if code.repository is set",
    ),
    ("data: {source: /home/me/data}", "data.source must be s3:// or https://, got /home/me/data"),
    ("data: {source: 'https://x.org/data'}", "data.source must be an archive if it is https://"),
    ("data: {source: 's3://b/data', sha256: aa}", "data.sha256 must be null if data.source is a folder, got aa"),
    ("swarm: {port: 80}", "swarm.port must be from 1024 to 65535, got 80"),
    (
        "swarm: {start_from: runs/step-1.safetensors}",
        "swarm.start_from must be s3://BUCKET/PATH.safetensors, got runs/",
    ),
    (
        "swarm: {start_from: 's3://b/step-1.pt'}",
        "swarm.start_from must be s3://BUCKET/PATH.safetensors, got s3://b/step-1",
    ),
    (
        "swarm: {start_from: 's3://b/a.safetensors', options: {start_from: /a.safetensors}}",
        "swarm.start_from must be null if swarm.options.start_from is given, got s3://b/a.safetensors; ",
    ),
    ("trainers: {byzantine: 8}", "trainers.byzantine must be >= 0 and < count / 2 = 8, got 8"),
    ("trainers: {types: ' '}", "trainers.types must be at least one instance type, got ' '"),
    ("trainers: {max_price: 0}", "trainers.max_price must be > 0 or null, got 0.0"),
    ("trainers: {tyeps: a}", "unknown key trainers.tyeps; did you mean trainers.types?"),
    ("network: {ssh_from: 1.2.3}", "network.ssh_from must be an address range such as 203.0.113.7/32, got 1.2.3"),
    ("network: {ssh_from: 0.0.0.0/0}", "network.ssh_from must be narrower than everybody, got 0.0.0.0/0"),
    ("log_lines: 0", "log_lines must be from 1 to 10000, got 0"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_mistake_in_the_file_is_one_line_that_names_file_and_key(tmp_path, capsys, text, message):
    file = tmp_path / "some.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(file)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"error: {file}: ") and message in printed.err


@pytest.mark.parametrize(
    "text",
    ["code: {repository: 'https://me:hunter2secret@x.org/a.git'}", "wandb: {parameter: hunter2secret0123456789}"],
)
def test_a_secret_in_a_setting_is_not_repeated_in_the_error(tmp_path, capsys, text):
    file = tmp_path / "some.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["plan", str(file)])
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["go", "x.yaml"], "expected one of plan, launch, status, logs, wait, fetch, stop, got go"),
        (["plan"], "plan needs a configuration file"),
        (["plan", "--run_id", "x"], "plan needs a configuration file"),
        (["plan", "none.yaml"], "none.yaml: no such file"),
        (["logs", str(PAPER)], "whose logs? logs CONFIG.yaml coordinator, a peer's number, or an instance id"),
        (["logs", str(PAPER), "--run_id", "x"], "whose logs?"),
        (["fetch", str(PAPER), "--run_id", "x"], "where to? fetch CONFIG.yaml --to DIR"),
        (["fetch", str(PAPER), "--to"], "where to? fetch CONFIG.yaml --to DIR"),
        (["wait", str(PAPER), "--to", "x"], "unknown key --to"),
        (["plan", str(PAPER), "--runid", "x"], "unknown key --runid; did you mean --run_id?"),
        (["plan", str(PAPER), "--swarm.options.a.b"], "--swarm.options.a.b needs a value"),
        (["plan", str(PAPER), "--swarm.options.a", "[1]"], "--swarm.options.a must be an integer or a number"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_without_words_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "usage" not in capsys.readouterr().err


def test_without_boto3_one_line_says_what_to_install(tmp_path):
    (tmp_path / "boto3.py").write_text("raise ModuleNotFoundError('gone', name='boto3')", encoding="utf-8")
    command = [sys.executable, "-m", "albert.cloud", "plan", str(PAPER)]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    said = "error: boto3 is not installed, which this program needs: pip install 'btard[experiments]'\n"
    assert (done.returncode, done.stderr) == (1, said)
