"""The tables of the people who run it: monitoring, the console and the log."""

from __future__ import annotations

from dataclasses import dataclass

from elemta.config.choices import LogFormat, LogLevel
from elemta.config.endpoint import check_optional_endpoint
from elemta.config.setting import setting


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The ``[metrics]`` table: the port for monitoring."""

    endpoint: str = setting(
        "tcp:8080:interface=127.0.0.1",
        "The endpoint of /metrics, /healthz (alive) and /readyz (would accept mail now). Empty: off.",
        check=check_optional_endpoint,
    )


@dataclass(frozen=True, slots=True)
class ConsoleConfig:
    """The ``[console]`` table: the web console."""

    endpoint: str = setting(
        "tcp:8025:interface=127.0.0.1",
        "The endpoint of the web console and the admin API. Empty: off.",
        check=check_optional_endpoint,
    )
    users: str = setting(
        "/etc/elemta/console-users",
        "A file with the users of the console. Without a file the first start makes one random token, keeps "
        "it with mode 0600 in the spool directory and logs its path.",
    )


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """The ``[logging]`` table: the log on standard output."""

    format: LogFormat = setting(LogFormat.JSON, "json is one object a line; text is for people.")
    level: LogLevel = setting(LogLevel.INFO, "The lowest level that is logged.")
