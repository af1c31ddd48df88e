"""What keeps a run's programs apart from the host and from each other."""
