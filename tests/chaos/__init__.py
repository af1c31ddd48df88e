"""Faults at random against real programs: `make chaos`, and a short form in the tests."""
