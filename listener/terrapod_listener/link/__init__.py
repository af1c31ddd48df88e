"""The connection to the server: the signed client, the listener's identity, joining, and leases."""
