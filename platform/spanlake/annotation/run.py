"""Annotates the rows of a source, so many at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from spanlake.annotation.output import Request, Row, commit, finished_rows, pending, prepare, save_part
from spanlake.annotation.prompt import DeadError, messages, read_annotation
from spanlake.annotation.spending import Budget, Spending
from spanlake.chat.endpoint import Chat, Endpoint, EndpointError, Price, UnansweredError
from spanlake.chat.parallel import in_parallel
from spanlake.errors import ShortfallError, one_line
from spanlake.extraction.output.lease import check_free, held
from spanlake.extraction.output.ledger import Ledger
from spanlake.extraction.source.model import Unit
from spanlake.extraction.source.open import SourceHandle, UnitReader
from spanlake.extraction.source.texts import read_texts

_SECONDS = 10.0  # between two messages about progress


def annotate(
    request: Request,
    endpoint: Endpoint,
    *,
    budget: Budget,
    price: Price | None,
    retry_dead: bool,
    say: Callable[[str], None],
) -> tuple[Ledger, Spending]:
    """Annotates all rows of a request that its output does not have.

    Finished rows stay when the run stops for any reason: the rows of committed units always, the others unless the
    process is killed.

    Raises UserError, before it writes anything, if the output does not fit the request. Raises ShortfallError if the
    budget is spent or the endpoint is down.
    """
    ledger = prepare(request)
    spending = Spending(ledger.output, f"{ledger.temporary}/spent.json")
    spending.load()
    units = pending(ledger, retry_dead=retry_dead)
    if units:
        check_free(ledger.output)
        ledger.save()
        with held(ledger):
            try:
                run = _Run(ledger, request, spending, budget, price, retry_dead)
                asyncio.run(run.all(units, endpoint, say))
            finally:
                spending.record()
            ledger.clean()
    return ledger, spending


class _Run:
    def __init__(
        self,
        ledger: Ledger,
        request: Request,
        spending: Spending,
        budget: Budget,
        price: Price | None,
        retry_dead: bool,
    ) -> None:
        self._ledger = ledger
        self._text_columns = (request.text_column,)
        self._reader: UnitReader = SourceHandle.of(request.source, self._text_columns, ()).open()
        self._spending, self._budget, self._price = spending, budget, price
        self._retry_dead = retry_dead

    async def all(self, units: Sequence[Unit], endpoint: Endpoint, say: Callable[[str], None]) -> None:
        rows, done, said = sum(unit.rows for unit in units), 0, time.monotonic()
        async with Chat(endpoint) as chat:
            for unit in units:
                try:
                    await self._unit(unit, chat, endpoint.concurrency)
                except EndpointError as error:
                    raise EndpointError(f"{one_line(error)}; finished rows are kept.") from error
                done += unit.rows
                if time.monotonic() - said >= _SECONDS:
                    say(f"{done:,} of {rows:,} rows; {self._spending.usage.sentence(self._price)}")
                    said = time.monotonic()

    async def _unit(self, unit: Unit, chat: Chat, concurrency: int) -> None:
        texts = self._texts(unit)
        done = {
            number: row
            for number, row in finished_rows(self._ledger, unit).items()
            if row.error is None or not self._retry_dead
        }

        async def work(number: int) -> None:
            if not self._is_spent():
                done[number] = await self._row(number, *texts[number], chat)

        try:
            await in_parallel(work, [number for number in texts if number not in done], concurrency)
        finally:
            if len(done) < len(texts):
                save_part(self._ledger, unit, list(done.values()))
        if len(done) < len(texts):
            raise ShortfallError(
                f"The budget of {self._budget.text} is spent ({self._spending.usage.sentence(self._price)}): finished "
                "rows are kept, and the same command with a larger --budget goes on."
            )
        commit(self._ledger, unit, [done[number] for number in texts])

    def _is_spent(self) -> bool:
        return self._budget.is_spent(self._spending.usage, self._price)

    def _texts(self, unit: Unit) -> dict[int, tuple[str | None, str | None]]:
        """Returns the text of each row by its number in the file, or the reason why it has none."""
        found: list[tuple[str | None, str | None]] = []
        for batch in self._reader.read(unit):
            texts, errors = read_texts(batch, self._text_columns)
            found += zip((text for (text,) in texts), errors, strict=True)
        return dict(zip(unit.places(), found, strict=True))

    async def _row(self, number: int, text: str | None, error: str | None, chat: Chat) -> Row:
        if text is None or not text.strip():
            return Row(number, text, error=error or "text is empty")
        answer = None
        try:
            reply = await chat.ask(messages(text))
            self._spending.add(reply.usage)
            answer = reply.text
            if reply.cut:
                raise DeadError("the answer breaks off or is not well-formed")
            example, dropped = read_annotation(text, answer)
        except UnansweredError as failure:
            return Row(number, text, error=f"the endpoint has no answer: {one_line(failure)}")
        except DeadError as failure:
            return Row(number, text, error=str(failure), answer=answer)
        mentions = [mention.to_dict() for mention in example.mentions]
        return Row(number, text, mentions, list(example.negatives), dropped=dict(dropped))
