"""README's listener on a second host, typed as it stands there: two hosts with a network between them, and no other."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit import scripted
from kit.documented import ROOT, Shell, blocks
from kit.site import BIN

HEADING = "## A listener on a second host"
SERVER, OTHER = "198.51.100.1", "198.51.100.2"
NETWORK = """
ip link add tp0 netns %(server)s type veth peer name tp1 netns %(other)s
ip -n %(server)s link set lo up
ip -n %(other)s link set lo up
ip -n %(server)s addr add 198.51.100.1/24 dev tp0
ip -n %(other)s addr add 198.51.100.2/24 dev tp1
ip -n %(server)s link set tp0 up
ip -n %(other)s link set tp1 up
"""
#: A name and a /var/lib of its own.
HOST = ["unshare", "--uts", "--mount", "sh", "-ec", 'hostname "$0"; mount -t tmpfs none /var/lib; exec "$@"']


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Two network namespaces with a cable; whoever is left in them ends with the test."""
    names = {name: f"tp-{name}-{os.getpid()}" for name in ("server", "other")}
    if os.geteuid() != 0:
        pytest.skip("only root makes network namespaces")
    try:
        for name in names.values():
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"this host gives no network namespaces: {made.stderr}")
        subprocess.run(["/bin/sh", "-ec", NETWORK % names], check=True)
        yield names
    finally:
        for name in names.values():
            left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in left.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False)


def section() -> list[str]:
    """The shell blocks below the heading."""
    lines = (ROOT / "README.md").read_text().splitlines()
    begin = lines.index(HEADING) + 1
    end = next(number for number, line in enumerate(lines, 1) if number > begin and line.startswith("## "))
    return [block.text for block in blocks("README.md") if begin < block.line < end and block.language == "sh"]


@pytest.mark.slow
def test_a_listener_on_a_second_host(hosts: dict[str, str], tmp_path: Path) -> None:
    """Without internet: its engine is its own, and no other listener has it."""
    start, make_token, join_and_run = section()
    data, folder, other_folder = tmp_path / "terrapod-data", tmp_path / "config", tmp_path / "other"
    for each in (folder, other_folder):
        each.mkdir()
    (folder / "main.tf").write_text("")
    program = scripted.program(other_folder)
    (other_folder / "listener.toml").write_text(
        f'readable = ["{sys.base_prefix}", "{sys.prefix}"]\n'
        f'[[engines]]\ntool = "terraform"\nversion = "{scripted.VERSION}"\npath = "{program}"\n'
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    place = {"./terrapod-data": str(data), "SERVER": SERVER}
    at_server = ["ip", "netns", "exec", hosts["server"]]
    at_other = ["ip", "netns", "exec", hosts["other"], *HOST, "host-two"]
    server, user = (Shell(tmp_path, environment, place, at_server) for _ in range(2))
    other = Shell(tmp_path, environment, place, at_other)
    with server, user, other:
        server.run(f"cd {ROOT}")
        server.begin(start)
        server.terminal.expect("To sign in")
        said = server.terminal.before
        assert f"https://{SERVER}:8443\r\n" in said, said
        exports = re.findall(r"^  (export [^\r\n]*)", said, re.MULTILINE)
        user.run(f"cd {ROOT}\n" + "\n".join(exports))
        assert "tpodjoin" not in user.run(make_token)
        other.run(f"cd {other_folder}; cp {data}/ca.pem {data}/join-token .; PATH={BIN}:$PATH")
        other.run("install -D -m 600 listener.toml /var/lib/terrapod-listener/listener.toml")
        other.run("chmod 700 /var/lib/terrapod-listener")
        other.begin(join_and_run)
        other.terminal.expect("joined pool [^ ]+ as host-two ")
        other.terminal.expect("runs are")  # its signals are heard from here on
        made = ".venv/bin/terrapod workspaces create there --auto-apply --terraform-version"
        user.run(f"{made} {scripted.VERSION}")
        shown = user.run(f".venv/bin/terrapod runs start {folder} --workspace there --auto-approve")
        assert "host-two" in shown, shown
        for shell in (other, server):
            shell.terminal.sendintr()
            shell.ended()
