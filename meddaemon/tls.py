"""TLS by the BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 B.12), for both sides.

That one and not the modified profile (B.13): it asks for what RFC 9325 recommends, which the library of the system
gives, while B.13 wants every server to speak cipher suites that are not to be had everywhere. TLS 1.2 and 1.3, the four
cipher suites of RFC 9325 4.2 for 1.2 and those of RFC 8446 for 1.3; no renegotiation, compression or session tickets.
"""

import re
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from meddaemon.domain.errors import MeddaemonError

CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
"""For TLS 1.2 (RFC 9325 4.2)."""
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17
_REMEMBERED = 1000
_ALERT_SECONDS = 1.0
"""How long a server is given to say that it does not like our certificate: TLS 1.3 tells it after the handshake."""


class TlsUnusable(MeddaemonError):
    """A certificate, key or CA file cannot be used; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who we are: a certificate with its intermediate ones, and its private key, as PEM files."""

    certificate: Path
    key: Path


class ServerTls:
    """What one set of files makes of connections to us; files that are read anew make another one."""

    def __init__(self, identity: Identity, trusted: Iterable[Path], *, required: bool) -> None:
        """Whoever calls must have a certificate that one in the `trusted` files vouches for, if `required`.

        Raises TlsUnusable.
        """
        self.expires_at = expires_at(identity.certificate)
        self._context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
        self._context.num_tickets = 0
        files = list(trusted)
        for file in files:
            _trust(self._context, file)
        if required:
            self._context.verify_mode = ssl.CERT_REQUIRED
        elif files:
            self._context.verify_mode = ssl.CERT_OPTIONAL
        self._chains: dict[bytes, frozenset[bytes]] = {}

    def wrap(self, connected: socket.socket) -> ssl.SSLSocket:
        """Return the connection with TLS over it, no handshake begun. Raises OSError."""
        return self._context.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)

    def chain(self, connection: ssl.SSLSocket) -> frozenset[bytes] | None:
        """Return the certificates (DER) that proved who the peer is, from its own to one that we trust.

        None where it showed no certificate, which it may where none is required.
        """
        own = connection.getpeercert(binary_form=True)
        if own is None:
            return None
        verified = frozenset(_verified_chain(connection))
        if not verified:
            # A session that goes on (RFC 5246 7.3) is not proved anew: nothing but the certificate itself is there.
            return self._chains.get(own, frozenset())
        if len(self._chains) >= _REMEMBERED:
            del self._chains[next(iter(self._chains))]
        self._chains[own] = verified
        return verified


