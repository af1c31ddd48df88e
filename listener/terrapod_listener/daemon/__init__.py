"""The daemon: polls for work, sends heartbeats, goes on after a restart, and tells how it is."""
