"""The settings: one struct, read once."""
