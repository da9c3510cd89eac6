"""Exceptions of the package.

Wrong arguments raise ``ValueError`` (a value out of range) or ``TypeError`` (a value of the wrong kind), and something
that is not there raises `NotFoundError`, a ``KeyError``. Everything else is a subclass of `Error`. The message names
the field, the value and the limit.

Examples
--------
>>> from llmd.index import PrefixIndex
>>> index = PrefixIndex(max_holders=1)
>>> _ = index.add_holder("10.0.0.1:8000")
>>> try:
...     index.add_holder("10.0.0.1:8000")
... except Error as error:
...     print(type(error).__name__, "-", error)
AlreadyExistsError - holder 10.0.0.1:8000 tier gpu exists already; retire it first
"""


class Error(RuntimeError):
    """Base of what can go wrong although the arguments are right."""


class AlreadyExistsError(Error):
    """The name is taken."""


class FailedPreconditionError(Error):
    """Not possible in the present state, or with this version of a format."""


class ResourceExhaustedError(Error):
    """A limit or a budget is used up."""


class UnavailableError(Error):
    """Not possible now; may be later."""


class UnsupportedError(Error):
    """Right, but there is no code for it."""


class DataLossError(Error):
    """The data are damaged or truncated."""


class NotFoundError(KeyError):
    """There is no such thing. The text is the message, without the quotes that ``KeyError`` puts around it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


__all__ = [
    "AlreadyExistsError",
    "DataLossError",
    "Error",
    "FailedPreconditionError",
    "NotFoundError",
    "ResourceExhaustedError",
    "UnavailableError",
    "UnsupportedError",
]
