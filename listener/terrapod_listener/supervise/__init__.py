"""The supervisor process of an apply, what it writes to disk, and how the listener finds it again."""
