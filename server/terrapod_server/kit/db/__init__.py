"""The database: transactions, the row cache and its versions, and the SQLite reader."""
