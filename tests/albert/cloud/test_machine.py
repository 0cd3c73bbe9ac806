"""The start-up script: what stands in it, and what it does on a machine, run for real without AWS."""

import dataclasses
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from albert.cloud.config import Config, load
from albert.cloud.errors import CloudError
from albert.cloud.names import Role
from albert.cloud.run import Charter, Run
from albert.cloud.user_data import LIMIT, MACHINE, SCRIPTS, UNITS, options, user_data
from btard.harness.typed_yaml import keys
from tests.albert.cloud.box import Box, can_make_namespaces

ROOT = Path(__file__).parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SWARM = "steps: 1250\nprotocol: {tau: 0.125}\n"

needs_namespaces = pytest.mark.skipif(not can_make_namespaces(), reason="no mount namespaces here")


def settings(tmp_path: Path, *changes: str) -> Config:
    file = tmp_path / "settings.yaml"
    file.write_text(
        'code: {repository: "https://example.org/btard.git", packages: "hivemind==1.1.12 msgpack>=1"}\n'
        'data: {source: "s3://data/wikitext"}\nbucket: results\n',
        encoding="utf-8",
    )
    return load(file, changes)


def charter(hours: float = 8.0, commit: str = COMMIT) -> Charter:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    images = {"coordinator": "ami-1", "trainer": "ami-2"}
    return Charter(now, now + timedelta(hours=hours), "digest", commit, images)


def script(config: Config, role: Role, end: Charter | None = None, swarm: str = SWARM) -> str:
    run = Run(SimpleNamespace(region="us-east-1"), config)  # type: ignore[arg-type]
    return user_data(run, role, end or charter(), swarm)


# What stands in it.


@pytest.mark.parametrize("role", ["coordinator", "honest", "byzantine"])
def test_bash_and_shellcheck_have_nothing_to_say(tmp_path, role):
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    file = tmp_path / "user_data.sh"
    file.write_text(script(settings(tmp_path, "--wandb.parameter", "/btard/wandb"), role), encoding="utf-8")
    subprocess.run(["bash", "-n", str(file)], check=True)
    files = [str(file), *(str(MACHINE / name) for name in SCRIPTS)]
    found = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_the_papers_own_settings_leave_room(tmp_path):
    text = (ROOT / "configs" / "albert" / "aws.yaml").read_text(encoding="utf-8")
    (tmp_path / "aws.yaml").write_text(text, encoding="utf-8")
    config = load(tmp_path / "aws.yaml", ["--code.repository", "https://example.org/btard.git"])
    assert len(script(config, "byzantine").encode()) < LIMIT - 4000


def test_too_long_a_script_is_an_error_that_says_what_to_shorten(tmp_path):
    with pytest.raises(CloudError, match=r"has \d+ bytes, and EC2 takes 16384; shorten configs/albert/paper.yaml"):
        script(settings(tmp_path), "honest", swarm="# long\n" * 1500)


def test_a_line_that_would_end_a_file_early_is_refused(tmp_path):
    with pytest.raises(CloudError, match=r"a line of swarm\.yaml is BTARD_END_OF_FILE"):
        script(settings(tmp_path), "honest", swarm="a: 1\nBTARD_END_OF_FILE\n")


