"""A run that leaves files of gigabytes without a byte in them: nobody reads them, and what was left is named and kept."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kit.remote import Remote, wait_for
from kit.site import Site

#: The listener's own, with all that it has loaded, is below 100 MiB.
MOST_KIB = 300 << 10
APPLY = """
truncate -s 3G errored.tfstate
mkdir -p $(dirname $STATE)
printf '{{\\n  "version": 4,\\n  "serial": 9,\\n  "lineage": "line",\\n  "outputs": {{}},\\n' > $STATE
truncate -s 3G $STATE
printf '\\n}}\\n' >> $STATE
echo begun; until [ -e {go} ]; do sleep 0.05; done
exit 1
"""


@pytest.fixture
def api(tmp_path: Path, terraform: Path) -> Iterator[tuple[Site, httpx.Client]]:
    with Site(tmp_path, terraform) as started, started.api() as client:
        yield started, client


def most_memory_kib(pid: int) -> int:
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


def test_a_sparse_state_of_gigabytes_is_left_where_it_is(api: tuple[Site, httpx.Client]) -> None:
    site, client = api
    remote, go = Remote(client), site.shared / "go"
    remote.upload(apply_sh=APPLY.format(go=go))
    run = remote.begin()
    remote.until_logged(run, "apply", "begun")
    home = site.data / "listener"
    record = home / "journal" / run / "journal.json"
    supervisor = int(re.findall(r'"keeper":(\d+)', record.read_text())[0])
    read = Path(f"/proc/{supervisor}/io")
    wait_for(lambda: int(re.findall(r"syscr: (\d+)", read.read_text())[0]) > 20)  # it looks at states now and then
    assert most_memory_kib(supervisor) < MOST_KIB
    go.touch()
    remote.until(run, "errored")
    log = remote.log(run, "apply")
    assert f"kept on the listener in {home / 'work' / run}" in log, log
    assert most_memory_kib(int((home / "lock").read_text())) < MOST_KIB
    [left] = (home / "work" / run).rglob("errored.tfstate")
    assert left.stat().st_size == 3 << 30
    assert not list((home / "spool").rglob("state-*"))
    used = sum(path.lstat().st_blocks * 512 for path in home.rglob("*") if "shared" not in path.parts)
    assert used < 1 << 30, "no hole was filled"
    left.unlink()
