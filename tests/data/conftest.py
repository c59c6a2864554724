"""Faults of disks, caused and not imitated."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def nobody():
    """Makes this process one without the rights of root, in a ``with`` block."""

    @contextlib.contextmanager
    def unprivileged():
        if os.geteuid():
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return unprivileged


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
