"""The server's certificates as files hold them: read and checked as a whole, without opening a socket.

``[tls]`` names one, which is the default, and each ``[[certificate]]`` one more. :mod:`elemta.net.tls` makes
of them what handshakes use.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto

from elemta.config import CertificateConfig, TLSConfig
from elemta.errors import ConfigError, Fault
from elemta.openssl import openssl_words

SOON_DAYS = 30
"""A certificate that expires within so many days is worth a caution."""

_DAY = 86400.0
_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KINDS = (
    (rsa.RSAPublicKey, "RSA"),
    (ec.EllipticCurvePublicKey, "ECDSA"),
    (ed25519.Ed25519PublicKey, "Ed25519"),
    (ed448.Ed448PublicKey, "Ed448"),
)
_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate with its chain and its key.

    ``key`` is the table that names it, ``file`` where it was read. ``names`` are those that clients ask for,
    in small letters; a wildcard begins with ``*.``. ``kind`` is that of its key, such as ``RSA``.
    ``not_before`` and ``not_after`` are seconds since the epoch.
    """

    key: str
    file: str
    names: tuple[str, ...]
    kind: str
    not_before: float
    not_after: float
    chain: tuple[bytes, ...] = field(repr=False)
    private_key: bytes = field(repr=False)

    def days_left(self, now: float) -> int:
        """Whole days until it expires; less than 0 when it has expired."""
        return int((self.not_after - now) // _DAY)


def read_certificates(tls: TLSConfig, more: Sequence[CertificateConfig] = ()) -> tuple[Certificate, ...]:
    """Read the certificate of ``[tls]`` and those of ``[[certificate]]``; none without the first.

    Raises :class:`~elemta.errors.ConfigError` with every fault: a file that can't be read or used, a key that
    is not the certificate's, and a name that two certificates of one kind have.
    """
    if not tls.certificate:
        return ()
    faults: list[Fault] = []
    read: list[Certificate] = []
    places = [("tls", tls.certificate, tls.private_key)]
    places += [
        (f"certificate[{n}]", each.certificate, each.private_key) for n, each in enumerate(more, start=1)
    ]
    for key, file, key_file in places:
        try:
            read.append(_read_certificate(file, key_file, key))
        except ConfigError as error:
            faults.extend(error.faults)
    faults.extend(_duplicates(read))
    if faults:
        raise ConfigError(faults)
    return tuple(read)


def certificate_cautions(certificates: Sequence[Certificate], now: float) -> Iterator[Fault]:
    """What is allowed and makes clients turn away: certificates that have expired, or soon will."""
    for certificate in certificates:
        days = certificate.days_left(now)
        if now < certificate.not_before:
            problem = f"the certificate is valid only from {_day(certificate.not_before)} on"
            yield Fault(certificate.file, f"{certificate.key}.certificate", problem, "check the clock, too")
            continue
        if days >= SOON_DAYS:
            continue
        when = f"on {_day(certificate.not_after)}"
        if certificate.not_after <= now:
            problem = f"the certificate has expired {when}"
        else:
            problem = f"the certificate expires {when}, in {days} day{'' if days == 1 else 's'}"
        yield Fault(certificate.file, f"{certificate.key}.certificate", problem, "renew it, and reload")


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")


def _read_certificate(file: str, key_file: str, key: str) -> Certificate:
    content = _read(file, f"{key}.certificate")
    private_key = _read(key_file, f"{key}.private_key") if key_file else content
    chain = tuple(_PEM_CERTIFICATE.findall(content))
    if not chain:
        raise ConfigError([Fault(file, f"{key}.certificate", "holds no PEM certificate")])
    if b"ENCRYPTED" in private_key:
        # OpenSSL would ask for the passphrase at the terminal, and the reactor would wait with it.
        raise ConfigError([Fault(key_file or file, f"{key}.private_key", "needs a passphrase")])
    if b"PRIVATE KEY-----" not in private_key:
        raise ConfigError([Fault(key_file or file, f"{key}.private_key", "holds no PEM private key")])
    try:
        return _parse(file, key, chain, private_key)
    except Exception as error:  # pyOpenSSL and cryptography raise many kinds, all meaning "unusable"
        problem = f"certificate and key can't be used together: {_words(error)}"
        raise ConfigError([Fault(file, key, problem)]) from error


def _parse(file: str, key: str, chain: tuple[bytes, ...], private_key: bytes) -> Certificate:
    found, *_ = [x509.load_pem_x509_certificate(pem) for pem in chain]
    public = found.public_key()
    own = crypto.load_privatekey(crypto.FILETYPE_PEM, private_key)
    if crypto.dump_publickey(crypto.FILETYPE_ASN1, own) != public.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ):
        raise ValueError("the key is not the certificate's")
    _try(chain[0], own)
    names = _names_of(found)
    if not names and key != "tls":
        raise ValueError("the certificate has no name of a host, so that no client can ask for it")
    return Certificate(
        key=key,
        file=file,
        names=names,
        kind=next((word for kind, word in _KINDS if isinstance(public, kind)), type(public).__name__),
        not_before=_seconds(found, "not_valid_before"),
        not_after=_seconds(found, "not_valid_after"),
        chain=chain,
        private_key=private_key,
    )


def _try(pem: bytes, private_key: crypto.PKey) -> None:
    """Whether OpenSSL takes them: it refuses keys that are too short, for example."""
    context = SSL.Context(SSL.TLS_METHOD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.use_certificate(crypto.load_certificate(crypto.FILETYPE_PEM, pem))
        context.use_privatekey(private_key)
    context.check_privatekey()


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names of hosts: subject alternative names, or the common name where there are none."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        # RFC 6125 §6.4.4: only then
        names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    lowered = (name.lower().removesuffix(".") for name in names)
    return tuple(dict.fromkeys(name for name in lowered if _HOST_NAME.fullmatch(name)))


def _seconds(certificate: x509.Certificate, name: str) -> float:
    # cryptography has the time with its zone since 42, and warns of the one without it since then.
    moment: datetime.datetime | None = getattr(certificate, f"{name}_utc", None)
    if moment is None:
        moment = getattr(certificate, name).replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def _duplicates(certificates: Sequence[Certificate]) -> Iterator[Fault]:
    """A name may have one certificate of each kind: a client that knows both kinds gets the better one."""
    first: dict[tuple[str, str], Certificate] = {}
    for certificate in certificates:
        twice = [name for name in certificate.names if (name, certificate.kind) in first]
        if twice:
            other = first[twice[0], certificate.kind]
            problem = (
                f'has the name "{twice[0]}": another {certificate.kind} certificate, of {other.key}, has it'
            )
            hint = "remove one of them, or the name from one"
            yield Fault(certificate.file, f"{certificate.key}.certificate", problem, hint)
        for name in certificate.names:
            first.setdefault((name, certificate.kind), certificate)


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([Fault(path, key, f"can't be read: {error.strerror}")]) from error
    except ValueError as error:
        raise ConfigError([Fault(path, key, f"can't be read: {error}")]) from error


def _words(error: Exception) -> str:
    return openssl_words(error) or str(error) or type(error).__name__
