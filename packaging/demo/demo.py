"""From nothing to a remote apply: a server, a listener and the real terraform, in one terminal.

Everything is on loopback and in a temporary folder; nothing is left running.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import readiness
import terraform_shim
from rich.console import Console
from rich.table import Table

from terrapod_shared import host_engines

BIN = Path(sys.executable).parent
START_S = 30.0
CONFIGURATION = """\
terraform {
  cloud {
    hostname     = "HOST"
    organization = "default"
    workspaces { name = "demo" }
  }
}

resource "terraform_data" "greeting" {
  input = "hello from a listener"
}

output "greeting" {
  value = terraform_data.greeting.output
}
"""
STEPS = (
    ("init",),
    ("plan",),
    ("apply", "-auto-approve"),
    ("output",),
    ("destroy", "-auto-approve"),
)

console = Console()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def own_terraform(folder: Path) -> tuple[Path, str, str]:
    """The program, its version, and what the listener's settings say of it.

    One on the PATH is offered by `up` itself; the one of the development set is a script, which its owner has to list.
    """
    found, _ = host_engines.choose(host_engines.on_path(os.environ.get("PATH", "")))
    for each in found:
        if each.tool == "terraform":
            return each.path, each.version, ""
    shim, library = terraform_shim.write(folder), terraform_shim.library()
    listed = f'[[engines]]\ntool = "terraform"\nversion = "{terraform_shim.VERSION}"\n'
    return shim, terraform_shim.VERSION, f'{listed}path = "{shim}"\nfiles = ["{shim}", "{library}"]\n'


def prepare_listener(home: Path, listed: str) -> None:
    """Settings of its listener, so that the demo needs neither a free port nor internet."""
    home.mkdir(parents=True, mode=0o700)
    (home / "listener.toml").write_text(terraform_shim.settings() + listed)


def wait_for(data: Path, port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until a run can be taken."""
    until = time.monotonic() + START_S
    while not readiness.has_engine(data, f"localhost:{port}"):
        if server.poll() is not None or time.monotonic() > until:
            sys.exit(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.05)


def run(terraform: Path, step: tuple[str, ...], folder: Path, environment: dict[str, str]) -> float:
    """Runs one command in sight of the user; how many seconds it took."""
    console.rule(f"[bold]terraform {' '.join(step)}")
    begun = time.monotonic()
    done = subprocess.run([str(terraform), *step], cwd=folder, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"terraform {step[0]} ended with {done.returncode}")
    return time.monotonic() - begun


def demo(folder: Path) -> Table:
    data, example = folder / "data", folder / "example"
    terraform, version, listed = own_terraform(folder / "bin")
    prepare_listener(data / "listener", listed)
    port = free_port()
    log = folder / "server.log"
    took: list[tuple[str, float]] = []
    begun = time.monotonic()
    with log.open("wb") as file:
        command = [str(BIN / "terrapod-server"), "up", "--data", str(data), "--port", str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        console.rule("[bold]terrapod-server up")
        wait_for(data, port, server, log)
        took.append(("server and listener", time.monotonic() - begun))
        console.print(log.read_text(), markup=False, highlight=False)
        example.mkdir()
        (example / "main.tf").write_text(CONFIGURATION.replace("HOST", f"localhost:{port}"))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TF_")},
            "SSL_CERT_FILE": str(data / "ca.pem"),
            "TF_CLI_CONFIG_FILE": str(data / "terraform.rc"),
            "CHECKPOINT_DISABLE": "1",
        }
        took += [(f"terraform {' '.join(step)}", run(terraform, step, example, environment)) for step in STEPS]
    finally:
        server.terminate()
        server.wait(60)
    table = Table(title=f"Terraform {version}, remote")
    table.add_column("step")
    table.add_column("seconds", justify="right")
    for name, seconds in took:
        table.add_row(name, f"{seconds:.1f}")
    return table


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="terrapod-demo-") as folder:
        table = demo(Path(folder))
    console.print(table)
    console.print("To keep a server:  .venv/bin/terrapod-server up --data ./terrapod-data")


if __name__ == "__main__":
    main()
