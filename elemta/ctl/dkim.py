"""``dkim generate``: a key for the policy dkim-sign, and the DNS record that belongs to it."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from elemta.config.names import check_domain
from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_FAILED, EX_USAGE, CommandFailed
from elemta.mailbox import canonical_domain

KEY_TYPES = ("rsa", "ed25519")
RSA_BITS = 2048
_SELECTOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9-]{1,63})*")
_STRING = 255  # octets of one string of a TXT record (RFC 1035 §3.3)


def generate(invocation: CommandContext) -> int:
    args = invocation.args
    try:
        check_domain(args.domain)
    except ValueError as error:
        raise CommandFailed(EX_USAGE, f'"{args.domain}" {error}') from error
    if args.domain.startswith("["):
        raise CommandFailed(EX_USAGE, f'"{args.domain}" is an address, and DNS has no keys of addresses')
    # As DNS has it, whatever the spelling: in lower case and in ASCII, without the dot of a zone file.
    domain = canonical_domain(args.domain)
    if not _SELECTOR.fullmatch(args.selector):
        raise CommandFailed(EX_USAGE, f'"{args.selector}" is no selector', "letters, digits and hyphens")
    file = Path(args.file or f"{domain}.{args.selector}.key")
    key = _new_key(args.type, args.bits)
    _write(file, key)
    name, text = f"{args.selector}._domainkey.{domain}.", _record(key)
    return invocation.give_answer(
        {"file": str(file), "name": name, "type": "TXT", "value": text},
        f"wrote {file}; add this record to DNS:",
        f"{name} IN TXT {_quoted(text)}",
    )


def _new_key(kind: str, bits: int) -> RSAPrivateKey | Ed25519PrivateKey:
    return Ed25519PrivateKey.generate() if kind == "ed25519" else generate_private_key(65537, bits)


def _write(file: Path, key: RSAPrivateKey | Ed25519PrivateKey) -> None:
    """Write the private key, which only its owner can read. Never over another one."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise CommandFailed(EX_FAILED, f"{file} is there already", "choose another --file") from error
    except OSError as error:
        raise CommandFailed(EX_FAILED, f"{file}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(pem)


def _record(key: RSAPrivateKey | Ed25519PrivateKey) -> str:
    # RFC 6376 §3.6.1, RFC 8463 §4
    public = key.public_key()
    if isinstance(key, RSAPrivateKey):
        kind, octets = "rsa", public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        kind, octets = "ed25519", public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"v=DKIM1; k={kind}; p={base64.b64encode(octets).decode('ascii')}"


def _quoted(text: str) -> str:
    """A TXT record as a zone file has it: strings of at most 255 octets."""
    return " ".join(f'"{text[at : at + _STRING]}"' for at in range(0, len(text), _STRING))
