"""State versions: the one thing that must never be lost."""
