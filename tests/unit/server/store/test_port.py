import asyncio
import errno
import inspect
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrapod_server.store import keys
from terrapod_server.store.files import _room
from terrapod_server.store.port import checked, checked_prefix, gathered
from terrapod_shared.errors import Unavailable


@given(st.lists(st.binary(max_size=25)), st.integers(1, 12))
def test_gathered_chunks_are_of_one_size(chunks: list[bytes], size: int) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def gather() -> list[bytes]:
        return [chunk async for chunk in gathered(stream(), size)]

    found = asyncio.run(gather())
    assert b"".join(found) == b"".join(chunks)
    assert all(len(chunk) == size for chunk in found[:-1])
    assert all(0 < len(chunk) <= size for chunk in found[-1:])


def _all_keys() -> dict[str, str]:
    made = {}
    for name, function in inspect.getmembers(keys, inspect.isfunction):
        parameters = inspect.signature(function).parameters
        samples = {"workspace_id": "ws-1", "offset": 7, "number": 3, "version": "1.6.0-beta1+build"}
        made[name] = function(**{p: samples.get(p, p.replace("_", "-")) for p in parameters})
    return made


def test_all_keys_are_keys_and_a_workspace_goes_as_one() -> None:
    made = _all_keys()
    assert len(set(made.values())) == len(made)
    for name, key in made.items():
        assert key.endswith("/") or checked(key) == key
        assert not key.endswith("/") or checked_prefix(key) == key
        room = {"engine": "engines/", "module": "modules/", "module_version": "modules/"}
        assert key.startswith(room.get(name, keys.workspace("ws-1")))


def test_log_parts_sort_by_offset() -> None:
    offsets = [0, 9, 10, 99, 1 << 20, 10**10]
    parts = [keys.log_part("ws-1", "run-1", "plan", offset, lease) for offset in offsets for lease in (1, 2, 10)]
    assert parts == sorted(parts)
    assert all(part.startswith(keys.log_parts("ws-1", "run-1", "plan")) for part in parts)


def test_a_full_disk_is_said_as_such() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(Unavailable, match="the store is full"), _room():
            raise OSError(code, "some path")
    with pytest.raises(PermissionError), _room():
        raise PermissionError(errno.EACCES, "some path")
