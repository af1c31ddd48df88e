"""States that arrive after the lease of their apply has ended."""
