"""Work beside requests: wake-ups, periodic jobs, and processes that read large documents."""
