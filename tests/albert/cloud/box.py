"""A machine without AWS: the start-up script runs for real, among folders of its own, and programs that only take note.

A mount namespace puts scratch folders over /opt, /var/lib, /var/log, /etc/systemd/system and /usr/local/bin, so that
the scripts run as they are, with their own paths. Nothing outside the scratch folder changes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
OVER = {
    "opt": "/opt",
    "lib": "/var/lib",
    "log": "/var/log",
    "units": "/etc/systemd/system",
    "local": "/usr/local/bin",
}
STUBBED = (
    "apt-get", "aws", "chown", "curl", "git", "id", "journalctl", "python3", "shutdown", "systemctl",
    "useradd",
)  # fmt: skip
AS_ROOT = ["unshare", "--map-root-user", "--mount"]


def can_make_namespaces() -> bool:
    """Whether this system lets us; some containers do not."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*AS_ROOT, "true"], capture_output=True, check=False).returncode == 0


def end_group(process: subprocess.Popen[str]) -> None:
    """End whatever a command has left running: as systemd does when a service ends."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Box:
    """One machine's files and notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in [*OVER, "bin", "s3", "web"]:
            (folder / name).mkdir(parents=True)
        shutil.copy(HERE / "stub.sh", folder / "bin" / "stub")
        (folder / "bin" / "stub").chmod(0o755)
        for name in STUBBED:
            (folder / "bin" / name).symlink_to("stub")
        self.write("address", "/ip4/10.0.0.1/tcp/31337/p2p/12D3KooWcoordinator")

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a shell command on the machine."""
        mounts = [f"mount --bind {self.folder / name} {place}" for name, place in OVER.items()]
        script = "\n".join(["set -e", *mounts, f"exec bash -c {command!r}"])
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin", "BOX": str(self.folder)}
        return subprocess.Popen(
            [*AS_ROOT, "bash", "-c", script],
            env=environment | {"HOME": os.environ.get("HOME", "/")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """Run a shell command on the machine; return its exit code and what it printed."""
        process = self.start(command)
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            end_group(process)
        return process.returncode, output

    def boot(self, script: str) -> tuple[int, str]:
        """Run a start-up script, with waits cut short."""
        for name, short in (("RETRY_SECONDS=5", "0"), ("POLL_SECONDS=10", "0"), ("WATCH_SECONDS=60", "0.05")):
            assert name in script
            script = script.replace(name, f"{name.partition('=')[0]}={short}")
        self.write("lib/user_data", script)
        return self.run("bash /var/lib/user_data")

    def unpack(self, script: str) -> None:
        """Only write the script's files, as on a machine that has been set up."""
        last = "exec /opt/btard/setup.sh\n"
        assert script.endswith(last)
        code, output = self.boot(script.removesuffix(last) + "mkdir -p /var/lib/btard/run\n")
        assert code == 0, output
        self.write("opt/btard/installed", "0123456789abcdef0123456789abcdef01234567\n")
        programs = self.folder / "opt/btard/venv/bin"
        programs.mkdir(parents=True)
        (programs / "python").symlink_to(self.folder / "bin/stub")

    def calls(self, first: str = "") -> list[str]:
        """What programs were called with so far, those that begin with `first`."""
        path = self.folder / "calls"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(first)]

    def forget(self) -> None:
        self.write("calls", "")
