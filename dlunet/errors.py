"""The error that a user can act on."""


class UserError(Exception):
    """Something the user gave cannot be used.

    The message names the file or setting, what was found, what was expected, and what to do. The command line prints
    it without a traceback and exits with code 1.
    """


class WriteError(UserError):
    """A result could not be written: no fault of the case at hand, and a reason to stop."""


class NotReadable(Exception):
    """What is wrong with a file, as the part of a message that follows the file's name."""
