"""Configuration versions: what a run is run with."""
