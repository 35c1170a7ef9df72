"""The one exception that says: the input is wrong, not the program."""


class InputError(ValueError):
    """Something the caller gave is wrong; the message is one line that says what and where."""
