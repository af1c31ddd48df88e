"""What the kit itself keeps: answers to repeated requests, changes of listed tables, and who guesses too often."""

from tortoise import fields

from terrapod_server.kit.table import Table


class Repeat(Table):
    """The answer to a POST that carried an `Idempotency-Key`; `status` 0 while it is under way."""

    id = fields.CharField(primary_key=True, max_length=64)
    request = fields.CharField(max_length=64)
    status = fields.IntField(default=0)
    body = fields.BinaryField(default=b"")  #: sealed: it may hold a secret that is shown once
    created_at = fields.DatetimeField(auto_now_add=True, db_index=True)

    class Meta:
        table = "repeat"


class Generation(Table):
    """How often the rows of a table that is listed were changed; written by triggers, see `db.row_versions`."""

    topic = fields.CharField(primary_key=True, max_length=64)
    number = fields.BigIntField(default=0)

    class Meta:
        table = "generation"


class SchemaVersion(Table):
    """The one row that says which schema this is, and which programs may use it; see `schema_version`."""

    id = fields.IntField(primary_key=True)
    number = fields.IntField()
    oldest = fields.IntField()  #: number of the oldest program that may use it
    program = fields.CharField(max_length=64)  #: the release that brought it to this number

    class Meta:
        table = "schema_version"


class Delivery(Table):
    """An event on its way to an outlet; times are unix seconds of the database's clock. See `kit.work.outbox`."""

    id = fields.BigIntField(primary_key=True, generated=True)
    event_id = fields.BigIntField()
    outlet = fields.CharField(max_length=80)
    #: Events of one key are delivered in their order: the run, or the workspace where there is none.
    key = fields.CharField(max_length=40)
    due_at = fields.FloatField()
    #: How often it was claimed; who comes back after a later claim changes nothing.
    attempts = fields.IntField(default=0, db_default=0)
    leased_until = fields.FloatField(default=0.0, db_default=0.0)
    failed_at: float | None = fields.FloatField(null=True)

    class Meta:
        abstract = True


class Outbox(Delivery):
    """What the outlets of this server have not been given yet, and what they did not take."""

    class Meta:
        table = "outbox"
        unique_together = (("event_id", "outlet"),)
        indexes = (("outlet", "id"), ("outlet", "key", "id"), ("outlet", "leased_until"))


class Brake(Table):
    """How much of its tries something has used up: all of them are back at `full_at`.

    `id` is a hash: neither addresses nor e-mails are kept. Rows of what is
    known (an account that came in from an address) have their end in `full_at`.
    """

    id = fields.CharField(primary_key=True, max_length=64)
    full_at = fields.FloatField(db_index=True)  #: unix seconds

    class Meta:
        table = "brake"
