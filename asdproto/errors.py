"""The errors that people see; each says what was found, what was expected and what to do."""

import os


class DataError(ValueError):
    """Something in a collection is not as it must be.

    Attributes:
      file: The file, folder or field at fault.
      found: What is there.
      expected: What should be there.
      remedy: What to do about it.
    """

    def __init__(self, file: str | os.PathLike, found: str, expected: str, remedy: str):
        self.file, self.found, self.expected, self.remedy = str(file), found, expected, remedy
        super().__init__(f"{file}: found {found}; expected {expected}. {remedy}")

    def __reduce__(self):  # crosses process borders with its four fields
        return type(self), (self.file, self.found, self.expected, self.remedy)


class StoreError(DataError):
    """A feature store is missing, damaged, or not the one that is asked for."""