def client_context(identity: Identity | None, trusted: Path | None, *, check_name: bool) -> ssl.SSLContext:
    """Return how we call others: their certificate must be vouched for by one in `trusted`. Raises TlsUnusable.

    Without `trusted` those are asked that the system trusts. `check_name` also wants their host name in it (RFC 9325
    6.1).
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity)
    context.check_hostname = check_name
    if trusted is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, trusted)
    return context


def connected(host: str, port: int, seconds: float, context: ssl.SSLContext | None) -> socket.socket:
    """Return a connection that is open, by TLS where there is a context for it. Raises OSError."""
    plain = socket.create_connection((host, port), timeout=seconds)
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except OSError:
        plain.close()
        raise


def unreached(host: str, port: int, seconds: float, context: ssl.SSLContext | None) -> str:
    """Return why there is no connection, and what to do; "" where there is one. Nothing is said over it."""
    try:
        with closing(connected(host, port, seconds, context)) as connection:
            if context is not None:
                connection.settimeout(_ALERT_SECONDS)
                # Whoever says nothing has nothing against us.
                with suppress(TimeoutError):
                    if not connection.recv(1):
                        return "hangs up when TLS is agreed: check [tls] certificate, which it may not accept"
    except OSError as failure:
        return why_not(failure)
    return ""


def why_not(failure: OSError) -> str:
    """Return why a connection failed, and what to do."""
    match failure:
        case ssl.SSLCertVerificationError():
            return f"{reason_of(failure)}: check who vouches for it (ca), and the host name"
        case ssl.SSLError():
            return f"no TLS ({reason_of(failure)}): check whether it speaks TLS there, and [tls] certificate"
        case socket.gaierror():
            return "nobody knows this host name: check it, and the name servers"
        case TimeoutError():
            return "no answer in time: check host, port and firewalls"
        case ConnectionRefusedError():
            return "nobody listens there: check host and port, and whether it runs"
        case _:
            return ": ".join(filter(None, (failure.filename, failure.strerror or type(failure).__name__)))


def certificates(file: Path) -> frozenset[bytes]:
    """Return the certificates (DER) in a PEM file. Raises TlsUnusable where there is none."""
    try:
        text = file.read_text("utf-8", errors="replace")
        found = frozenset(map(ssl.PEM_cert_to_DER_cert, _PEM.findall(text)))
    except OSError as failure:
        raise TlsUnusable(f"{file}: cannot be read: {failure.strerror}") from failure
    except ValueError as malformed:
        raise TlsUnusable(f"{file}: holds something that is no certificate") from malformed
    if not found:
        raise TlsUnusable(f"{file}: holds no certificate in PEM form")
    return found


def expires_at(file: Path) -> datetime:
    """Return when the first of the certificates in a PEM file ends. Raises TlsUnusable."""
    try:
        return min(map(_not_after, certificates(file)))
    except (ValueError, IndexError, StopIteration) as malformed:
        raise TlsUnusable(f"{file}: holds something that is no certificate") from malformed


def reason_of(failure: OSError) -> str:
    """Return why a handshake failed, in words, without places in the code of libraries."""
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {failure.verify_message}"
    if isinstance(failure, ssl.SSLError) and failure.reason:
        return failure.reason.lower().replace("_", " ")
    return failure.strerror or type(failure).__name__


def _context(protocol: int, identity: Identity | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(CIPHERS))
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    if identity is not None:
        certificates(identity.certificate)
        try:
            identity.key.open("rb").close()
            # An empty password: a key that wants one must not make a daemon ask the terminal.
            context.load_cert_chain(identity.certificate, identity.key, password="")
        except OSError as failure:
            problem = f"is no usable key for {identity.certificate}: {reason_of(failure)}"
            raise TlsUnusable(f"{identity.key}: {problem}") from failure
    return context


def _trust(context: ssl.SSLContext, file: Path) -> None:
    certificates(file)
    try:
        context.load_verify_locations(file)
    except OSError as failure:
        raise TlsUnusable(f"{file}: {reason_of(failure)}") from failure
    # Not only roots: also the certificate of one peer, or of the CA of one department.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _verified_chain(connection: ssl.SSLSocket) -> Iterator[bytes]:
    # Public from Python 3.13 on.
    if hasattr(connection, "get_verified_chain"):
        yield from connection.get_verified_chain() or ()
    else:
        for each in cast("Any", connection)._sslobj.get_verified_chain() or ():
            yield ssl.PEM_cert_to_DER_cert(each.public_bytes())


def _not_after(certificate: bytes) -> datetime:
    """Return the end of the validity of a certificate (RFC 5280 4.1); the `ssl` module tells it only of peers."""
    ((_, signed),) = _elements(certificate)
    _, content = next(_elements(signed))
    # serialNumber, signature, issuer, validity; a version may come first.
    validity = [value for kind, value in _elements(content) if kind != _VERSION][3]
    _, (kind, value) = _elements(validity)
    text = value.decode("ascii")
    if kind == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element (DER, X.690 8.1). Raises IndexError where one is cut."""
    at = 0
    while at < len(encoded):
        kind, length = encoded[at], encoded[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(encoded[at : at + size], "big")
            at += size
        yield kind, encoded[at : at + length]
        at += length
