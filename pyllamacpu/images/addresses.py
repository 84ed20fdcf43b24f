"""Which addresses of the internet a server may fetch images from: public ones, whatever a name resolves to.

Source: IANA's registries of special-purpose addresses (RFC 6890 and its updates), kept here as data, since
Python's own `is_global` differs from version to version.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_SPECIAL_4 = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12
    192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16
    192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
"""  # 168.63.129.16 is public by its number, and a service of Azure's host for its machines
_NOT_PUBLIC_4 = tuple(map(ip_network, _SPECIAL_4.split()))

# What is given out of IPv6: mapped, NAT64, link-local ... lie outside. Inside of it lie protocols (Teredo,
# ORCHID), documentation, and 6to4, which holds an IPv4 address.
_PUBLIC_6 = ip_network("2000::/3")
_SPECIAL_6 = "2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20"
_NOT_PUBLIC_6 = tuple(map(ip_network, _SPECIAL_6.split()))

_NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)\.?", re.IGNORECASE)


def is_public(address: str) -> bool:
    """Whether an address in its plain form is a public unicast one. Addresses that hold another are not."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv4Address):
        return not any(found in network for network in _NOT_PUBLIC_4)
    return _is_public_6(found)


def _is_public_6(address: IPv6Address) -> bool:
    if address.scope_id is not None or address not in _PUBLIC_6:
        return False
    return not any(address in network for network in _NOT_PUBLIC_6)


def is_disguised(host: str) -> bool:
    """Whether a host's name is read as an address by some and not by others: decimal, octal, hexadecimal or
    shortened (2130706433, 0177.0.0.1, 0x7f.1).
    """
    if not _NUMERIC.fullmatch(host.rstrip(".").rpartition(".")[2] or "x"):
        return False
    try:
        return str(IPv4Address(host)) != host
    except ValueError:
        return True


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, in the system's order. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
