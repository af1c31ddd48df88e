"""Looking for secrets where they must not be."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import asyncpg

from terrapod_listener.supervise.masking import forms
from terrapod_server.kit.db import database


def found_in(contents: Mapping[Path, bytes], secrets: Iterable[str]) -> list[tuple[str, str]]:
    """Where which secret stands, as it is or in a usual encoding: file, and the secret's beginning."""
    words = {word: secret[:12] for secret in secrets for word in forms(secret)}
    return [(str(path), words[word]) for path, content in contents.items() for word in words if word in content]


def contents(folder: Path, *without: Path) -> dict[Path, bytes]:
    """All files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path not in without}


async def dump(database_url: str) -> bytes:
    """All rows of all tables as text; bytes come out as hexadecimal digits."""
    connection = await asyncpg.connect(database.postgres_dsn(database_url))
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = [row for (table,) in tables for row in await connection.fetch(f'SELECT t::text FROM "{table}" t')]
        assert len(rows) > 10
        return "\n".join(text for (text,) in rows).encode()
    finally:
        await connection.close()
