"""The options of ``dkim-sign``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elemta.policy import REQUIRED, setting


@dataclass(frozen=True, slots=True)
class Key:
    """One [[policy.dkim-sign.key]]."""

    domain: str = setting(REQUIRED, "The domain of authors whose mail it signs.", not_empty=True)
    selector: str = setting(
        REQUIRED, "Where DNS has its public half: SELECTOR._domainkey.DOMAIN.", not_empty=True
    )
    file: Path = setting(REQUIRED, "The private key, RSA or Ed25519, in PEM without a password.")


@dataclass(frozen=True, slots=True)
class DkimSignOptions:
    """The keys of [policy.dkim-sign]."""

    key: tuple[Key, ...] = setting((), "The keys. Several of one domain sign together.")
    sign_for: tuple[str, ...] = setting(
        ("submission", "relay_from", "notices"),
        "Whose mail is signed: users that logged in, clients in relay_from, our own notices.",
        choices=("submission", "relay_from", "notices"),
    )
    arc: bool = setting(
        False, "Seal mail from outside that is forwarded elsewhere with ARC; needs mail-auth in the chain."
    )
