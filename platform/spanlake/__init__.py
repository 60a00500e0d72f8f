"""Zero-shot named-entity recognition at data-lake scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spanlake.decoding import Entity
from spanlake.errors import PackageError, ShortfallError, SpanlakeError, UserError

if TYPE_CHECKING:
    from spanlake.inference.extractor import Extractor
    from spanlake.rules import Rules

__version__ = "0.1.0"

__all__ = [
    "Entity",
    "Extractor",
    "PackageError",
    "Rules",
    "ShortfallError",
    "SpanlakeError",
    "UserError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # The Extractor imports torch, which takes seconds; `spanlake --help` and `spanlake audit` run without it.
    if name == "Extractor":
        from spanlake.inference.extractor import Extractor

        return Extractor
    if name == "Rules":  # needs an extra
        from spanlake.rules import Rules

        return Rules
    raise AttributeError(f"module 'spanlake' has no attribute {name!r}")
