"""Private modules: published here, and read by `terraform init`."""
