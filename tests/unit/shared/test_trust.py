"""Whom clients trust, and that the host's authorities are read once."""

import ssl
from pathlib import Path

import pytest
import trustme

from terrapod_shared import trust


def names(context: ssl.SSLContext) -> list[object]:
    return [authority["subject"] for authority in context.get_ca_certs()]


def test_one_authority_is_trusted_alone(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    by_file, by_text = trust.only(file=tmp_path / "ca.pem"), trust.only(pem=ca.cert_pem.bytes().decode())
    assert len(names(by_file)) == 1
    assert names(by_file) == names(by_text)
    assert by_file.verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(OSError, match="No such file"):
        trust.only(file=tmp_path / "none.pem")


def test_the_hosts_authorities_are_read_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "host.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert names(trust.host()) == []
    trustme.CA(organization_name="one").cert_pem.write_to_path(str(file))
    first = trust.host()
    assert trust.host() is first
    assert "one" in str(names(first))
    trustme.CA(organization_name="two").cert_pem.write_to_path(str(tmp_path / "new.pem"))
    (tmp_path / "new.pem").replace(file)
    assert "two" in str(names(trust.host()))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    assert names(trust.host()) == []
