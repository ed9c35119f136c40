"""The words around what is generated: the heads of the sample file and of the page about every setting."""

from __future__ import annotations

from typing import Final

SAMPLE_HEAD: Final = """\
# The configuration of Elemta.
#
# Every setting stands here with its default, behind a "#"; take the "#" away to set it. Tables in
# double brackets are examples, of which there may be none or several. Sizes are written "50MiB",
# durations "5m"; plain numbers are bytes and seconds. Try a change before it counts:
#
#   twistd elemta --config /etc/elemta.toml --check
#
# This file is generated from the schema, as is docs/configuration.md, which says more.
"""

PAGE_HEAD: Final = r"""# Configuration

<!-- Generated from the schema by `python -m elemta.config write`; edit the schema. -->

Elemta reads one [TOML](https://toml.io) file, as a rule `/etc/elemta.toml`; `etc/elemta.toml` is a sample of
it with a comment and the default for every setting. What the file doesn't set has its default, so an empty
file is one too: then there is one listener, `tcp:2525:interface=127.0.0.1`, and no `[[limit]]` and no
`[[route]]`.

`twistd elemta --config FILE --check` reads the file, tells every fault in it at once and opens nothing.
A fault names the file, the key, what was found, what is allowed and the nearest known key:

```
/etc/elemta.toml: server.max_recipient: unknown key (did you mean "max_recipients"? known here: hostname, …)
/etc/elemta.toml: limit[2].mode: found "watch": must be "enforce" or "observe"
```

Tables in double brackets are counted from 1, as are the elements of lists: `limit[2].rates[1]` is the first
rate of the second `[[limit]]`.

Settings whose feature comes with a later version are taken, and at the start Elemta says that they have no
effect yet. So it does for tables `[policy.NAME]` that the chain doesn't name, and for routes behind a route
that matches before them. It also warns of what is allowed but dangerous, such as everyone in `relay_from`.

## Values

| value | written | examples |
|---|---|---|
| size | with `B`, `KiB`, `MiB`, `GiB`, `TiB` (1024) or `kB`, `MB`, `GB`, `TB` (1000), or a number of bytes \
| `"50MiB"`, `"1.5GiB"`, `1000` |
| duration | with `ms`, `s`, `m`, `h`, `d`, `w`, or a number of seconds \
| `"5m"`, `"1h30m"`, `"50ms"`, `60` |
| network | in CIDR notation, or an address | `"192.0.2.0/24"`, `"2001:db8::/32"`, `"127.0.0.1"` |
| rate | how many in which rolling window; a size for bytes; without a window for what is open at once \
| `"100/1m"`, `"50MiB/1h"`, `"20"` |
| endpoint | as Twisted describes it; the colons of an IPv6 address are escaped, here in a literal string \
| `"tcp:25"`, `'tcp6:25:interface=2001\:db8\:\:1'`, `"unix:/run/elemta/smtp.sock"` |

## Environment

`ELEMTA_<TABLE>_<KEY>` overrides a key that is no list, in a table with single brackets and a fixed name:
`ELEMTA_SERVER_HOSTNAME=mx1.example.org`, `ELEMTA_SPOOL_EXPIRE=3d`, `ELEMTA_AUTH_REQUIRE_TLS=true`.
An empty value is the empty string. These names are understood too, where they aren't empty and the long
name isn't set:

ALIASES

A variable `ELEMTA_…` that names a table but no key of it, or is nearly the name of a setting, is a fault.
Any other is left alone, and so are those that Kubernetes makes for a service named `elemta` or `elemta-…`
(`ELEMTA_SERVICE_HOST`, `ELEMTA_METRICS_PORT_8080_TCP`).
""".replace(" \\\n", " ")
