"""Documents by the grammar of what users send, with what is odd, large or broken in them; the same for the same seed."""

import gzip
import io
import tarfile
from random import Random

_WORDS = (b"a", b"id", b"value", b"type", b"instances", b"change", b"after", b"before_sensitive", b"\\u0000", b"")
_LITERALS = (b"null", b"true", b"false", b"nul", b"NaN", b"-", b"01", b"1e", b"1E+400", b"-0", b"1e999999999", b"0.1")
_TEXTS = (b"", b"x", b'\\"', b"\\\\", b"\\ud800", b"\\u0000", b"\xff", "ü€𝄞".encode(), b"\n", b"\\q", b"[{", b"}]")
_KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"Z")
_MB, _USTAR_NAME = 1 << 20, 250


def text(rng: Random) -> bytes:
    if rng.random() < 0.02:
        return b'"%s"' % (rng.choice((b"x", b"7", b"\\\\", b"[")) * rng.choice((300, 5_000, 100_000)))
    return b'"%s"' % b"".join(rng.choices(_TEXTS, weights=(9, 30, 2, 2, 1, 1, 1, 3, 1, 1, 3, 3), k=rng.randint(0, 3)))


def number(rng: Random) -> bytes:
    if rng.random() < 0.1:
        return rng.choice((b"", b"-")) + b"1" * rng.choice((20, 300, 1_001, 4_301, 50_000)) + rng.choice((b"", b".5"))
    return b"%d" % rng.randint(-9, 1 << 70) if rng.random() < 0.2 else b"%d" % rng.randint(0, 9)


def value(rng: Random, depth: int = 0) -> bytes:
    """Any JSON, or nearly."""
    pick = rng.random()
    if pick < 0.01:
        levels, opening = rng.choice((150, 250, 1_500, 30_000)), rng.choice((b"[", b'{"a":'))
        return opening * levels + b"1" + (b"]" if opening == b"[" else b"}") * (levels - rng.choice((0, 0, 0, 1)))
    if pick < 0.30 or depth > 4:
        return text(rng)
    if pick < 0.55:
        return number(rng)
    if pick < 0.65:
        return rng.choice(_LITERALS[:3]) if rng.random() < 0.9 else rng.choice(_LITERALS)
    if pick < 0.82:
        return b"[%s]" % b",".join(value(rng, depth + 1) for _ in range(rng.randint(0, 3)))
    return table(rng, {rng.choice(_WORDS): value(rng, depth + 1) for _ in range(rng.randint(0, 3))})


def table(rng: Random, members: dict[bytes, bytes]) -> bytes:
    """An object; now and then a member is missing, of another kind, or twice."""
    pairs = [(name, value(rng) if rng.random() < 0.02 else one) for name, one in members.items() if rng.random() > 0.02]
    if pairs and rng.random() < 0.02:
        pairs.append(rng.choice(pairs))
    return b"{%s}" % b", ".join(b'"%s": %s' % pair for pair in pairs)


def broken(rng: Random, raw: bytes) -> bytes:
    """Most are left as they are."""
    if rng.random() < 0.75 or not raw:
        return raw
    at, size = rng.randrange(len(raw)), rng.randint(1, 50)
    return rng.choice(
        (
            raw[:at],
            raw[:at] + raw[at + size :],
            raw[:at] + rng.randbytes(size) + raw[at:],
            raw[:at] + raw[at : at + size] * 20 + raw[at:],
            raw + raw[:size],
        )
    )


def state(rng: Random) -> bytes:
    count = rng.choice((0, 1, 3, 30)) if rng.random() > 0.01 else 4_000
    resources = [
        table(
            rng,
            {
                b"mode": b'"managed"', b"type": b'"t"', b"name": text(rng), b"provider": b'"p"', b"module": text(rng),
                b"instances": b"[%s]" % b",".join(
                    table(rng, {b"attributes": value(rng), b"index_key": value(rng)}) for _ in range(rng.randint(0, 3))
                ),
            },
        ) for _ in range(count)
    ]  # fmt: skip
    outputs = {
        b"o%d" % at: table(rng, {b"value": value(rng), b"type": value(rng), b"sensitive": b"true"})
        for at in range(rng.randint(0, 4))
    }
    document = {
        b"version": b"4", b"terraform_version": text(rng), b"serial": b"1", b"lineage": b'"line"',
        b"outputs": table(rng, outputs), b"resources": b"[%s]" % b",".join(resources), b"check_results": value(rng),
    }  # fmt: skip
    return broken(rng, table(rng, document))


def plan_json(rng: Random) -> bytes:
    def change() -> bytes:
        parts = (b"before", b"after", b"before_sensitive", b"after_sensitive", b"after_unknown")
        return table(rng, {b"actions": b'["create"]', **{part: value(rng) for part in parts}})

    changes = [
        table(rng, {b"address": text(rng), b"mode": b'"managed"', b"type": b'"t"', b"change": change()})
        for _ in range(rng.choice((0, 1, 5)) if rng.random() > 0.01 else 3_000)
    ]
    document = {
        b"format_version": b'"1.2"', b"planned_values": value(rng), b"resource_changes": b"[%s]" % b",".join(changes),
        b"output_changes": table(rng, {b"o": change()}), b"relevant_attributes": value(rng),
        b"deferred_changes": b"[%s]" % table(rng, {b"resource_change": rng.choice([*changes, b"{}"])}),
    }  # fmt: skip
    return broken(rng, table(rng, document))


def lock_file(rng: Random) -> bytes:
    block = b'provider "registry.terraform.io/hashicorp/%s" {\n  version = %s\n  hashes = [%s]\n}\n'
    blocks = (block % (rng.choice(_WORDS), text(rng), text(rng)) for _ in range(rng.randint(0, 20)))
    return broken(rng, b"".join(blocks) + rng.choice((b"", b'provider "x" {\n' * 5_000)))


def archive(rng: Random) -> bytes:
    buffer = io.BytesIO()
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form) as out:
        for _ in range(rng.randint(0, 8)):
            entry = tarfile.TarInfo(_path(rng))
            entry.type, entry.linkname = rng.choices(_KINDS, weights=(9, 2, 2, 2, 0.3, 0.3))[0], _path(rng)
            if form == tarfile.USTAR_FORMAT and max(len(entry.name), len(entry.linkname)) > _USTAR_NAME:
                continue  # Python looks for minutes where to cut it
            content = rng.randbytes(rng.choice((0, 10, 600))) if entry.type == tarfile.REGTYPE else b""
            entry.size = len(content)
            if form == tarfile.PAX_FORMAT and rng.random() < 0.2:
                entry.pax_headers = {rng.choice(("path", "size", "GNU.sparse.name", "comment")): _path(rng)}
            try:
                out.addfile(entry, io.BytesIO(content))
            except ValueError:  # too long for the form
                continue
    raw = buffer.getvalue() + (bytes(8 * _MB) if rng.random() < 0.02 else b"")
    return broken(rng, gzip.compress(broken(rng, raw), 1))


def _path(rng: Random) -> str:
    if rng.random() < 0.05:
        return rng.choice(("a/" * 120, "a/" * 50_000, "x" * 5_000, "é" * 3_000, "/etc/passwd", "../" * 5 + "x"))
    return "/".join(
        rng.choices(("a", "b", "main.tf", "..", ".", "", "l"), weights=(9, 9, 9, 1, 1, 1, 4), k=rng.randint(1, 4))
    )
