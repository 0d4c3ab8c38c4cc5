"""Which addresses of this machine the hub listens on, and which it tells to agents on other machines."""

from __future__ import annotations

import ipaddress
import socket

import psutil  # type: ignore[import-untyped]  # it ships no types

from executor.errors import ListenError

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_ANY = ("0.0.0.0", "::")  # noqa: S104  asked for by the user only
#: Addresses for documentation, which are nobody's: the way to them is the way out. Nothing is sent there.
_OUTSIDE = ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1"))


#: Every address of this machine that others may reach, each by itself: for nodes of which nobody knows the network.
ROUTABLE = "routable"


def addresses_to_listen_on(host: str | None) -> list[str]:
    """The numeric addresses to listen on, the likeliest to be reached first."""
    return addresses_for_others(_ANY[0]) if host == ROUTABLE else [_address(host)]


def _address(host: str | None) -> str:
    if host is None:
        return _outward_address() or "127.0.0.1"
    if host == "*":
        return _ANY[0]
    interface = [each.address for each in psutil.net_if_addrs().get(host, []) if each.family in _FAMILIES]
    return interface[0] if interface else _resolve(host.strip("[]"))


def _resolve(host: str) -> str:
    try:
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise ListenError(f"{host!r} is no address, name or interface of this machine: {error.strerror}") from error
    # many a machine has itself as 127.0.1.1 in its hosts file
    return next((each for each in found if not ipaddress.ip_address(each).is_loopback), found[0])


def _outward_address() -> str:
    """The address that this machine has for others, or nothing."""
    for family, outside in _OUTSIDE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((outside, 9))
                return str(probe.getsockname()[0])
        except OSError:  # no way out, or no such family in this kernel
            continue
    return ""


def addresses_for_others(address: str) -> list[str]:
    """The addresses at which others find us, the likeliest first."""
    if address not in _ANY:
        return [address]
    outward, families = _outward_address(), _FAMILIES if ":" in address else _FAMILIES[:1]
    interfaces, status = psutil.net_if_addrs(), psutil.net_if_stats()  # of an alias, only the first knows
    found = [
        each.address
        for name, addresses in interfaces.items()
        for each in addresses
        if each.family in families and (name not in status or status[name].isup) and _is_for_others(each.address)
    ]
    return sorted(found, key=lambda each: each != outward) or ["127.0.0.1"]


def _is_for_others(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local)


def by_name(endpoint: str) -> str:
    """The same port, at this machine's name: where others have it under an address that we do not know."""
    return f"tcp://{socket.gethostname()}:{endpoint.rpartition(':')[2]}"


def endpoint(address: str, port: int | str) -> str:
    """What ZeroMQ calls that port of a numeric address."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
