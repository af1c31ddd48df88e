"""Table of the keys that encrypt at rest."""

from tortoise import fields

from terrapod_server.kit.table import Table


class EncryptionKey(Table):
    """A key that may have sealed something; the key itself is in the key file alone.

    `proof` is nothing, sealed by the key: it tells another key of the same id.
    A key that an operator has given up has a time in `forgotten_at`.
    """

    id = fields.CharField(primary_key=True, max_length=16)  #: in hex
    proof = fields.BinaryField(default=b"")
    recorded_at = fields.DatetimeField(auto_now_add=True)
    forgotten_at = fields.DatetimeField(null=True)

    class Meta:
        table = "encryption_key"
