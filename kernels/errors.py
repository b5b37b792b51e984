"""The error of a library that is not here."""


class MissingLibraryError(ImportError, ValueError):
    """A library that batches are made by is not here: one sentence, with the line that installs it.

    As a `ValueError` it is a wrong setting, too.
    """
