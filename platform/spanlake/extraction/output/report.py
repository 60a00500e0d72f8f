"""One HTML file about an output: what was found, how surely, what stands together, what failed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from spanlake.extraction.output.ledger import Ledger
from spanlake.extraction.output.statistics import BINS, Passage, Statistics, gather, pairs

_FORMS_SHOWN = 12
_PAIRS_SHOWN = 15
_PASSAGE = 600  # characters of a long text that are shown
_MARGIN = 120  # of them before the first mention of the label
_HUES = 12  # colours that labels share in turn


@dataclass(frozen=True)
class _LabelView:
    name: str
    hue: int
    mentions: int
    rows: int
    distinct: str
    bars: list[int]  # heights of the histogram, 0 to 100
    median: str
    forms: list[tuple[str, int]]
    passages: list[tuple[str, Markup]]  # source, marked text


def report(ledger: Ledger) -> str:
    """The page, as HTML. Reads all that is committed."""
    return render(ledger, gather(ledger))


def render(ledger: Ledger, found: Statistics) -> str:
    environment = Environment(
        loader=PackageLoader("spanlake.extraction.output"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["count"] = "{:,}".format
    hues = {label: index % _HUES for index, label in enumerate(found.labels)}
    order = np.argsort(-found.mentions_L, kind="stable").tolist()
    return environment.get_template("report.html").render(
        manifest=ledger.manifest,
        output=ledger.output.uri,
        found=found,
        mentions=int(found.mentions_L.sum()),
        labels=[_view(found, index, hues) for index in order],
        pairs=pairs(found, _PAIRS_SHOWN),
        hues=hues,
        errors=found.errors.counts.most_common(_FORMS_SHOWN),
    )


def _view(found: Statistics, index: int, hues: dict[str, int]) -> _LabelView:
    name = found.labels[index]
    forms = found.forms[name]
    histogram = found.histogram_LB[index]
    return _LabelView(
        name=name,
        hue=hues[name],
        mentions=int(histogram.sum()),
        rows=int(found.together_LL[index, index]),
        distinct=f"{len(forms.counts):,}" if not forms.error else f"more than {len(forms.counts):,}",
        bars=[round(100 * int(height) / max(1, int(histogram.max()))) for height in histogram],
        median=_median(histogram),
        forms=forms.counts.most_common(_FORMS_SHOWN),
        passages=[(passage.source, _passage(passage, name, hues)) for passage in found.samples[name].chosen],
    )


def _median(histogram: np.ndarray) -> str:
    """The bin that holds the middle score."""
    if not histogram.sum():
        return "none"
    bin_ = int(np.searchsorted(np.cumsum(histogram), histogram.sum() / 2))
    return f"{bin_ / BINS:.2f} to {(bin_ + 1) / BINS:.2f}"


def _passage(passage: Passage, label: str, hues: dict[str, int]) -> Markup:
    """The text around the first mention of a label, with all its entities marked."""
    first = min(entity["start"] for entity in passage.entities if entity["label"] == label)
    start = max(0, first - _MARGIN) if len(passage.text) > _PASSAGE else 0
    stop = min(len(passage.text), start + _PASSAGE)
    inside = [entity for entity in passage.entities if start <= entity["start"] and entity["end"] <= stop]
    marked = Markup().join(mark(passage.text, start, stop, inside, hues))
    return Markup("{}{}{}").format("… " if start else "", marked, " …" if stop < len(passage.text) else "")


def mark(text: str, start: int, stop: int, entities: list[dict[str, Any]], hues: dict[str, int]) -> Iterator[Markup]:
    """`text[start:stop]` with each entity in a <mark>; one that lies inside another is marked within it."""
    ordered = sorted(entities, key=lambda entity: (entity["start"], -entity["end"]))
    position = start
    while ordered:
        outer, *ordered = ordered
        inner = [entity for entity in ordered if entity["end"] <= outer["end"]]
        ordered = [entity for entity in ordered if entity["start"] >= outer["end"]]
        yield escape(text[position : outer["start"]])
        yield Markup('<mark class="h{}">{}<span class="tag">{} {:.2f}</span></mark>').format(
            hues[outer["label"]],
            Markup().join(mark(text, outer["start"], outer["end"], inner, hues)),
            outer["label"],
            outer["score"],
        )
        position = outer["end"]
    yield escape(text[position:stop])
