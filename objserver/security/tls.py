"""Transport Layer Security: what a server and a client need for it, and who a certificate says its bearer is.

Each server and each proxy has a context of its own; there is none of the process.  Nothing below TLS 1.2 is
spoken.  The module `ssl` is loaded when the first context is made: most processes do without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from objserver import errors
from objserver.security.credentials import Credentials
from objserver.security.principal import Principal

if TYPE_CHECKING:
    import ssl

__all__ = ["ClientTLS", "Identity", "Itself", "ServerTLS", "binding_of", "certified", "tls_problem"]

_SAN_KINDS = ("URI", "DNS", "email")
"""What may name the bearer of a certificate, in this order.  The common name does not: nothing says what it
is the name of."""


class Identity(NamedTuple):
    """What a server has loaded of its files, for the connections that it accepts from then on."""

    context: ssl.SSLContext
    binding: bytes
    """What proofs of a shared key are bound to: see `binding_of`."""


@dataclass(frozen=True, kw_only=True)
class ServerTLS:
    """How a server proves who it is: paths of PEM files.

    `certificate` may be followed by those that lead to the authority, and by the key if `key` is left out.
    With `client_ca` clients prove by a certificate of that authority who they are: they must, unless the
    server has other means for them (`ObjectServer(authentication=...)`).
    """

    certificate: str
    key: str | None = None
    client_ca: str | None = None

    def load(self, client_must: bool) -> Identity:
        """Read the files; RegistrationError if they cannot be used."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        # Sessions are not resumed: connections are kept.  A ticket that comes when nothing was asked would
        # look like a server that has something to say.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED if client_must else ssl.CERT_OPTIONAL
            with open(self.certificate, encoding="ascii", errors="replace") as file:
                text = file.read()
            begin = text.index("-----BEGIN CERTIFICATE-----")
            end = text.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
            return Identity(context, binding_of(ssl.PEM_cert_to_DER_cert(text[begin:end])))
        except (OSError, ValueError) as problem:
            raise errors.RegistrationError(
                f"the server cannot use its TLS files (certificate {self.certificate}, key "
                f"{self.key or 'in the same file'}, client_ca {self.client_ca}): {tls_problem(problem)}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class ClientTLS:
    """Whom a client believes, and how it proves who it is: paths of PEM files.

    `ca` is the authority of the servers; without it those that this machine trusts.  `certificate` and `key`
    prove who the client is, to a server that asks.  `server_name` is what the server's certificate must say,
    instead of the host in the URI.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Made of the files as they are when it is first asked for; OSError if they cannot be used."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the name, and the certificate
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def usable_context(self) -> ssl.SSLContext:
        """The same; ConnectFailed if the files cannot be used."""
        try:
            return self.context
        except OSError as problem:
            unusable = errors.ConnectFailed(
                f"this client cannot use its TLS files (ca {self.ca}, certificate {self.certificate}, key "
                f"{self.key}): {tls_problem(problem)}"
            )
            unusable.refused = True
            raise unusable from None


class Itself(NamedTuple):
    """How a server's servants call its own objects: as whom these `credentials`, or a certificate in `tls`,
    say.  Not as their callers, whose credentials stay with their proxies.
    """

    tls: ClientTLS | None = None
    credentials: Credentials | None = None


def binding_of(certificate: bytes | None) -> bytes:
    """What a connection over TLS is bound to: the hash of the server's certificate (DER).

    As tls-server-end-point of RFC 5929, and always SHA-256; Python has no tls-exporter.  Who sits between the
    two ends has another certificate, so a proof that was made for one connection is none on the other.
    """
    return hashlib.sha256(certificate).digest() if certificate else b""


def certified(certificate: Mapping[str, Any], seconds_of: Any) -> Principal:
    """Whom a verified certificate names, as `SSLObject.getpeercert` tells it; AuthenticationFailed.

    `seconds_of` is `ssl.cert_time_to_seconds`.
    """
    names = certificate.get("subjectAltName", ())
    for kind in _SAN_KINDS:
        for found, name in names:
            if found == kind and name:
                return Principal(name, means="tls", expires_at=float(seconds_of(certificate["notAfter"])))
    raise errors.AuthenticationFailed(
        "the client's certificate names nobody: its subjectAltName has no URI, no DNS name and no e-mail "
        "address"
    )


def tls_problem(problem: BaseException) -> str:
    """What went wrong, without OpenSSL's numbers."""
    verify = getattr(problem, "verify_message", "")
    if verify:
        return f"the certificate is not accepted: {verify}"
    reason = getattr(problem, "reason", None)
    if reason:
        return str(reason).lower().replace("_", " ")
    return str(getattr(problem, "strerror", None) or problem)
