"""Variables of workspaces, and which of several of one name counts."""
