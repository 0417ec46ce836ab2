"""The one error type that means "your input", not "our bug"."""


class InputError(ValueError):
    """A value, file or flag the user gave cannot be used.

    The message is one line: what was given, what was expected, what to do. The command line prints
    it without a traceback and exits with code 2.
    """
