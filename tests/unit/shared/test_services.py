"""`install-service`: the files for this interpreter, written once, and refusals that say why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from terrapod_listener.__main__ import main as listener
from terrapod_listener.daemon.install_service import SERVICE as LISTENER
from terrapod_server.__main__ import main as server
from terrapod_server.commands.install_service import SERVICE as SERVER
from terrapod_shared import services

PYTHON = Path("/opt/terrapod/bin/python3")
HOME = Path("/var/lib/terrapod-listener")
UNIT = "/etc/systemd/system/terrapod-listener.service"


@pytest.fixture
def in_opt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this interpreter were where a service may see it."""
    monkeypatch.setattr(services, "interpreter", lambda: (PYTHON, (PYTHON,)))


def test_a_unit_names_this_interpreter() -> None:
    files = LISTENER.files(HOME, PYTHON)
    assert sorted(files) == [
        "/etc/systemd/system/terrapod-listener.service",
        "/etc/sysusers.d/terrapod-listener.conf",
        "/etc/tmpfiles.d/terrapod-listener.conf",
    ]
    assert f"ExecStart={PYTHON} -I -m terrapod_listener run --home {HOME}\n" in files[UNIT]
    assert "StateDirectory=terrapod-listener\n" in files[UNIT]
    own = SERVER.files(Path("/var/lib/terrapod"), PYTHON, config=Path("/srv/t.toml"))
    assert (
        f"ExecStart={PYTHON} -I -m terrapod_server serve --config /srv/t.toml\n"
        in own["/etc/systemd/system/terrapod-server.service"]
    )


def test_the_drop_in_comes_only_when_it_is_asked_for() -> None:
    path = "/etc/systemd/system/terrapod-listener.service.d/bubblewrap.conf"
    assert path not in LISTENER.files(HOME, PYTHON)
    assert "RestrictNamespaces=user" in LISTENER.files(HOME, PYTHON, drop_ins=("bubblewrap",))[path]
    assert set(LISTENER.drop_ins) == {path.stem for path in LISTENER.units.glob("*.conf")} - {"sysusers", "tmpfiles"}


@pytest.mark.parametrize(
    ("home", "line"),
    [("/var/lib/pods/one", "StateDirectory=pods/one"), ("/srv/terrapod", "ReadWritePaths=/srv/terrapod")],
)
def test_another_home_stands_everywhere(tmp_path: Path, home: str, line: str) -> None:
    files = LISTENER.files(Path(home), PYTHON)
    assert not any(str(HOME) in text for text in files.values())
    assert line in files[UNIT].splitlines()
    assert f"BindPaths={home}/tmp:/tmp {home}/tmp:/var/tmp" in files[UNIT]
    assert f"d {home} 0700" in files["/etc/tmpfiles.d/terrapod-listener.conf"]
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not there: the unit is not verified")
    file = tmp_path / "terrapod-listener.service"
    file.write_text(files[UNIT].replace(str(PYTHON), sys.executable))
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.usefixtures("in_opt")
def test_it_is_written_once_and_brought_up_to_date(tmp_path: Path) -> None:
    call = ["install-service", "--root", str(tmp_path)]
    first = CliRunner().invoke(listener, call)
    assert first.exit_code == 0, first.output
    assert first.output.count("written ") == 3
    assert "runuser -u terrapod-listener -- /opt/terrapod/bin/terrapod-listener join" in first.output
    unit = tmp_path / UNIT[1:]
    assert unit.stat().st_mode & 0o777 == 0o644
    again = CliRunner().invoke(listener, call)
    assert again.output.count("unchanged ") == 3
    other = CliRunner().invoke(listener, [*call, "--home", "/srv/t", "--bubblewrap"])
    assert other.output.count("written ") == 4
    assert sorted(path.name for path in unit.parent.iterdir()) == [
        "terrapod-listener.service",
        "terrapod-listener.service.d",
    ]
    mine = CliRunner().invoke(server, call)
    assert mine.output.count("written ") == 3, mine.output


@pytest.mark.usefixtures("in_opt")
def test_what_somebody_else_wrote_is_left(tmp_path: Path) -> None:
    unit = tmp_path / UNIT[1:]
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    refused = CliRunner().invoke(listener, ["install-service", "--root", str(tmp_path)])
    assert refused.exit_code == 1
    assert f"{unit} was not written by `terrapod-listener install-service`: move it away" in refused.output
    assert unit.read_text() == "[Service]\n"
    assert not (tmp_path / "etc" / "sysusers.d").exists()


@pytest.mark.usefixtures("in_opt")
def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused = CliRunner().invoke(listener, ["install-service"])
    assert refused.exit_code == 1
    assert "only root may write into /etc: call it by sudo" in refused.output
    assert CliRunner().invoke(listener, ["install-service", "--dry-run"]).exit_code == 0


def test_a_dry_run_writes_nothing_and_says_what_would_not_work(tmp_path: Path) -> None:
    seen = CliRunner().invoke(listener, ["install-service", "--root", str(tmp_path), "--home", "/root/x", "--dry-run"])
    assert seen.exit_code == 0
    assert f"ExecStart={sys.executable} -I -m terrapod_listener run --home /root/x" in seen.output
    assert "warning: /root/x is below /root, which the service does not see" in seen.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("in_opt")
@pytest.mark.parametrize("home", ["/home/ann/terrapod", "/tmp/t", "relative", "/srv/a b", "/srv/%h"])
def test_a_home_that_would_not_work_is_refused(tmp_path: Path, home: str) -> None:
    refused = CliRunner().invoke(listener, ["install-service", "--root", str(tmp_path), "--home", home])
    assert refused.exit_code == 1
    assert home in refused.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
@pytest.mark.parametrize("call", [["join", "--server", "https://x", "--token", "t"], ["run"]])
def test_a_home_of_another_user_is_not_written_to(tmp_path: Path, call: list[str]) -> None:
    os.chown(tmp_path, 65534, 65534)
    refused = CliRunner().invoke(listener, [*call, "--home", str(tmp_path)])
    assert refused.exit_code == 1
    assert f"{tmp_path} belongs to nobody: call this as that user (`runuser -u nobody -- …`)" in refused.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
@pytest.mark.parametrize(
    "call", [["serve"], ["keys", "rotate"], ["users", "create", "--email", "a@b.c", "--password-stdin"]]
)
def test_data_of_another_user_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: list[str]
) -> None:
    os.chown(tmp_path, 65534, 65534)
    monkeypatch.setenv("TERRAPOD_DATA", str(tmp_path))
    refused = CliRunner().invoke(server, call, input="a good password 123\n")
    assert refused.exit_code == 1, refused.output
    assert f"{tmp_path} belongs to nobody: call this as that user (`runuser -u nobody -- …`)" in refused.output
    assert list(tmp_path.iterdir()) == []
