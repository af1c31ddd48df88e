"""The Debian package in a clean root: `pytest -m proof`, or `make deb-proof`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEB = Path(__file__).parents[2] / "packaging" / "deb"


@pytest.mark.proof
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a system in a folder")
@pytest.mark.skipif(not shutil.which("debootstrap"), reason="debootstrap is not there")
@pytest.mark.skipif(not shutil.which("systemd-nspawn"), reason="systemd-nspawn is not there")
@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not there")
def test_the_package_works_in_a_clean_root() -> None:
    built = subprocess.run([sys.executable, str(DEB / "build.py")], stdout=subprocess.PIPE, text=True, check=True)
    package = DEB.parents[1] / built.stdout.splitlines()[-1]
    proved = subprocess.run([sys.executable, str(DEB / "prove.py"), "--boot", str(package)], check=False)
    assert proved.returncode == 0


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not there")
@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_a_maintainer_script_is_good_shell(script: str) -> None:
    assert os.access(DEB / script, os.X_OK)
    assert subprocess.run(["sh", "-n", str(DEB / script)], check=False).returncode == 0
    assert "systemctl start" not in (DEB / script).read_text()
