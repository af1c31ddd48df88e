"""Private modules: published through the API, read by terraform."""
