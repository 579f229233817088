"""A new Debian in a container, without a container engine: ``with debian(directory, packages) as machine``.

The root file system is made by debootstrap on a tmpfs. The container has process, mount, IPC and host name namespaces
of its own. It shares the network, so that it reaches the package registries, and tests reach its servers.
Nothing is left behind: the first process of the container is killed at the end of the block, or by the kernel when
pytest itself dies, and all processes and mounts of the container end with it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.needs import lacking
from tests.support.stack import wait_until

SUITE = "bookworm"
SETTINGS = ("etc/apt", "etc/pip.conf", "etc/xdg/pip", "usr/etc/npmrc")
"""How this machine reaches its package registries."""
PERSONAL = (".config/pip", ".npmrc")
"""The same, in the home directory; every user of the container has them."""
NETWORK = (
    "etc/ssl/certs",
    "usr/local/share/ca-certificates",
    "etc/resolv.conf",
    "etc/hosts",
)
PASSED_ON = re.compile(r"PIP_.*|npm_config_.*|NODE_EXTRA_CA_CERTS|.*SSL_CERT.*|.*_CA_BUNDLE|(?i:https?_proxy|no_proxy)")
BOOTSTRAP_SECONDS = 600

# Run as the first process of the new namespaces. The file "ready" says that the rest of the container may be used.
INIT = """
set -eu
mount -t tmpfs -o size=6g,mode=755 tmpfs "$ROOT"
debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$ROOT" "$MIRROR"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/dev/shm"
touch "$READY"
exec sleep infinity
"""


class Machine:
    """A running container. ``root`` is its root directory, as its processes see it from outside of the chroot."""

    def __init__(self, pid: int, root: Path) -> None:
        self.pid = pid
        self.root = root

    @property
    def view(self) -> Path:
        """The root directory, for this process (which is in another mount namespace)."""
        return Path(f"/proc/{self.pid}/root/{self.root.relative_to('/')}")

    def command(
        self,
        *command: str,
        user: str = "root",
        directory: str = "/",
    ) -> list[str]:
        """The command, to be run here, that runs another one in the container."""
        home = "/root" if user == "root" else f"/home/{user}"
        given = {"HOME": home, "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        if user == "root":
            given["PATH"] = f"/usr/local/sbin:/usr/sbin:/sbin:{given['PATH']}"
        given |= {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        return [
            *("nsenter", "--target", str(self.pid), "--mount", "--pid", "--ipc", "--uts"),
            *("chroot", f"--userspec={user}", str(self.root)),
            *("/usr/bin/env", "--ignore-environment", *(f"{name}={value}" for name, value in given.items())),
            *("/bin/sh", "-c", 'cd "$0" && exec "$@"', directory, *command),
        ]

    def run(
        self, *command: str, timeout: float, user: str = "root", directory: str = "/"
    ) -> subprocess.CompletedProcess[str]:
        """Standard error is part of ``stdout``, as on a terminal."""
        return subprocess.run(
            self.command(*command, user=user, directory=directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def packages(self) -> set[str]:
        """The names of the Debian packages that are installed."""
        return set(self.run("dpkg-query", "--show", "--showformat=${Package}\n", timeout=30).stdout.split())

    def add_user(self, name: str) -> None:
        done = self.run("useradd", "--create-home", "--shell", "/bin/bash", name, timeout=30)
        assert done.returncode == 0, done.stdout
        for setting in PERSONAL:
            _copy(Path.home() / setting, self.view / "home" / name / setting)
        done = self.run("chown", "--recursive", f"{name}:{name}", f"/home/{name}", timeout=30)
        assert done.returncode == 0, done.stdout


@contextmanager
def debian(directory: Path, packages: Sequence[str]) -> Iterator[Machine]:
    """A container with a minimal Debian and these packages, until the end of the block."""
    for program in ("debootstrap", "unshare", "nsenter", "setpriv"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            lacking(program)
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        lacking("root", "it makes a container")
    root, ready, log = directory / "root", directory / "ready", directory / "debootstrap.log"
    root.mkdir()
    env = os.environ | {
        "ROOT": str(root),
        "READY": str(ready),
        "PACKAGES": ",".join(packages),
        "SUITE": SUITE,
        "MIRROR": _mirror(),
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
    }
    # The kernel kills unshare when this process dies, and the container when unshare dies.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork"]
    command += ["--kill-child=KILL", "--mount-proc", "--ipc", "--uts", "bash", "-c", INIT]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as outer,
    ):
        try:
            up = wait_until(ready.exists, timeout=BOOTSTRAP_SECONDS, give_up=lambda: outer.poll() is not None)
            assert up, f"debootstrap failed:\n{log.read_text()[-2000:]}"
            machine = Machine(_only_child(outer.pid), root)
            _copy_settings(machine)
            yield machine
        finally:
            outer.send_signal(signal.SIGKILL)


def _mirror() -> str:
    """Where this machine takes its Debian packages from."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text() for path in sources if path.suffix in (".list", ".sources") and path.is_file())
    found = re.findall(r"^(?:URIs:|deb(?: \[.*?\])?)\s+(https?://\S+)", text, re.MULTILINE)
    return str(found[0]) if found else lacking("a Debian mirror", "this machine's apt names none")


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _copy_settings(machine: Machine) -> None:
    for name in (*SETTINGS, *NETWORK):
        _copy(Path("/") / name, machine.view / name)
    for name in PERSONAL:
        _copy(Path.home() / name, machine.view / "root" / name)


def _copy(source: Path, target: Path) -> None:
    """A file or a directory, if there is one, in place of the container's own.

    Links are followed on this side and removed on the other: in the container they lead elsewhere.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore_dangling_symlinks=True)
    elif source.exists():
        target.unlink(missing_ok=True)
        shutil.copy(source, target)