SECRETS = [
    ("wandb_api_key: 0123456789abcdef0123456789abcdef01234567", "a key, token or password"),
    ("key: AKIAABCDEFGHIJKLMNOP", "an AWS access key"),
    ("url: https://me:hunter2@example.org/x", "an address with a password"),
    ("x: |\n  -----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
]


@pytest.mark.parametrize(("text", "kind"), SECRETS)
def test_what_looks_like_a_secret_is_refused_and_not_repeated(tmp_path, text, kind):
    with pytest.raises(CloudError, match=kind) as refused:
        script(settings(tmp_path), "honest", swarm=f"steps: 3\n{text}\n")
    assert "put it into SSM Parameter Store" in str(refused.value)
    assert not set(re.findall(r"\S{12,}", text)) & set(str(refused.value).split())


def test_a_secret_among_the_options_is_refused_as_well(tmp_path):
    config = settings(tmp_path)
    swarm = dataclasses.replace(config.swarm, options={"hub.token": "hf_abcdefghijklmnop"})
    with pytest.raises(CloudError, match="OPTIONS of the machines looks like a key, token or password"):
        script(dataclasses.replace(config, swarm=swarm), "honest")


def test_words_about_secrets_are_none(tmp_path):
    script(settings(tmp_path), "honest", swarm="# the token count, passwords and secrets: none\nsteps: 3\n")


def test_every_option_is_a_key_of_the_swarm(tmp_path):
    from albert.config import Config as SwarmConfig

    config = settings(tmp_path, "--wandb.parameter", "/btard/wandb")
    run = Run(SimpleNamespace(region="us-east-1"), config)  # type: ignore[arg-type]
    passed = {key for role in run.sizes for key in options(run, role)}
    passed |= {"network.host", "network.announce", "network.initial_peers", "code"}  # by run.sh
    assert passed - set(keys(SwarmConfig)) == set()


def test_without_byzantine_trainers_nobody_attacks(tmp_path):
    run = Run(SimpleNamespace(region="us-east-1"), settings(tmp_path, "--trainers.byzantine", "0"))  # type: ignore[arg-type]
    assert options(run, "honest")["attack.name"] is None
    assert "--attack.name null" in script(run.config, "honest")


# What it does.


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


@needs_namespaces
def test_a_trainer_sets_its_end_first_then_installs_fetches_and_starts(tmp_path, box):
    box.write("apt_fails", "")  # once: it is tried again
    end = charter()
    code, output = box.boot(script(settings(tmp_path), "byzantine", end))
    assert code == 0, output
    assert output.endswith("ready\n")
    assert "try 1 failed: apt-get" in (box.folder / "log/btard-setup.log").read_text()
    calls = [call for call in box.calls() if not call.startswith(("id", "apt-get"))]
    assert calls == [
        "systemctl daemon-reload",
        "systemctl enable --now btard-end.timer",
        "python3 -m venv /opt/btard/venv",
        "pip install --quiet --upgrade pip",
        "git clone --quiet https://example.org/btard.git /opt/btard/code",
        f"git -C /opt/btard/code checkout --quiet --detach {COMMIT}",
        "git -C /opt/btard/code rev-parse HEAD",
        "pip install --quiet -r /opt/btard/code/requirements.txt",
        "pip install --quiet hivemind==1.1.12 msgpack>=1",
        "useradd --system --home-dir /var/lib/btard --shell /usr/sbin/nologin btard",
        "aws s3 sync --only-show-errors s3://data/wikitext /var/lib/btard/data",
        "chown -R btard: /var/lib/btard",
        "systemctl enable --now btard.service",
    ]
    timer = (box.folder / "units/btard-end.timer").read_text()
    assert f"OnCalendar={end.ends:%Y-%m-%d %H:%M:%S} UTC\n" in timer
    assert (box.folder / "opt/btard/swarm.yaml").read_text() == SWARM

    box.forget()
    code, output = box.run("/opt/btard/run.sh")
    assert code == 0, output
    assert output == "the coordinator has not said yet where it is\n" * 2
    assert box.calls("python") == [
        "python -m albert.trainer /opt/btard/swarm.yaml --out /var/lib/btard/run --network.host 0.0.0.0 "
        f"--network.announce 10.0.0.7 --code {COMMIT} "
        "--network.initial_peers /ip4/10.0.0.1/tcp/31337/p2p/12D3KooWcoordinator "
        "--run_id albert --peers 16 --network.port 31337 --data.path /var/lib/btard/data --byzantine 7 "
        "--attack.name sign_flip --attack.start 1000 --attack.join true"
    ]
    assert (box.folder / "environment").read_text() == "instance=i-0123 key=\n"


@needs_namespaces
def test_a_coordinator_says_where_it_is_and_gets_the_key_of_wandb_in_its_environment_alone(tmp_path, box):
    key = "verysecretkey0123456789"
    box.write("secret", key + "\n")
    config = settings(tmp_path, "--wandb.parameter", "/btard/wandb", "--swarm.public", "true")
    code, output = box.boot(script(config, "coordinator"))
    assert code == 0, output
    assert "aws s3 sync --only-show-errors s3://results/btard/albert /var/lib/btard/run" in box.calls("aws")
    assert "systemctl enable --now btard-upload.timer" in box.calls("systemctl")
    box.forget()
    code, output = box.run("/opt/btard/run.sh")
    assert code == 0, output
    assert box.calls("python") == [
        "python -m btard.swarm.identity /var/lib/btard/run/identity.key",
        "python -m albert.coordinator /opt/btard/swarm.yaml --out /var/lib/btard/run --network.host 0.0.0.0 "
        f"--network.announce 198.51.100.7 --code {COMMIT} "
        "--run_id albert --peers 16 --network.port 31337 --data.path "
        "/var/lib/btard/data --byzantine 7 --attack.name sign_flip --attack.start 1000 --wandb btard-albert",
    ]
    assert box.calls("aws ssm put-parameter") == [
        "aws ssm put-parameter --name /btard/albert/coordinator --type String --overwrite --value "
        "/ip4/198.51.100.7/tcp/31337/p2p/12D3KooWpeer"
    ]
    assert (box.folder / "environment").read_text() == f"instance=i-0123 key={key}\n"
    (box.folder / "environment").unlink()
    (box.folder / "secret").unlink()
    files = [path for path in box.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(key.encode() in path.read_bytes() for path in files)
    assert key not in output


@needs_namespaces
def test_the_summary_is_copied_after_all_else_and_once_the_process_has_ended(tmp_path, box):
    box.unpack(script(settings(tmp_path), "coordinator"))
    sync, places = (
        "aws s3 sync --only-show-errors --exclude identity.key*",
        "/var/lib/btard/run s3://results/btard/albert",
    )
    but_summary, everything = f"{sync} --exclude summary.json {places}", f"{sync} {places}"

    def copied(command: str) -> list[str]:
        box.forget()
        assert box.run(command)[0] == 0
        return box.calls("aws s3")

    assert copied("/opt/btard/upload.sh") == [but_summary]
    assert copied("/opt/btard/upload.sh last") == copied("/opt/btard/end.sh") == [but_summary, everything]
    box.write("lib/btard/finished", "0")
    assert copied("/opt/btard/upload.sh") == [but_summary, everything]


@needs_namespaces
@pytest.mark.parametrize("role", ["coordinator", "byzantine"])
def test_every_machine_fetches_the_checkpoint_and_starts_from_it(tmp_path, box, role):
    box.write("s3/step-00000950.safetensors", b"tensors")
    config = settings(tmp_path, "--swarm.start_from", "s3://results/btard/base/checkpoints/step-00000950.safetensors")
    code, output = box.boot(script(config, role))
    assert code == 0, output
    assert (box.folder / "lib/btard/start.safetensors").read_bytes() == b"tensors"
    order = [call.partition(" /")[0] for call in box.calls()]
    assert order.index("chown -R btard:") > max(i for i, call in enumerate(order) if call.startswith("aws s3"))
    assert box.run("/opt/btard/run.sh")[0] == 0
    assert " --start_from /var/lib/btard/start.safetensors" in box.calls("python -m albert.")[-1]


@needs_namespaces
def test_without_its_checkpoint_no_machine_starts(tmp_path, box):
    config = settings(tmp_path, "--swarm.start_from", "s3://results/gone.safetensors")
    code, output = box.boot(script(config, "honest"))
    assert code != 0
    assert "try 5 failed: aws" in output and "setup failed in line" in output, output
    assert "systemctl enable --now btard.service" not in box.calls("systemctl")


@needs_namespaces
@pytest.mark.parametrize(
    ("role", "exit_code", "does"),
    [
        ("honest", 0, ["aws autoscaling terminate-instance-in-auto-scaling-group --instance-id i-0123 "
                       "--should-decrement-desired-capacity"]),
        ("honest", 3, ["aws autoscaling terminate-instance-in-auto-scaling-group --instance-id i-0123 "
                       "--no-should-decrement-desired-capacity"]),
        ("byzantine", 3, ["aws autoscaling terminate-instance-in-auto-scaling-group --instance-id i-0123 "
                          "--should-decrement-desired-capacity"]),
        ("coordinator", 0, [f"aws autoscaling update-auto-scaling-group --auto-scaling-group-name btard-albert-{role} "
                            "--min-size 0 --max-size 0 --desired-capacity 0" for role in ("honest", "byzantine")]),
        ("honest", 1, None),
        ("coordinator", 3, None),
    ],
)  # fmt: skip
def test_who_has_finished_leaves_and_who_has_failed_is_started_again(tmp_path, box, role, exit_code, does):
    box.unpack(script(settings(tmp_path), role))
    box.write("code", str(exit_code))
    code, output = box.run("/opt/btard/run.sh")
    assert code == (0 if does is not None else exit_code), output  # systemd restarts on anything but 0
    box.forget()
    assert box.run("/opt/btard/finished.sh")[0] == 0
    leaving = ["systemctl start --no-block btard-end.service"] if does is not None else []
    assert box.calls("aws") == (does or [])
    assert box.calls("systemctl") == leaving


@needs_namespaces
def test_finished_machines_can_be_kept(tmp_path, box):
    box.unpack(script(settings(tmp_path, "--keep_finished", "true"), "honest"))
    assert box.run("/opt/btard/run.sh")[0] == 0
    box.forget()
    code, output = box.run("/opt/btard/finished.sh")
    assert (code, output) == (0, "finished; this machine stays until the run's end (keep_finished)\n")
    assert box.calls("aws") == box.calls("systemctl") == []


def hanging(box: Box) -> subprocess.Popen[str]:
    """The service, once its process runs; that ends with 0 when it is told to."""
    process = box.start("exec /opt/btard/run.sh")
    while not (box.folder / "hanging").exists():
        assert process.poll() is None
        time.sleep(0.01)
    return process


@needs_namespaces
def test_a_process_that_is_stopped_has_not_finished(tmp_path, box):
    box.unpack(script(settings(tmp_path), "honest"))
    box.write("hang", "")
    process = hanging(box)
    os.killpg(process.pid, signal.SIGTERM)  # all of the service's processes, as systemd does
    process.communicate(timeout=20)
    assert process.returncode == 0  # not a failure, or systemd would start it again
    assert not (box.folder / "lib/btard/finished").exists()


@needs_namespaces
def test_a_trainer_starts_again_when_the_coordinator_has_moved(tmp_path, box):
    box.unpack(script(settings(tmp_path), "honest"))
    box.write("hang", "")
    process = hanging(box)
    box.write("address", "/ip4/10.0.0.9/tcp/31337/p2p/12D3KooWother")
    output, _ = process.communicate(timeout=20)
    assert "the coordinator has moved to /ip4/10.0.0.9/tcp/31337/p2p/12D3KooWother; starting again" in output
    assert process.returncode == 1  # a failure, so that systemd starts it again
    assert not (box.folder / "lib/btard/finished").exists()


@needs_namespaces
def test_a_machine_that_starts_after_the_end_shuts_down_at_once(tmp_path, box):
    code, output = box.boot(script(settings(tmp_path), "honest", charter(hours=-0.01)))
    assert code == 0
    assert "the run's time is over" in output
    assert box.calls() == [
        "systemctl daemon-reload",
        "systemctl enable --now btard-end.timer",
        "shutdown -h now",
    ]


@needs_namespaces
def test_a_machine_whose_set_up_fails_still_has_its_end(tmp_path, box):
    box.write("web/words.tar.gz", b"not what was promised")
    words = ["--data.source", "https://example.org/words.tar.gz", "--data.sha256", "0" * 64]
    code, output = box.boot(script(settings(tmp_path, *words), "honest"))
    assert code != 0
    assert "FAILED" in output and "setup failed in line" in output
    assert box.calls("systemctl") == ["systemctl daemon-reload", "systemctl enable --now btard-end.timer"]


@needs_namespaces
def test_archives_are_checked_and_unpacked(tmp_path, box):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("train.bin")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"words"))
    box.write("web/words.tar.gz", packed.getvalue())
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    words = ["--data.source", "https://example.org/words.tar.gz", "--data.sha256", digest]
    code, output = box.boot(script(settings(tmp_path, *words), "honest"))
    assert code == 0, output
    assert (box.folder / "lib/btard/data/train.bin").read_bytes() == b"words"
    assert not (box.folder / "lib/btard/words.tar.gz").exists()


