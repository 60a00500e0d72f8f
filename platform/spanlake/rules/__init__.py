"""Rules that find entities beside the model: patterns, lists of terms, and kinds such as card numbers.

A decoder takes the matches of rules first, and then chooses the model's entities among the rest.
"""

from spanlake.errors import UserError

try:
    from spanlake.rules.rules import Match, Rules
except ImportError as error:
    raise UserError(f"Rules need {error.name}, which is not installed: pip install 'spanlake[rules]'.") from error

__all__ = ["Match", "Rules"]
