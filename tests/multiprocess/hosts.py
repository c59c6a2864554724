"""Hosts that share nothing but a file system: network namespaces with an address each."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

PORT = 9911  # nobody else listens in a network of one's own


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[list[list[str]]]:
    """Builds two hosts on a network of their own.

    Yields:
      Of each host, the words that run a command there. The first has the address 10.77.0.1.

    Raises:
      OSError: The kernel does not allow it; the message says why.
    """
    if shutil.which("ip") is None:
        raise OSError("there is no command ip")
    names = [f"asdproto{os.getpid()}x{i}" for i in range(2)]
    try:
        for number, name in enumerate(names, start=1):
            _ip("netns", "add", name)
            # What the host's name means there: collectives ask for it.
            own = Path("/etc/netns") / name / "hosts"
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(f"127.0.0.1 localhost\n10.77.0.{number} {socket.gethostname()}\n")
            _ip("-n", name, "link", "set", "lo", "up")
        ends = ("type", "veth", "peer", "name", "eth", "netns", names[1])
        _ip("-n", names[0], "link", "add", "eth", *ends)
        for number, name in enumerate(names, start=1):
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "eth")
            _ip("-n", name, "link", "set", "eth", "up")
        yield [["ip", "netns", "exec", name] for name in names]
    except subprocess.CalledProcessError as error:
        raise OSError(error.stderr.strip()) from None
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)
