"""Pools and listeners: joining, certificates, work, and what listeners send."""
