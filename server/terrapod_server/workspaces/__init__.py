"""Workspaces: settings, labels, locks, and the one organization and project they are in."""
