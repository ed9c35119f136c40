"""DKIM signatures and ARC seals that we make."""
