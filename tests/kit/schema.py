"""The schema of the open database, to be compared with another's."""

from typing import Any

from tortoise import connections

from terrapod_server.kit.db import database


async def structure() -> set[tuple[Any, ...]]:
    """Columns with type, null and default; indexes, unique ones too; triggers. Not how the text of a table is spaced."""
    client = connections.get("default")
    if database.is_postgres():
        questions = [
            (
                "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default "
                "FROM information_schema.columns WHERE table_schema = 'public'"
            ),
            "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
            "SELECT conrelid::regclass::text AS of, pg_get_constraintdef(oid) AS word FROM pg_constraint",
            "SELECT tgrelid::regclass::text AS of, tgname FROM pg_trigger",
        ]
    else:
        questions = [
            (
                'SELECT m.name AS of, p.name, p.type, p."notnull", p.dflt_value, p.pk '
                "FROM sqlite_master m, pragma_table_info(m.name) p WHERE m.type = 'table'"
            ),
            (
                'SELECT m.name AS of, i."unique", i.partial, (SELECT group_concat(c.name) FROM pragma_index_info(i.name) c) AS columns '
                "FROM sqlite_master m, pragma_index_list(m.name) i WHERE m.type = 'table'"
            ),
            "SELECT type, tbl_name, sql FROM sqlite_master WHERE type <> 'table'",
        ]
    return {tuple(row.values()) for question in questions for row in await client.execute_query_dict(question)}
