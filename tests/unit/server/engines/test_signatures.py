"""Signatures of checksum lists: the keys that come along, one that HashiCorp made, and those of keys of our own."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pysequoia
import pytest

from kit.openpgp import Signer
from terrapod_server.engines import signatures

RECORDED = Path(__file__).parent / "recorded"
HASHICORP = "C874011F0AB405110D02105534365D9472D7468F"
OPENTOFU = "E3E6E43D84CB852EADB0051D0C0AF313E5FD9F80"
SUMS = (RECORDED / "terraform-provider-null_3.1.0_SHA256SUMS").read_bytes()
SIGNATURE = (RECORDED / "terraform-provider-null_3.1.0_SHA256SUMS.sig").read_bytes()


@pytest.mark.parametrize(("tool", "fingerprint"), [("terraform", HASHICORP), ("tofu", OPENTOFU)])
def test_the_keys_that_come_along_are_the_publishers(tool: str, fingerprint: str) -> None:
    (key,) = signatures.keys(tool)
    assert key.fingerprint.upper() == fingerprint
    assert not key.is_revoked
    assert key.expiration is None or key.expiration > datetime(2030, 1, 1, tzinfo=UTC)


def test_a_list_that_hashicorp_signed_in_2021_is_good_today() -> None:
    """SHA256SUMS and its signature as HashiCorp released them for a provider, by the key of its terraform releases."""
    assert signatures.verify(signatures.keys("terraform"), SUMS, SIGNATURE) == HASHICORP
    with pytest.raises(RuntimeError):
        pysequoia.Sig.from_bytes(SIGNATURE)  # why `canonical` is there


def test_the_slightest_change_of_a_recorded_list_or_signature_is_seen() -> None:
    keys = signatures.keys("terraform")
    changed = SUMS.replace(b"53e30545", b"53e30546")
    with pytest.raises(signatures.NotSigned, match="by the key B0B441097685B676, is not good"):
        signatures.verify(keys, changed, SIGNATURE)
    for at in (9, len(SIGNATURE) // 2, len(SIGNATURE) - 1):  # creation time, and the number
        bad = SIGNATURE[:at] + bytes([SIGNATURE[at] ^ 1]) + SIGNATURE[at + 1 :]
        with pytest.raises(signatures.NotSigned):
            signatures.verify(keys, SUMS, bad)
    with pytest.raises(signatures.NotSigned, match=OPENTOFU):
        signatures.verify(signatures.keys("tofu"), SUMS, SIGNATURE)


@pytest.mark.parametrize("raw", [b"", b"\xc2", b"\xc2\xff", SIGNATURE[:100], b"<html>not found</html>", SUMS])
def test_what_is_no_signature_is_refused(raw: bytes) -> None:
    with pytest.raises(signatures.NotSigned, match="what should be its signature is none"):
        signatures.verify(signatures.keys("terraform"), SUMS, raw)


@pytest.mark.parametrize("armor", [False, True])
def test_signatures_of_a_key_of_our_own(tmp_path: Path, armor: bool) -> None:
    ours, other = Signer("ours"), Signer("other")
    keys = signatures.keys("terraform", ours.write(tmp_path / "keys.asc"))
    signature = ours.sign(SUMS, armor=armor)
    assert signatures.canonical(signature) == signature
    assert signatures.verify(keys, SUMS, signature) == ours.fingerprint
    with pytest.raises(signatures.NotSigned, match="is not good by"):
        signatures.verify(keys, SUMS, other.sign(SUMS, armor=armor))
    with pytest.raises(signatures.NotSigned):
        signatures.verify(keys, SUMS, SIGNATURE)  # HashiCorp's, where its key was replaced


def test_a_file_of_several_keys_and_of_one_before_and_after_it_was_prolonged(tmp_path: Path) -> None:
    ours, other = Signer("ours"), Signer("other")
    longer = ours.prolonged(datetime.now(UTC) + timedelta(days=4000))
    file = tmp_path / "keys.asc"
    file.write_text(f"{longer}\n{ours.certificate}\n{other.certificate}")
    found = {key.fingerprint.upper(): key for key in signatures.keys("terraform", str(file))}
    assert set(found) == {ours.fingerprint, other.fingerprint}
    assert found[ours.fingerprint].expiration == longer.expiration
    assert signatures.verify(list(found.values()), SUMS, other.sign(SUMS)) == other.fingerprint
    assert signatures.verify(list(found.values()), SUMS, ours.sign(SUMS)) == ours.fingerprint


def test_a_file_without_keys_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "keys.asc"
    for content in (b"", b"nothing"):
        empty.write_bytes(content)
        with pytest.raises(signatures.NotSigned, match=r"keys\.asc"):
            signatures.keys("tofu", str(empty))
    with pytest.raises(signatures.NotSigned, match="cannot be read"):
        signatures.keys("tofu", str(tmp_path / "none"))
