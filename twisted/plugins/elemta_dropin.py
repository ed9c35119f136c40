"""``twistd elemta``: only names, so that ``twistd --help`` imports neither a reactor nor the daemon."""

from twisted.application.service import ServiceMaker

elemta = ServiceMaker(
    "Elemta", "elemta.tap", "An ESMTP daemon with policies and cluster-wide limits.", "elemta"
)
