"""HTTP below the application: connections, bodies, addresses, limits, headers and signed URLs."""
