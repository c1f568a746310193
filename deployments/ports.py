"""Whether TCP ports are free, asked before Serve is: it would only say so in a log file."""

import socket
from collections.abc import Mapping

from dspark.errors import ConfigError


def is_free(port: int) -> bool:
    """True if a server could listen on the port on all interfaces now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def check_free(ports: Mapping[str, int]) -> None:
    """`ports` by the name under which the user sets them. Raises ConfigError naming the first one taken or used twice."""
    names: dict[int, str] = {}
    for name, port in ports.items():
        if port in names:
            raise ConfigError(f"{name} and {names[port]} are both {port}", name)
        if not is_free(port):
            raise ConfigError(f"{name}: port {port} is in use on this machine", name)
        names[port] = name
