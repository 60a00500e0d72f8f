"""Writes an HTML report about an output: entities, scores, labels that occur together, and errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from spanlake.extraction.output.ledger import Ledger
from spanlake.extraction.output.passages import Mark, Passage, Piece
from spanlake.extraction.output.statistics import BINS, Statistics, gather, pairs

_FORMS_SHOWN = 12
_PAIRS_SHOWN = 15
_LENGTH = 600  # characters of a long text that are shown
_MARGIN = 120  # the part of them before the first mention of the label
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
    """Returns the report as HTML. Reads all committed units."""
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
        passages=[
            (chosen.source, mark(chosen.passage.cropped(_LENGTH, _MARGIN, name), hues))
            for chosen in found.samples[name].chosen
        ],
    )


def _median(histogram: np.ndarray) -> str:
    """Returns the bin of the median score."""
    if not histogram.sum():
        return "none"
    bin_ = int(np.searchsorted(np.cumsum(histogram), histogram.sum() / 2))
    return f"{bin_ / BINS:.2f} to {(bin_ + 1) / BINS:.2f}"


def mark(passage: Passage, hues: dict[str, int]) -> Markup:
    """Returns the text with each entity in a <mark>."""
    return _marked(passage.pieces(), hues)


def _marked(pieces: Sequence[Piece], hues: dict[str, int]) -> Markup:
    return Markup().join(escape(piece) if isinstance(piece, str) else _mark(piece, hues) for piece in pieces)


def _mark(piece: Mark, hues: dict[str, int]) -> Markup:
    entity = piece.entity
    return Markup('<mark class="h{}">{}<span class="tag">{} {:.2f}</span></mark>').format(
        hues[entity["label"]], _marked(piece.pieces, hues), entity["label"], entity["score"]
    )
