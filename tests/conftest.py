"""Shared fixtures. Four virtual CPU devices exist in every test, as on a small accelerator host."""

import contextlib
import functools
import gc
import importlib.metadata
import os
import pathlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator

# Compiling is most of what small tests do: level 0 halves it, and plain emitters of one part halve
# the rest. XLA ends the process over a flag that it does not know, so a version that was not tried
# goes without the last two. Flags must be set before jax loads.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else "",
    ]
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
# Tests compile the same small programs over and over, also in the processes that they start.
_CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# A job in the background of a script ignores interrupts, and so would the programs that tests start
# and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with a long one in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Drops compiled programs between modules once there are many.

    Every program is dozens of memory mappings, of which Linux gives a process 65,530; XLA crashes
    where it gets no more.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """Folder of real recordings and published scores; where it is absent, tests of it skip."""
    folder = os.environ.get("ASDPROTO_REAL_DATA", "")
    if not folder:
        pytest.skip("set ASDPROTO_REAL_DATA to the folder of real recordings to run this test")
    path = pathlib.Path(folder)
    if not path.is_dir():
        pytest.fail(f"ASDPROTO_REAL_DATA={folder} is not a folder")
    return path


@pytest.fixture(scope="module")
def one_block():
    """ResNets of one block: compiling eight is most of what a run of two epochs does."""
    from asdproto.models.resnet import ResNet

    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(ResNet, stages=(1,))
        patch.setattr("asdproto.systems.prototype.ResNet", small)
        yield


@pytest.fixture
def call(capsys):
    """Calls the command line in this process: (exit code, stdout, stderr)."""
    from asdproto import cli

    def run(*words):
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def no_pictures(monkeypatch):
    """Reports take seconds to draw; tests of what is not drawn go without."""
    monkeypatch.setattr("asdproto.results.page.write_report", lambda run: run / "report.html")


@pytest.fixture
def nobody():
    """Makes this process one without the rights of root, in a ``with`` block."""

    if os.geteuid():
        return contextlib.nullcontext

    @contextlib.contextmanager
    def unprivileged():
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
        yield pathlib.Path(folder)


@pytest.fixture
def make_disk(tmp_path):
    """Mounts a disk of its own, of a size such as ``"4m"``."""
    disk = tmp_path / "disk"

    def mount(size):
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
