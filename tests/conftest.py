"""Shared fixtures. Four virtual CPU devices exist in every test, as on a small accelerator host."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """Folder of real recordings and published scores; tests that need it skip where it is absent."""
    folder = os.environ.get("ASDPROTO_REAL_DATA", "")
    if not folder:
        pytest.skip("set ASDPROTO_REAL_DATA to the folder of real recordings to run this test")
    path = pathlib.Path(folder)
    if not path.is_dir():
        pytest.fail(f"ASDPROTO_REAL_DATA={folder} is not a folder")
    return path
