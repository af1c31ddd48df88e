import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrapod_server.store.cipher import Damaged, KeyRing

RING = KeyRing({b"12345678": os.urandom(32)})


@given(st.binary(max_size=2000), st.text(max_size=40))
def test_what_was_sealed_opens_in_its_place_only(value: bytes, context: str) -> None:
    sealed = RING.seal(value, context)
    assert RING.unseal(sealed, context) == value
    assert len(sealed) == 8 + 12 + len(value) + 16
    with pytest.raises(Damaged, match="was altered, or belongs elsewhere"):
        RING.unseal(sealed, context + "x")


def test_each_altered_byte_and_each_cut_is_seen() -> None:
    sealed = RING.seal(b"some value", "variable var-1")
    for at in range(len(sealed)):
        bad = bytearray(sealed)
        bad[at] ^= 1
        with pytest.raises(Damaged):
            RING.unseal(bytes(bad), "variable var-1")
        with pytest.raises(Damaged):
            RING.unseal(sealed[:at], "variable var-1")
    with pytest.raises(Damaged):
        RING.unseal(sealed + b"\0", "variable var-1")


def test_an_error_shows_neither_value_nor_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = KeyRing.create(path)
    with pytest.raises(Damaged) as caught:
        ring.unseal(RING.seal(b"some value", "a"), "a")
    assert "some value" not in str(caught.value)
    key = path.read_text().split(":")[1].strip()
    assert key not in repr(ring)
    path.write_text(f"{b'12345678'.hex()}:{key}x\n")
    with pytest.raises(ValueError, match="line 1 of") as wrong:
        KeyRing.load(path)
    assert key not in str(wrong.value)


def test_a_key_file_is_private_and_never_made_twice(tmp_path: Path) -> None:
    path = tmp_path / "below" / "keys"
    ring = KeyRing.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        KeyRing.create(path)
    assert path.read_bytes() == before
    assert [left.name for left in path.parent.iterdir()] == ["keys"]
    assert KeyRing.load(path).unseal(ring.seal(b"value", "a"), "a") == b"value"


def test_rotation_keeps_every_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first = KeyRing.create(path)
    second = first.rotate(path)
    third = first.rotate(path)  # by a process that does not know the second
    loaded = KeyRing.load(path)
    assert loaded.current == third.current
    assert len({first.current, second.current, third.current}) == 3
    for ring in (first, second, third):
        assert loaded.unseal(ring.seal(b"value", "a"), "a") == b"value"
    with pytest.raises(Damaged, match="is not in the key file"):
        second.unseal(third.seal(b"value", "a"), "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [left.name for left in path.parent.iterdir()] == ["keys"]
    assert loaded.derive("signed urls")[0] == third.derive("signed urls")[0] != third.derive("other")[0]


LINE = f"{b'12345678'.hex()}:{base64.b64encode(bytes(32)).decode()}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs a key"),
        ("nonsense", "line 1"),
        (f"{LINE}\nzz:{LINE.partition(':')[2]}", "line 2"),
        (f"{b'12345678'.hex()}:{base64.b64encode(bytes(16)).decode()}", "line 1"),
        (f"{LINE}\n{LINE}", "line 2"),
    ],
)
def test_a_key_file_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValueError, match=said):
        KeyRing.load(tmp_path / "keys")
