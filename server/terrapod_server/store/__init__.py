"""Where files are kept: on disk or in S3, encrypted either way."""
