"""How a phase may end, other than well."""


class Failed(Exception):
    """The phase has ended, and not well; the text is for the run's page."""


class Undelivered(Failed):
    """The state is on this host alone."""


class Refused(Exception):
    """The phase cannot begin on this listener; another may be able to take it."""


class Canceled(Exception):
    """Somebody canceled the run."""
