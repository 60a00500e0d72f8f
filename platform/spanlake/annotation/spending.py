"""What an output has cost, over all runs, and the limit of it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field

from spanlake.chat.endpoint import Price, Usage
from spanlake.errors import UserError, shown
from spanlake.extraction.output.ledger import FOLDER
from spanlake.storage import Place

_FILE = f"{FOLDER}/spent.json"
_SECONDS = 1.0  # between two records of what was spent
_TOKENS = re.compile(r"(\d+)(?: ?tokens)?")
_MONEY = re.compile(r"[^\d.\s]{0,3} ?(\d+(?:\.\d+)?) ?[^\d.\s]{0,3}")


@dataclass(frozen=True)
class Budget:
    """The most that an output may cost, in tokens or in money."""

    text: str
    tokens: int | None = None
    money: float | None = None

    def is_spent(self, usage: Usage, price: Price | None) -> bool:
        if self.tokens is not None:
            return usage.tokens >= self.tokens
        return self.money is not None and price is not None and usage.cost(price) >= self.money


NO_LIMIT = Budget("no limit")


def read_budget(text: str | None, price: Price | None) -> Budget:
    """Reads `500000` or `500000tokens`, and money like `2.50USD` or `$2.50`, which needs a price.

    Raises `UserError` for anything else.
    """
    if text is None:
        return NO_LIMIT
    if tokens := _TOKENS.fullmatch(text.strip()):
        return Budget(text, tokens=int(tokens[1]))
    money = _MONEY.fullmatch(text.strip())
    if money is None or money[1] == text.strip():
        raise UserError(
            f"The budget {shown(text)} is neither tokens, as in 500000, nor money with its currency, as in 2.50USD."
        )
    if price is None:
        raise UserError(f"The budget {shown(text)} is money, and nothing says what tokens cost; give --price IN,OUT.")
    return Budget(text, money=float(money[1]))


@dataclass
class Spending:
    """Counts what an output has cost, and records it in the output. A killed process loses about a second of it."""

    output: Place
    draft: str
    usage: Usage = field(default_factory=Usage)
    _recorded: float = 0.0

    def load(self) -> None:
        """Raises UserError where the record cannot be read."""
        content = self.output.read(_FILE)
        if content is None:
            return
        try:
            found = json.loads(content)
            self.usage = Usage(
                int(found["answers"]),
                int(found["prompt_tokens"]),
                int(found["completion_tokens"]),
                bool(found["estimated"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.output.child(_FILE)} cannot be read; delete it to count from 0.") from error

    def add(self, usage: Usage) -> None:
        self.usage.add(usage)
        if time.monotonic() - self._recorded >= _SECONDS:
            self.record()

    def record(self) -> None:
        self.output.write(_FILE, json.dumps(self.usage.to_dict()).encode(), self.draft)
        self._recorded = time.monotonic()
