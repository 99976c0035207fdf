"""Check what the environment says of processes and of where they meet, before any of them waits for another.

Variables are those of torchrun, SLURM, PyTorch and Gloo. A wrong one would otherwise end in a traceback of each process, or
in waiting for minutes.
"""

from __future__ import annotations

import errno
import os
import socket
import threading

from lowrank_vit.runtime.errors import InputError

TIMEOUT = "LOWRANK_VIT_TIMEOUT"  # variable: seconds that the name of a host may take to be found
SECONDS = 30.0


def count_of(variable: str, default: int = 1) -> int:
    """Read a count from the environment. Raises ``InputError`` where it is not a number above zero."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{variable}={text!r} is not a number of processes: unset it, or let the launcher set it")
    return int(text)


def check_rendezvous() -> None:
    """Raise ``InputError`` for an address, a port or an interface at which processes cannot meet."""
    _check_interface()
    port = os.environ.get("MASTER_PORT")
    if port is not None:
        _check_port(port)
    if address := os.environ.get("MASTER_ADDR"):
        _check_address(address)


def _check_interface() -> None:
    """Refuse an interface that this machine does not have."""
    wanted = os.environ.get("GLOO_SOCKET_IFNAME", "")
    present = [name for _, name in socket.if_nameindex()]
    for name in filter(None, wanted.split(",")):
        if name not in present:
            raise InputError(
                f"GLOO_SOCKET_IFNAME={wanted}: this machine has no interface {name!r}, but {', '.join(present)}"
            )


def _check_port(text: str) -> None:
    """Refuse what is not a port, and a port that is taken where this process has to listen on it."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise InputError(f"MASTER_PORT={text!r} is not a port: unset it, or choose one from 1 to 65535")
    listens = (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"
    if not listens or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # then torchrun listens
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(text)))
        except OSError as error:
            why = (
                "is taken by another process"
                if error.errno == errno.EADDRINUSE
                else f"cannot be used ({error.strerror})"
            )
            raise InputError(f"MASTER_PORT={text} {why}: unset it, or choose a free one") from None


def _check_address(address: str) -> None:
    """Refuse a host whose name is not known, or not found in time: a lookup may take minutes."""
    text = os.environ.get(TIMEOUT) or str(SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        raise InputError(f"{TIMEOUT}={text!r} is not a number of seconds") from None
    failure: list[str] = [f"no answer within {seconds:g} s"]

    def look_up() -> None:
        try:
            socket.getaddrinfo(address, None)
            failure.clear()
        except OSError as error:
            failure[:] = [error.strerror or str(error)]

    search = threading.Thread(target=look_up, daemon=True)
    search.start()
    search.join(seconds)
    if failure:
        raise InputError(f"MASTER_ADDR={address}: the host cannot be found ({failure[0]}): name the first machine")
