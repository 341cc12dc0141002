"""Certificates for tests: CAs, and what they issue, as PEM files."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from meddaemon.tls import Identity


@dataclass(frozen=True)
class Authority:
    """A CA; `file` holds its certificate."""

    folder: Path
    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes

    @classmethod
    def make(cls, folder: Path, name: str = "ca") -> "Authority":
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _build(name, key, name, key, days=3650, authority=True)
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        return cls(folder, certificate, key)

    @property
    def name(self) -> str:
        return _name_of(self.certificate)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def issue(
        self, name: str, *, days: float = 365, rsa_key: bool = False, password: str = "", authority: bool = False
    ) -> Identity:
        """Write a certificate and its key, which hold for `days` from now on (and from ten days ago)."""
        key = rsa.generate_private_key(65537, 2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
        certificate = _build(name, key, self.name, self.key, days=days, authority=authority)
        identity = Identity(certificate=self.folder / f"{name}.pem", key=self.folder / f"{name}.key")
        identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        protection = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
        identity.key.chmod(0o600)
        return identity

    def intermediate(self, name: str) -> "Authority":
        """Return a CA whose certificate is one of ours."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _build(name, key, self.name, self.key, days=3650, authority=True)
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        return Authority(self.folder, certificate, key)


def _build(
    name: str,
    key: CertificateIssuerPrivateKeyTypes,
    issuer: str,
    signer: CertificateIssuerPrivateKeyTypes,
    *,
    days: float,
    authority: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .sign(signer, hashes.SHA256())
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _name_of(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
