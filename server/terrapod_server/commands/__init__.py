"""What `terrapod-server` does besides serving: one module a command."""
