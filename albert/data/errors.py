"""The one error of the data: missing, damaged, or of another form than expected."""


class DataError(ValueError):
    """The data cannot be used; the message is one line: what, where, and what to do."""
