"""terraform and tofu: their command lines, their installation, plugins, and the folder that they work in."""
