"""The listener: joins a pool, waits for runs, does the work, streams the logs back."""
