"""How a document names a test: as FILE::TEST, or in two parts on two lines where that is too long."""

from __future__ import annotations

import re

REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(?:`\s+`)?(\w+)`")
