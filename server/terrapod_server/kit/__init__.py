"""Mechanism that knows no domain."""
