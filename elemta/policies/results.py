"""Results that bundled policies publish: the names of :mod:`elemta.policy`, as they were imported before."""

from elemta.policy import ARCResult, DKIMResult, DKIMSignature, DMARCResult, SPFResult

__all__ = ["ARCResult", "DKIMResult", "DKIMSignature", "DMARCResult", "SPFResult"]
