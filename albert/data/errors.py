"""The one error of the data: missing, damaged, or not in the expected form."""

from btard.harness.typed_yaml import ConfigError


class DataError(ConfigError):
    """The data cannot be used; the message is one line: what, where, and what to do."""
