"""The certificates of a door's own, for this machine's loopback: of commands, for clients up to 1.4
want TLS there also and verify nothing, and of tunnels, whose clients verify.

An authority of the state folder signs them; it can vouch for loopback only. Programs trust it by a
file that has it beside the authorities which they trust anyway.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
import tempfile
from contextlib import suppress
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from openmodal._files import place
from openmodal.errors import InvalidError

_LIFE = dt.timedelta(days=800)
"""A door has the one that it began with as long as it runs."""
_AUTHORITYS_LIFE = dt.timedelta(days=3650)
_LOOPBACK = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_network("127.0.0.0/8")))
_PEM = serialization.Encoding.PEM


def context(folder: Path, *protocols: str) -> ssl.SSLContext:
    """A server's context with a new certificate for this machine's loopback."""
    authority, authoritys_key = _authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        _unsigned("localhost", authority.subject, key, _LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authoritys_key.public_key()), critical=False)
        .sign(authoritys_key, hashes.SHA256())
    )
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The ssl module takes files only.
    with tempfile.NamedTemporaryFile() as file:
        file.write(_private(key) + certificate.public_bytes(_PEM))
        file.flush()
        made.load_cert_chain(file.name)
    made.set_alpn_protocols(list(protocols))
    return made


def trusted(folder: Path) -> dict[str, str]:
    """The variables by which a program trusts this folder's authority, and all that it would trust
    without them."""
    authority, _ = _authority(folder)
    path = folder / "authorities.pem"
    system = ssl.get_default_verify_paths().cafile or certifi.where()
    # Not what an earlier door wrote, and told to set: it would grow with each start.
    told = {system, os.environ.get("REQUESTS_CA_BUNDLE", system)} - {str(path)}
    others = [Path(file).read_bytes() for file in sorted(told or {certifi.where()}) if Path(file).is_file()]
    place(path, b"\n".join([*others, authority.public_bytes(_PEM)]))
    return dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(path))


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority of a folder and its key, made once."""
    path = folder / "authority"
    if not path.exists():
        with suppress(FileExistsError):  # another door made it meanwhile
            place(path, _new_authority(), replace=False)
    data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate(data), key
    except ValueError as error:
        raise InvalidError(f"{path} is no authority of a door; remove it, and the next start makes another") from error


def _new_authority() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"OpenModal door {os.urandom(4).hex()}"
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _unsigned(name, _name(name), key, _AUTHORITYS_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=_LOOPBACK, excluded_subtrees=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _private(key) + certificate.public_bytes(_PEM)


def _unsigned(
    subject: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, life: dt.timedelta
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


__all__ = ["context", "trusted"]
