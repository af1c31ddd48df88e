"""The cache of engines: terraform and tofu binaries, fetched once and verified."""
