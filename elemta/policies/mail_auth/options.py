"""The options of ``mail-auth``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from elemta.policy import setting


class Enforcement(Enum):
    """What is done about mail that fails DMARC."""

    REPORT = "report"
    ENFORCE = "enforce"


@dataclass(frozen=True, slots=True)
class MailAuthOptions:
    """Options of mail-auth."""

    authserv_id: str = setting("", "Name of this host in Authentication-Results; empty = [server] hostname.")
    dmarc: Enforcement = setting(
        Enforcement.REPORT, "report: only say the result. enforce: do what the author's domain asks for."
    )
    trusted_arc: tuple[str, ...] = setting(
        (), "Domains of forwarders whose ARC seal excuses a failed DMARC, when it is the newest."
    )
    spf_reject: bool = setting(False, "Refuse mail whose SPF result is fail.")
    exempt: tuple[IPv4Network | IPv6Network, ...] = setting(
        (), "Networks of clients whose mail is not checked."
    )
