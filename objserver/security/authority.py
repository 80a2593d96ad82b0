"""A private certificate authority for a lab, and the certificates that it signs.

Keys are ECDSA P-256: signing with one costs a server a tenth of what RSA does, and every TLS there is knows
it.  The authority can sign servers and clients and no further authorities.  What is a secret is written for
its owner only, and nothing that exists is overwritten: who replaced the key of an authority by a slip would
have to visit every machine.

`cryptography` (the extra `keys`) is loaded when it is first needed.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from objserver import errors

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["AUTHORITY", "issue_client", "issue_server", "make_authority", "write_new"]

AUTHORITY = "ca"
"""Name of the authority's files."""
AUTHORITY_DAYS = 3650
DAYS = 365
"""Of a server's or a client's certificate."""
BACKDATED = datetime.timedelta(minutes=5)
"""The clocks of a lab differ a little."""


def make_authority(directory: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Write `ca.pem`, which everybody gets, and `ca.key`, which stays here."""
    from cryptography import x509

    key = _new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    builder = (
        _builder(subject, subject, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )
    return _write(directory, AUTHORITY, builder, key, key)


def issue_server(directory: pathlib.Path, hosts: Iterable[str], days: int = DAYS) -> list[pathlib.Path]:
    """Write `server.pem` and `server.key` for a server that clients call by one of the `hosts`."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return _issue(directory, "server", names, ExtendedKeyUsageOID.SERVER_AUTH, days)


def issue_client(directory: pathlib.Path, name: str, days: int = DAYS) -> list[pathlib.Path]:
    """Write `NAME.pem` and `NAME.key` for a client; a server will know it as `name`.

    An address of e-mail is one, what has a scheme is a URI, and anything else stands as a DNS name.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    kind = x509.UniformResourceIdentifier if ":" in name else x509.RFC822Name if "@" in name else x509.DNSName
    file = "".join(char if char.isalnum() or char in "-_.@" else "_" for char in name).lstrip(".")
    if file in ("", "server", AUTHORITY):
        raise errors.RegistrationError(
            f"a client cannot be called {name!r}: its files need a name of their own"
        )
    try:
        names = [kind(name)]
    except ValueError:
        raise errors.RegistrationError(
            f"a certificate cannot say {name!r}: names in it are ASCII; internationalized ones are encoded"
        ) from None
    return _issue(directory, file, names, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def write_new(path: pathlib.Path, data: bytes, *, secret: bool) -> pathlib.Path:
    """Write a file that does not exist yet, if `secret` for its owner only; RegistrationError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    except FileExistsError:
        raise errors.RegistrationError(
            f"{path} exists and is not overwritten; move it away, or choose another directory"
        ) from None
    except OSError as problem:
        raise errors.RegistrationError(f"cannot write {path}: {problem.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return path


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, days: int) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _issue(directory: pathlib.Path, file: str, names: list[Any], use: Any, days: int) -> list[pathlib.Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        signer: Any = load_pem_private_key((directory / f"{AUTHORITY}.key").read_bytes(), None)
        authority = x509.load_pem_x509_certificate((directory / f"{AUTHORITY}.pem").read_bytes())
    except FileNotFoundError:
        raise errors.RegistrationError(
            f"there is no authority in {directory} (ca.pem, ca.key); make one first: "
            f"objserver keys ca {directory}"
        ) from None
    except (OSError, ValueError) as problem:
        raise errors.RegistrationError(f"the authority in {directory} cannot be read: {problem}") from None
    key = _new_key()
    usage = dict.fromkeys(_USAGES, False) | {"digital_signature": True}
    builder = (
        _builder(x509.Name([]), authority.subject, key, days)
        # Critical, as it has to be where there is no subject.
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return _write(directory, file, builder, key, signer)


def _write(
    directory: pathlib.Path, file: str, builder: x509.CertificateBuilder, key: Any, signer: Any
) -> list[pathlib.Path]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    certificate = builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    directory.mkdir(parents=True, exist_ok=True)
    # The key first: a slip that would overwrite it is found before anything is written.
    return [
        write_new(directory / f"{file}.key", private, secret=True),
        write_new(directory / f"{file}.pem", certificate, secret=False),
    ]
