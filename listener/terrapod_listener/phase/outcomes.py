"""How a phase may end, other than well. Pure."""


class Failed(Exception):
    """The phase has ended, and not well; the text is for the run's page."""


class NotBegun(Failed):
    """The program could not be started: nothing was changed."""


class CutOff(Failed):
    """The program and its supervisor are gone without a word: what it has made may be in no state."""


class Undelivered(Failed):
    """The state is on this host alone."""


class Refused(Exception):
    """The phase cannot begin on this listener; another may be able to take it."""


class Canceled(Exception):
    """Somebody canceled the run."""
