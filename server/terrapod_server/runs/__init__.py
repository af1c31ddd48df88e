"""Runs: their life, their queue, their leases, their logs. Nothing below `api` and `events` knows HTTP."""