@needs_namespaces
def test_a_wheel_is_installed_instead_of_the_repository(tmp_path, box):
    box.write("s3/btard-0.1.0-py3-none-any.whl", b"wheel")
    wheel = "s3://code/btard-0.1.0-py3-none-any.whl"
    config = settings(tmp_path, "--code.repository", "null", "--code.wheel", wheel)
    code, output = box.boot(script(config, "honest", charter(commit="wheel 0a1b")))
    assert code == 0, output
    assert "pip install --quiet /opt/btard/btard-0.1.0-py3-none-any.whl[experiments]" in box.calls("pip")
    assert box.calls("git") == []
    assert (box.folder / "opt/btard/installed").read_text() == hashlib.sha256(b"wheel").hexdigest() + "\n"


@needs_namespaces
def test_the_end_stops_the_process_copies_the_folder_and_shuts_down(tmp_path, box):
    box.unpack(script(settings(tmp_path), "coordinator"))
    assert box.run("/opt/btard/end.sh")[0] == 0
    assert [call.partition(" --")[0] for call in box.calls()] == ["systemctl stop btard.service", *["aws s3 sync"] * 2]
    unit = (MACHINE / "btard-end.service").read_text()
    assert "ExecStart=-/opt/btard/end.sh\nExecStart=/sbin/shutdown -h now\nFailureAction=poweroff-force\n" in unit


@needs_namespaces
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path, box):
    end = charter()
    box.unpack(script(settings(tmp_path), "coordinator", end))
    units = " ".join(f"/etc/systemd/system/{unit}" for unit in UNITS)
    code, output = box.run(f"/usr/bin/systemd-analyze verify --man=no {units}")
    assert (code, output) == (0, "")
    code, output = box.run(f"/usr/bin/systemd-analyze calendar '{end.ends:%Y-%m-%d %H:%M:%S} UTC'")
    assert code == 0 and f"{end.ends:%Y-%m-%d %H:%M:%S} UTC" in output
