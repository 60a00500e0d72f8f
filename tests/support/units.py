"""Runs the units of an extraction in this process, without Ray."""

from spanlake.extraction.output.ledger import Ledger, Request
from spanlake.extraction.output.plan import units_of
from spanlake.extraction.run.unit import Job, TextExtractor, UnitRunner


def run_units(request: Request, ledger: Ledger, extractor: TextExtractor, units: slice = slice(None)) -> None:
    """Saves the ledger, and runs those of its waiting units that the slice selects."""
    ledger.save()
    runner = UnitRunner(Job.of(request, ledger), extractor)
    for unit in list(units_of(ledger.pending(ledger.committed())))[units]:
        runner.run(unit)
