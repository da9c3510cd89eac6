class Unsupported(Exception):
    """A contender has no kernel for the case."""
