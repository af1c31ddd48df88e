"""Proves a Debian package in a clean root: `make deb-proof`. Needs root, debootstrap and unshare.

What a host's owner does is done there: `dpkg -i`, sysusers and tmpfiles by its
maintainer script, the command of each unit as the unit's user until it says
that it is ready, a join, removal. All in namespaces: no port of this host is
used, and what was started ends with the proof. With --boot the system is then
booted by systemd-nspawn, and the services run under a real systemd; `booted.py`
is what happens there.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = "python3,systemd,systemd-sysv,dbus,ca-certificates,bubblewrap"
WAIT_S = 60.0
BOOT_S = 300.0
_SIOCSIFFLAGS, _UP = 0x8914, 1
TOKEN = ("terrapod-server", "tokens", "create", "--admin", "--config", "/etc/terrapod/server.toml")


class Wrong(Exception):
    """What is not as it should be."""


def mirror() -> tuple[str, str]:
    """Suite and archive of this host's own packages."""
    suite = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)[
        "VERSION_CODENAME"
    ]
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for line in told.splitlines():
        address, _, release = line.partition(" ")
        if release == suite and "security" not in address:
            return suite, address
    message = f"no archive of {suite} in this host's sources"
    raise Wrong(message)


def bootstrap(root: Path) -> None:
    suite, address = mirror()
    argv = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(root), address]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        message = f"debootstrap ended with {done.returncode}:\n{done.stdout[-2000:]}"
        raise Wrong(message)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def loopback() -> None:
    """This namespace's own, switched on."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _UP))


class Root:
    """The clean system; its folder is `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def call(self, *argv: str, user: str = "", given: str = "", **environment: str) -> str:
        """What a command printed. Raises Wrong where it fails."""
        done = subprocess.run(
            ["/usr/sbin/chroot", *([f"--userspec={user}:{user}"] if user else []), str(self.path), *argv],
            input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/", **environment},
        )  # fmt: skip
        if done.returncode:
            message = f"{argv}: {done.returncode}\n{done.stdout}"
            raise Wrong(message)
        return done.stdout

    def unit(self, name: str) -> dict[str, str]:
        """The settings of an installed unit that stand there once."""
        text = (self.path / "usr/lib/systemd/system" / f"{name}.service").read_text()
        return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))

    @contextlib.contextmanager
    def service(self, name: str) -> Iterator[None]:
        """The unit's command as its user, in its folder, until it has said READY; SIGTERM at the end, which it obeys."""
        unit, address = self.unit(name), self.path / "run" / f"{name}.notify"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
            (self.path / "run" / f"{name}.log").open("w+") as log,
        ):
            systemd.bind(str(address))
            address.chmod(0o777)
            systemd.settimeout(WAIT_S)
            process = subprocess.Popen(
                ["/usr/sbin/chroot", f"--userspec={unit['User']}:{unit['Group']}", str(self.path), *unit["ExecStart"].split()],
                stdout=log, stderr=log, cwd=self.path,
                env={"PATH": "/usr/bin:/bin", "HOME": unit["WorkingDirectory"], "NOTIFY_SOCKET": f"/run/{address.name}"},
            )  # fmt: skip
            try:
                begun = time.monotonic()
                while b"READY=1" not in systemd.recv(4096).split(b"\n"):
                    pass
                say(f"{name} is ready after {time.monotonic() - begun:.1f} s, as {unit['User']}")
                yield
                process.send_signal(signal.SIGTERM)
                code = process.wait(WAIT_S)
                say(f"{name} ended with {code}")
                if code:
                    message = f"{name} ended with {code}"
                    raise Wrong(message)
            except (Wrong, TimeoutError, subprocess.TimeoutExpired, urllib.error.URLError) as error:
                log.seek(0)
                message = f"{name}: {error}\n{log.read()}"
                raise Wrong(message) from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def answer(port: int, path: str) -> str:
    """Raises URLError for another status than 200."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as got:
        return str(got.read().decode())


def ready(port: int) -> None:
    """Until it answers so."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            answer(port, "/ready")
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def wait_for(ask: Callable[[], bool]) -> None:
    """Raises Wrong after a while."""
    until = time.monotonic() + WAIT_S
    while not ask():
        if time.monotonic() > until:
            message = "it was waited for in vain"
            raise Wrong(message)
        time.sleep(0.1)


def join_token(token: str) -> str:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/vnd.api+json"}
    base = "http://127.0.0.1:8443/api/v2"
    with urllib.request.urlopen(
        urllib.request.Request(f"{base}/organizations/default/agent-pools", headers=headers)
    ) as got:
        pool = json.load(got)["data"][0]["id"]
    body = json.dumps({"data": {"attributes": {"description": "proof"}}}).encode()
    request = urllib.request.Request(f"{base}/agent-pools/{pool}/authentication-tokens", body, headers)
    with urllib.request.urlopen(request) as got:
        return str(json.load(got)["data"]["attributes"]["token"])


def installed(root: Root, package: Path) -> None:
    shutil.copyfile(package, root.path / "terrapod.deb")
    root.call("dpkg", "-i", "/terrapod.deb")
    for user, folder in (("terrapod", "terrapod"), ("terrapod-listener", "terrapod-listener")):
        about = root.call("stat", "-c", "%U %G %a", f"/var/lib/{folder}").strip()
        if about != f"{user} {user} 700":
            message = f"/var/lib/{folder} is {about}"
            raise Wrong(message)
    settings = root.call("stat", "-c", "%U %G %a", "/etc/terrapod/server.toml").strip()
    if settings != "root terrapod 640":
        message = f"server.toml is {settings}"
        raise Wrong(message)
    say("dpkg -i: users, folders and settings are there")


def proved(root: Root) -> None:
    say(root.call("terrapod-server", "check", "--config", "/etc/terrapod/server.toml", user="terrapod").strip())
    with root.service("terrapod-server"):
        answer(8443, "/health")
        answer(8443, "/ready")
        token = root.call(*TOKEN, user="terrapod").split()[-1]  # what it says of it comes before
        argv = ("join", "--server", "http://127.0.0.1:8443", "--home", "/var/lib/terrapod-listener")
        own = {"TERRAPOD_LISTENER_TOKEN": join_token(token), "TERRAPOD_LISTENER_NAME": "proof"}
        say(root.call("terrapod-listener", *argv, user="terrapod-listener", **own).strip())
        with root.service("terrapod-listener"):
            ready(9846)
            version = re.search(r'terrapod_listener_build_info\{version="([^"]+)"', answer(9846, "/metrics"))
            say(f"its port says that it is ready, and its metrics that it is {version[1] if version else '?'}")


def removed(root: Root) -> None:
    root.call("dpkg", "-i", "/terrapod.deb")  # as an upgrade
    root.call("dpkg", "-r", "terrapod")
    kept = root.call("dpkg", "-P", "terrapod")
    left = [str(path) for folder in ("etc/terrapod", "usr/lib/terrapod") for path in (root.path / folder).rglob("*")]
    if left or not (root.path / "var/lib/terrapod/keys").exists() or "/var/lib/terrapod is kept" not in kept:
        message = f"left by the removal: {left}\n{kept}"
        raise Wrong(message)
    say("upgraded, removed and purged: nothing is left but keys and state")


def inside(root: Root, package: Path) -> None:
    """To be called in namespaces of its own."""
    loopback()
    for folder in ("proc", "dev"):
        subprocess.run(["mount", "--rbind", f"/{folder}", str(root.path / folder)], check=True)
    installed(root, package)
    proved(root)
    removed(root)


PROOF_UNIT = """\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
# nspawn hides parts of /proc, and the kernel lets nobody mount a whole one where some of it is hidden
ExecStartPre=-/bin/umount /proc/kmsg
ExecStart=/usr/bin/python3 /proof/booted.py
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=file:/proof/log
StandardError=inherit
[Install]
WantedBy=default.target
"""


def booted(root: Path, package: Path) -> None:
    """The same system under its own systemd. Raises Wrong."""
    proof, own = root / "proof", Path(__file__).parent
    (proof / "kit").mkdir(parents=True)
    for file, name in (
        (package, "terrapod.deb"), (own / "prove.py", "prove.py"), (own / "booted.py", "booted.py"),
        (own.parents[1] / "tests" / "kit" / "scripted.py", "kit/scripted.py"),
    ):  # fmt: skip
        shutil.copyfile(file, proof / name)
    (root / "etc/systemd/system/proof.service").write_text(PROOF_UNIT)
    subprocess.run(["/usr/sbin/chroot", str(root), "systemctl", "enable", "--quiet", "proof.service"], check=True)
    done = subprocess.run(
        ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--boot", "-D", str(root)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BOOT_S, check=False,
        env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes"},
    )  # fmt: skip
    log = proof / "log"
    print(log.read_text() if log.exists() else done.stdout, end="", flush=True)
    if not (proof / "result").exists():
        message = "the services do not work under systemd"
        raise Wrong(message)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--root", type=Path, help="a clean system that is there already; it is changed")
    parser.add_argument("--boot", action="store_true", help="then boot it, and prove the units under a real systemd")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.inside:
            inside(Root(options.root), options.package)
            return 0
        if os.geteuid() != 0:
            message = "only root can make a system in a folder"
            raise Wrong(message)
        for tool in ("debootstrap", "unshare", *(["systemd-nspawn"] if options.boot else [])):
            if not shutil.which(tool):
                message = f"{tool} is not there: apt-get install debootstrap util-linux systemd-container"
                raise Wrong(message)
        with tempfile.TemporaryDirectory(prefix="terrapod-proof-") as folder:
            root = options.root or Path(folder) / "root"
            if not options.root:
                say("a clean root by debootstrap")
                bootstrap(root)
            namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
            own = [sys.executable, __file__, str(options.package.resolve()), "--root", str(root), "--inside"]
            code = subprocess.run([*namespaces, *own], check=False).returncode
            if code == 0 and options.boot:
                say("booted by systemd-nspawn")
                booted(root, options.package)
            return code
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
