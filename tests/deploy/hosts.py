"""Three hosts on this machine: network namespaces on a switch, each with a Ray of its own and a cable that can be cut.

They share the files, as a cluster's hosts share a volume, but for `/tmp/ray`, of which each has its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

NUM_HOSTS = 3
SWITCH = "raverse-switch"
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
# A host is given up after three seconds without an answer; by default Ray waits for a minute.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)


def allowed() -> bool:
    """Whether this user may make namespaces."""
    try:
        ip(f"netns add {SWITCH}-try")
        ip(f"netns del {SWITCH}-try")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


class Hosts:
    """Hosts 1, 2 and 3; the first is the head.

    Args:
        folder: for what each keeps to itself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = (
            inherited
            | IMPATIENT
            | {
                "HOME": str(folder),
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": "a-token-for-tests-of-three-hosts",
                "RAY_ADDRESS": f"{address(1)}:6379",
                # By its host name gloo would find an address that no other host reaches.
                "GLOO_SOCKET_IFNAME": "eth0",
            }
        )

    def connect(self) -> None:
        """Makes the switch, the hosts and the cables between them."""
        Path("/tmp/ray").mkdir(exist_ok=True)
        ip(f"netns add {SWITCH}")
        ip(f"-n {SWITCH} link add bridge type bridge")
        ip(f"-n {SWITCH} link set bridge up")
        for host in range(1, NUM_HOSTS + 1):
            (self._folder / f"ray-{host}").mkdir()
            ip(f"netns add {name(host)}")
            ip(f"link add port{host} netns {SWITCH} type veth peer name eth0 netns {name(host)}")
            ip(f"-n {SWITCH} link set port{host} master bridge up")
            ip(f"-n {name(host)} addr add {address(host)}/24 dev eth0")
            ip(f"-n {name(host)} link set eth0 up")
            ip(f"-n {name(host)} link set lo up")
            # Ray asks for the way out to learn its own address.
            ip(f"-n {name(host)} route add default via {address(254)}")

    def disconnect(self) -> None:
        """Ends what runs on the hosts, and takes everything away."""
        for host in range(NUM_HOSTS, 0, -1):
            self.end(host)
            for process in self.processes(host):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        for namespace in (*map(name, range(1, NUM_HOSTS + 1)), SWITCH):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(f"netns del {namespace}")

    def cut(self, host: int) -> None:
        ip(f"-n {SWITCH} link set port{host} down")

    def mend(self, host: int) -> None:
        ip(f"-n {SWITCH} link set port{host} up")

    def start(self, host: int) -> None:
        """Ray on this host, with one CPU."""
        options = f"--node-ip-address={address(host)} --num-cpus=1 --block --disable-usage-stats".split()
        role = ["--head", "--port=6379"] if host == 1 else [f"--address={address(1)}:6379"]
        self._nodes[host] = self.popen(host, ["ray", "start", *role, *options], self._folder / f"ray-{host}.log")
        health = f"http://{address(host)}:52365/api/local_raylet_healthz"
        wait_for = ["timeout", "200", "python", str(ROOT / "tests" / "deploy" / "programs" / "wait_for.py"), health]
        assert self.run(host, wait_for).returncode == 0, (self._folder / f"ray-{host}.log").read_text()

    def end(self, host: int) -> None:
        if (node := self._nodes.pop(host, None)) and node.poll() is None:
            node.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=30)

    def command(self, host: int, words: Sequence[str]) -> list[str]:
        """The words, to be run on a host."""
        own = f'mount --bind {self._folder}/ray-{host} /tmp/ray && exec "$@"'
        return ["ip", "netns", "exec", name(host), "sh", "-c", own, "sh", *words]

    def run(self, host: int, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(host, words), env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=900
        )

    def popen(self, host: int, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(host, words), env=self.environment, cwd=ROOT, stdout=output, stderr=output
            )

    def processes(self, host: int) -> list[psutil.Process]:
        done = subprocess.run(["ip", "netns", "pids", name(host)], capture_output=True, text=True)
        found = []
        for number in done.stdout.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(number)))
        return found

    def with_process(self, part: str) -> set[int]:
        """The hosts on which a process has this in its title."""
        return {host for host in range(1, NUM_HOSTS + 1) for one in self.processes(host) if part in title(one)}


def name(host: int) -> str:
    return f"raverse-{host}"


def address(host: int) -> str:
    return f"10.77.0.{host}"


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextlib.contextmanager
def three_hosts(folder: Path) -> Iterator[Hosts]:
    """The hosts with Ray on each, for the length of the block."""
    hosts = Hosts(folder)
    try:
        hosts.connect()
        for host in range(1, NUM_HOSTS + 1):
            hosts.start(host)
        yield hosts
    finally:
        hosts.disconnect()
