"""An evaluation as one document: JSON, Markdown, or an HTML file that stands alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from spanlake.evaluation.compare import Difference, compare
from spanlake.evaluation.curves import Curve, curve
from spanlake.evaluation.mistakes import KINDS, Mistake, mistakes
from spanlake.evaluation.published import PublishedRow
from spanlake.evaluation.results import Evaluation, averages
from spanlake.evaluation.scores import Outcome, SetResult

_SHOWN = 50  # mistakes of each kind in each set
_MARGIN = 160  # characters of the text on both sides of a mistake
_LABELS_SHOWN = 60  # of a set; the labels with most mentions


@dataclass(frozen=True)
class Report:
    """An evaluation, that of another model on the same sets, and published rows."""

    evaluation: Evaluation
    against: Evaluation | None = None
    published: Sequence[PublishedRow] = ()

    def to_dict(self) -> dict[str, Any]:
        document = {
            **self.evaluation.to_dict(),
            "curves": [
                {
                    "name": outcome.benchmark.name,
                    "points": [[round(value, 4) for value in point] for point in curve(outcome).points()],
                }
                for outcome in self.evaluation.ranked
            ],
            "mistakes": [
                {"name": outcome.benchmark.name, **_counts(_found_mistakes(outcome, self.evaluation.threshold))}
                for outcome in self.evaluation.outcomes
            ],
        }
        if self.published:
            document["published"] = [vars(row) for row in self.published]
        if self.against:
            document["against"] = self.against.to_dict()
            document["comparison"] = [difference.to_dict() for difference in self.differences]
        return document

    @cached_property
    def differences(self) -> list[Difference]:
        if not self.against:
            return []
        thresholds = (self.evaluation.threshold, self.against.threshold)
        return compare(self.evaluation.outcomes, self.against.outcomes, thresholds)

    # --- Markdown -----------------------------------------------------------------------------------------------------

    def to_markdown(self) -> str:
        evaluation, results = self.evaluation, self.evaluation.results()
        answers = ["", evaluation.answers.sentence() + "."] if evaluation.answers else []
        lines = [
            f"# {evaluation.model.name}",
            "",
            f"Exact match at {evaluation.said_threshold} on {evaluation.split} files; {evaluation.model.identity}.",
            *answers,
            "",
            *_table(["set", "texts", "mentions", "precision", "recall", "F1"], map(_score_cells, results)),
        ]
        rows = self.table_rows()
        if rows:
            names = self.table_columns()
            lines += ["", *_table(["F1", *names, "source"], ([row.model, *row.cells, row.source] for row in rows))]
        for missing in evaluation.missing:
            lines += ["", f"{missing.name} is not there: {missing.reason}."]
        lines += ["", *_table(["mistakes", *KINDS], map(self._mistake_cells, evaluation.outcomes))]
        if self.against:
            other = self.against.model.name
            cells = (
                [each.name, _percent(each.f1), _percent(each.against), _signed(each.difference), _interval(each)]
                for each in self.differences
            )
            lines += ["", *_table(["F1", evaluation.model.name, other, "difference", "95 % interval"], cells)]
        return "\n".join(lines) + "\n"

    def _mistake_cells(self, outcome: Outcome) -> list[str]:
        counts = _counts(_found_mistakes(outcome, self.evaluation.threshold))
        return [outcome.benchmark.name, *(f"{number:,}" for number in counts.values())]

    # --- the table beside the published rows --------------------------------------------------------------------------

    def table_columns(self) -> list[str]:
        suite = self.evaluation.suite
        return [*(member.name for member in suite.members), *suite.averages] if suite else []

    def table_rows(self) -> list[TableRow]:
        """Returns the rows for this model and the other one, then the published rows. Only a suite has rows."""
        suite, columns = self.evaluation.suite, self.table_columns()
        if not suite:
            return []
        rows = []
        for evaluation in filter(None, (self.evaluation, self.against)):
            results = evaluation.results()
            f1 = {result.name: _percent(result.overall.f1) for result in results}
            for average in averages(suite, results):
                part = "" if average.sets == average.of else f" (of {average.sets})"
                f1[average.name] = _percent(average.f1) + part
            cells = [f1.get(name, "–") for name in columns]
            rows.append(TableRow(evaluation.model.name, cells, f"measured, {evaluation.split} files", True))
        for row in self.published:
            cells = [f"{row.f1[name]:.1f}" if name in row.f1 else "–" for name in columns]
            rows.append(TableRow(row.model, cells, row.source, False))
        return rows

    # --- HTML ---------------------------------------------------------------------------------------------------------

    def to_html(self) -> str:
        environment = Environment(
            loader=PackageLoader("spanlake.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        environment.filters |= {"count": "{:,}".format, "percent": _percent, "signed": _signed, "interval": _interval}
        return environment.get_template("report.html").render(
            evaluation=self.evaluation,
            against=self.against,
            columns=self.table_columns(),
            rows=self.table_rows(),
            differences=self.differences,
            sets=[self._view(number) for number in range(len(self.evaluation.outcomes))],
            kinds=KINDS,
            sweep=self.evaluation.to_dict().get("sweep"),
        )

    def _view(self, number: int) -> SetView:
        evaluation, against = self.evaluation, self.against
        outcome, line = evaluation.outcomes[number], curve(evaluation.ranked[number])
        result = outcome.result(evaluation.threshold)
        found = _found_mistakes(outcome, evaluation.threshold)
        return SetView(
            result=result,
            nested=outcome.benchmark.nested,
            unfindable=evaluation.model.unfindable(outcome.benchmark),
            labels=_label_bars(result, against.outcomes[number].result(against.threshold) if against else None),
            labels_left_out=max(0, len(result.by_label) - _LABELS_SHOWN),
            line=_line(line),
            best=line.best,
            other_line=_line(curve(against.ranked[number])) if against else "",
            counts=_counts(found),
            cards=list(_cards(outcome, found)),
        )


@dataclass(frozen=True)
class TableRow:
    model: str
    cells: list[str]
    source: str
    measured: bool


@dataclass(frozen=True)
class LabelBar:
    label: str
    f1: float
    precision: float
    recall: float
    gold: int
    against: float | None


@dataclass(frozen=True)
class Card:
    """A mistake in its text."""

    kind: str
    labels: str
    passage: Markup
    says: str


@dataclass(frozen=True)
class SetView:
    result: SetResult
    nested: bool
    unfindable: Mapping[str, int]
    labels: list[LabelBar]
    labels_left_out: int
    line: str  # points of the curve in an SVG of 200 by 200
    best: tuple[float, float]  # threshold, F1
    other_line: str
    counts: Mapping[str, int]
    cards: list[Card]


def _found_mistakes(outcome: Outcome, threshold: float | None) -> list[tuple[int, Mistake]]:
    """Yields all mistakes, each with the number of its text."""
    found = zip(outcome.above(threshold), outcome.benchmark.gold, strict=True)
    return [(text, mistake) for text, (entities, gold) in enumerate(found) for mistake in mistakes(entities, gold)]


def _counts(found: Sequence[tuple[int, Mistake]]) -> dict[str, int]:
    counts = Counter(mistake.kind for _, mistake in found)
    return {kind: counts[kind] for kind in KINDS}


def _label_bars(result: SetResult, other: SetResult | None) -> list[LabelBar]:
    labels = sorted(result.by_label, key=lambda label: (-result.by_label[label].gold, label))[:_LABELS_SHOWN]
    bars = []
    for label in labels:
        score = result.by_label[label]
        against = other.by_label[label].f1 if other and label in other.by_label else None
        bars.append(LabelBar(label, score.f1, score.precision, score.recall, score.gold, against))
    return bars


def _line(of: Curve) -> str:
    return " ".join(f"{200 * recall:.1f},{200 - 200 * precision:.1f}" for _, precision, recall in of.points())


def _cards(outcome: Outcome, found: Sequence[tuple[int, Mistake]]) -> Iterator[Card]:
    """Returns some mistakes of each kind, from all over the set."""
    for kind in KINDS:
        own = [(text, mistake) for text, mistake in found if mistake.kind == kind]
        step = max(1.0, len(own) / _SHOWN)
        for i in range(min(len(own), _SHOWN)):
            text, mistake = own[int(i * step)]
            passage = _passage(outcome.benchmark.examples[text].text, mistake)
            yield Card(kind, "\n".join(sorted(mistake.labels)), passage, _says(mistake))


def _says(mistake: Mistake) -> str:
    parts = []
    if mistake.gold:
        parts.append(f"there: {mistake.gold[2]}")
    if mistake.found:
        parts.append(f"found: {mistake.found.label} {mistake.found.score:.2f}")
    return ", ".join(parts)


def _passage(text: str, mistake: Mistake) -> Markup:
    """Returns the text around a mistake, with marks for the mention and for the model's entity."""
    spans = {}
    if mistake.gold:
        spans["gold"] = mistake.gold[:2]
    if mistake.found:
        spans["found"] = (mistake.found.start, mistake.found.end)
    start = max(0, min(begin for begin, _ in spans.values()) - _MARGIN)
    stop = min(len(text), max(end for _, end in spans.values()) + _MARGIN)
    cuts = sorted({start, stop, *(edge for span in spans.values() for edge in span)})
    parts = [Markup("… ") if start else Markup("")]
    for begin, end in zip(cuts, cuts[1:], strict=False):
        names = " ".join(name for name, (first, last) in spans.items() if first <= begin and end <= last)
        piece = escape(text[begin:end])
        parts.append(Markup('<mark class="{}">{}</mark>').format(names, piece) if names else piece)
    return Markup("").join([*parts, " …" if stop < len(text) else ""])


def _table(header: Sequence[str], rows: Any) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _score_cells(result: SetResult) -> list[str]:
    score = result.overall
    percents = (_percent(score.precision), _percent(score.recall), _percent(score.f1))
    return [result.name, f"{result.texts:,}", f"{score.gold:,}", *percents]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(difference: Difference) -> str:
    return f"{_signed(difference.low)} to {_signed(difference.high)}"
