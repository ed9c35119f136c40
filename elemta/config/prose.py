"""The text around what is generated: the heads of the sample file and of the page about every setting."""

from __future__ import annotations

from typing import Final

SAMPLE_HEAD: Final = """\
# The configuration of Elemta.
#
# This file has every setting with its default, behind a "#"; remove the "#" to set it. Tables in double
# brackets are examples; a configuration has any number of them. Sizes are written "50MiB", durations
# "5m"; plain numbers are bytes and seconds. Check a change before you reload:
#
#   twistd elemta --config /etc/elemta.toml --check
#
# This file is generated from the schema, as is docs/configuration.md, which says more.
"""

PAGE_HEAD: Final = r"""# Configuration

<!-- Generated from the schema by `python -m elemta.config write`; edit the schema. -->

Elemta reads one [TOML](https://toml.io) file, by default `/etc/elemta.toml`. The sample
`etc/elemta.toml` has every setting with a comment and its default. A setting that the file leaves out
has its default, so an empty file works too. It has one listener, `tcp:2525:interface=127.0.0.1`, and no
`[[limit]]` and no `[[route]]`.

`twistd elemta --config FILE --check` reads the file, prints every fault in it and opens nothing. A fault
has the file, the key, what was found, what is allowed and the nearest known key:

```
/etc/elemta.toml: server.max_recipient: unknown key (did you mean "max_recipients"? known here: hostname, …)
/etc/elemta.toml: limit[2].mode: found "watch": must be "enforce" or "observe"
```

Tables in double brackets are counted from 1, as are the elements of lists: `limit[2].rates[1]` is the
first rate of the second `[[limit]]`.

Elemta accepts settings of later versions, and logs at the start that they have no effect yet. It logs
the same for tables `[policy.NAME]` that the chain does not name, and for routes behind a route that
matches before them. It also warns of settings that are allowed but dangerous, such as all networks in
`relay_from`.

## Values

| value | written | examples |
|---|---|---|
| size | a number of bytes, or with a unit | `"50MiB"`, `"1.5GiB"`, `1000` |
| duration | a number of seconds, or with `ms`, `s`, `m`, `h`, `d`, `w` | `"5m"`, `"1h30m"`, `"50ms"`, `60` |
| network | in CIDR notation, or an address | `"192.0.2.0/24"`, `"2001:db8::/32"`, `"127.0.0.1"` |
| rate | how many in which rolling window | `"100/1m"`, `"50MiB/1h"`, `"20"` |
| endpoint | as in Twisted | `"tcp:25"`, `'tcp6:25:interface=2001\:db8\:\:1'`, `"unix:/run/smtp.sock"` |

- The units of a size are `B`, `KiB`, `MiB`, `GiB`, `TiB` (1024) and `kB`, `MB`, `GB`, `TB` (1000).
- A rate of bytes is a size. The limit of open connections has no window.
- In an endpoint the colons of an IPv6 address are escaped, above in a literal string.

## Environment

`ELEMTA_<TABLE>_<KEY>` overrides a key that is no list, in a table with single brackets and a fixed name:
`ELEMTA_SERVER_HOSTNAME=mx1.example.org`, `ELEMTA_SPOOL_EXPIRE=3d`, `ELEMTA_AUTH_REQUIRE_TLS=true`. An
empty value is the empty string. Elemta also reads these names, where they are not empty and the long
name is not set:

ALIASES

A variable `ELEMTA_…` that names a table but no key of it, or is nearly the name of a setting, is a fault.
Any other has no effect, and neither have those that Kubernetes makes for a service named `elemta` or
`elemta-…` (`ELEMTA_SERVICE_HOST`, `ELEMTA_METRICS_PORT_8080_TCP`).
"""
