"""The limits for a fleet that keeps Postfix: its policy delegation protocol (SMTPD_POLICY_README)."""

from elemta.policy_service.service import MAX_CONNECTIONS, PolicyServiceFactory

__all__ = ["MAX_CONNECTIONS", "PolicyServiceFactory"]
