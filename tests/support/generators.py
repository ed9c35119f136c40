"""The generators in docs/, as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

DOCS = Path(__file__).parents[2] / "docs"


def generator(name: str) -> ModuleType:
    """One of them; what it shares with the others stands beside it."""
    with patch.object(sys, "path", [str(DOCS), *sys.path]):
        return importlib.import_module(name)
