"""Who may call us, from where, under which of our names and with which certificate (pure).

Decided on the A-ASSOCIATE-RQ alone, before anything is spent on an association.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Self, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_CALLED, _CALLING = slice(10, 26), slice(26, 42)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is known of somebody who asks for an association.

    `chain` holds the certificates (DER) that prove who calls, from his own to one that we trust; it is None where
    none was shown: without TLS, or where none is required.
    """

    calling_ae_title: str
    called_ae_title: str
    address: Address
    chain: frozenset[bytes] | None = None

    @classmethod
    def of(cls, request: bytes, address: str, chain: frozenset[bytes] | None) -> Self:
        """Return the call that an A-ASSOCIATE-RQ makes (PS3.8 9.3.2), maybe a damaged one."""
        came = ip_address(address)
        return cls(
            calling_ae_title=_title(request[_CALLING]),
            called_ae_title=_title(request[_CALLED]),
            # How a socket for both families tells of IPv4 (RFC 4291 2.5.5.2).
            address=(came.ipv4_mapped if isinstance(came, IPv6Address) else None) or came,
            chain=chain,
        )


class Refusal(Enum):
    """Why somebody is turned away: for our log in words; for him one of two diagnostics (PS3.8 9.3.4)."""

    UNKNOWN = "calling AE title not known"
    ELSEWHERE = "calling AE title from an address that is not its own"
    UNPROVEN = "calling AE title without the certificate that is its own"
    CALLED = "called AE title not ours, or not for this caller"

    @property
    def answer(self) -> bytes:
        """The A-ASSOCIATE-RJ: permanent, by the service user, calling (3) or called AE title not recognized (7)."""
        return bytes((0x03, 0, 0, 0, 0, 4, 0, 1, 1, 7 if self is Refusal.CALLED else 3))


@dataclass(frozen=True, kw_only=True)
class Caller:
    """One AE that may call; an empty field is no condition. `certificates` (DER) are its own or of its CA."""

    ae_title: str
    addresses: tuple[Network, ...] = ()
    called_ae_titles: tuple[str, ...] = ()
    certificates: frozenset[bytes] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Callers:
    """Who may call. With `everyone` also those who are not `known`, and under any name; the known as is said of them.

    `ae_titles` are ours; `certificates` (DER) vouch for those who have none of their own named.
    """

    everyone: bool = True
    ae_titles: frozenset[str] = frozenset()
    known: Mapping[str, Caller] = field(default_factory=dict)
    certificates: frozenset[bytes] = frozenset()

    def refusal(self, call: Call) -> Refusal | None:
        """Return why this call is refused, or None."""
        caller = self.known.get(call.calling_ae_title)
        if caller is None:
            if not self.everyone:
                return Refusal.UNKNOWN
            return Refusal.UNPROVEN if call.chain is not None and not call.chain & self.certificates else None
        if caller.addresses and not any(call.address in network for network in caller.addresses):
            return Refusal.ELSEWHERE
        if not self._is_proven(call, caller):
            return Refusal.UNPROVEN
        ours = caller.called_ae_titles or (() if self.everyone else self.ae_titles)
        return Refusal.CALLED if ours and call.called_ae_title not in ours else None

    def _is_proven(self, call: Call, caller: Caller) -> bool:
        if call.chain is None:
            return not caller.certificates
        return bool(call.chain & (caller.certificates or self.certificates))


def _title(encoded: bytes) -> str:
    return encoded.decode("ascii", "backslashreplace").strip(" ")
