"""The forms in which names are compared."""

import unicodedata


def normalised(surface: str) -> str:
    """Returns one form for all spellings of a name that differ in case, Unicode composition or line breaks."""
    return " ".join(unicodedata.normalize("NFKC", surface).casefold().split())
