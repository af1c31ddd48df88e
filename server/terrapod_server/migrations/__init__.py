"""Migrations, numbered, forward only."""
