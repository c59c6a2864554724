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
def hosts(count: int) -> Iterator[list[list[str]]]:
    """Builds hosts on a network of their own.

    Yields:
      Of each host, the words that run a command there. The first has the address 10.77.0.1.

    Raises:
      OSError: The kernel does not allow it; the message says why.
    """
    if shutil.which("ip") is None:
        raise OSError("there is no command ip")
    prefix = f"asdproto{os.getpid()}"
    names = [f"{prefix}x{i}" for i in range(count)]
    try:
        # The switch is in the first host, so that everything is gone with the namespaces.
        for number, name in enumerate(names):
            _ip("netns", "add", name)
            # What the host's name means there: collectives ask for it.
            own = Path("/etc/netns") / name / "hosts"
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(f"127.0.0.1 localhost\n10.77.0.{number + 1} {socket.gethostname()}\n")
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", names[0], "link", "add", "switch", "type", "bridge")
        for number, name in enumerate(names):
            port = (f"port{number}", "netns", names[0])
            _ip("-n", name, "link", "add", "eth", "type", "veth", "peer", "name", *port)
            _ip("-n", names[0], "link", "set", port[0], "master", "switch", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", "eth")
            _ip("-n", name, "link", "set", "eth", "up")
        _ip("-n", names[0], "link", "set", "switch", "up")
        yield [["ip", "netns", "exec", name] for name in names]
    except subprocess.CalledProcessError as error:
        raise OSError(error.stderr.strip()) from None
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)
