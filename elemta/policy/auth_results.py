"""Results of authentication that the bundled ``mail-auth`` publishes for policies behind it in the chain.

A policy asks ``results.get(SPFResult)`` and gets None where no policy before it said anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SPFResult:
    """SPF (RFC 7208). ``domain`` is that of the sender, or of the HELO name for the null sender."""

    result: str  # none, neutral, pass, fail, softfail, temperror, permerror
    domain: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class DKIMSignature:
    """One DKIM signature. ``result`` is none, pass, fail, policy, neutral, temperror or permerror."""

    result: str
    domain: str
    selector: str
    identity: str = ""
    algorithm: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class DKIMResult:
    """All DKIM signatures of a message (RFC 6376), the topmost first."""

    signatures: tuple[DKIMSignature, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains whose signatures pass."""
        return tuple(one.domain for one in self.signatures if one.result == "pass")


@dataclass(frozen=True, slots=True)
class ARCResult:
    """The ARC chain (RFC 8617): ``sealers`` are the sealing domains, the newest first."""

    result: str  # none, pass, fail, temperror
    sealers: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class DMARCResult:
    """DMARC (RFC 7489). ``disposition`` is what the author's domain asks for: none, quarantine, reject."""

    result: str  # none, pass, fail, temperror, permerror
    domain: str = ""
    disposition: str = "none"
    text: str = ""
