"""A study's results as Markdown and JSON, beside the paper's, with what keeps them from being compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spanlake.evaluation.suites import SUITES, Missing
from spanlake.studies.runner import Order, Scored
from spanlake.training.recipe import Recipe

_PILE_NER = "Universal-NER/Pile-NER-type"
_PILE_NER_PASSAGES = 45_000  # about
# What changes how a model learns. Differences elsewhere say where and how a training ran.
_COMPARED = (
    "model.hidden_size",
    "model.max_width",
    "model.dropout",
    "model.encoder_dropout",
    "sampling",
    "optim",
    "schedule.steps",
    "schedule.batch_texts",
    "schedule.batch_tokens",
    "schedule.warmup",
    "schedule.decay",
)


@dataclass(frozen=True)
class Report:
    order: Order
    scored: Sequence[Scored]
    missing: Sequence[Missing]

    def apart(self) -> list[str]:
        """Returns sentences: what differs from the paper, so that its figures cannot be compared."""
        found: dict[str, list[str]] = {}
        for each in self.scored:
            for sentence in _differences(each, self.order.study.paper_recipe(each.variant, self.order.home)):
                found.setdefault(sentence, []).append(each.variant.name)
        sentences = [*self.order.study.notes, *self._about_sets()]
        if self.order.size == "cpu":
            sentences.insert(
                0, "The CPU size shows that the program runs. Small models and few steps answer no question."
            )
        for sentence, names in found.items():
            everywhere = len(names) == len(self.scored)
            sentences.append(sentence if everywhere else f"{sentence[:-1]} ({', '.join(names)}).")
        unknown = [each.variant.name for each in self.scored if each.variant.drawn and not each.variant.published]
        if unknown:
            sentences.append(f"The paper's figures for {', '.join(unknown)} are not part of this study.")
        return sentences

    def _about_sets(self) -> list[str]:
        suite = SUITES[self.order.study.suite]
        if not self.order.benchmark:
            texts = self.scored[0].sets[0].texts
            return [
                f"The scores are on {texts} example passages that the embedded model annotated; the paper's are on the "
                f"sets of {suite.name}.",
            ]
        if not self.missing:
            return []
        names = "; ".join(f"{each.name}: {each.reason}" for each in self.missing)
        here = len(suite.members) - len(self.missing)
        return [f"The averages are over {here} of the {len(suite.members)} sets of {suite.name} ({names})."]

    def to_dict(self) -> dict[str, Any]:
        study = self.order.study
        variants = [
            {
                "name": each.variant.name,
                "series": each.variant.series,
                "trained_on": each.texts,
                **{measure: round(each.mean(measure), 2) for measure in ("precision", "recall", "f1")},
                "sets": [asdict(score) for score in each.sets],
                "paper": each.variant.published.model_dump() if each.variant.published else None,
            }
            for each in self.scored
        ]
        heading = {"study": study.title, "source": study.source, "size": self.order.size}
        return {**heading, "variants": variants, "not_comparable": self.apart()}

    def to_markdown(self) -> str:
        study = self.order.study
        sets = [score.name for score in self.scored[0].sets]
        header = ["variant", "trained on", "precision", "recall", "F1", "the paper's F1"]
        header += sets if len(sets) > 1 else []
        rows = [_row(each, len(sets) > 1) for each in self.scored]
        return "\n".join(
            [
                f"# {study.title} ({self.order.size} size)",
                "",
                f"After {study.source}. Precision, recall and F1 are means over {', '.join(sets)}, in per cent.",
                "",
                *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)),
                "",
                "## What cannot be compared with the paper",
                "",
                *(f"- {sentence}" for sentence in self.apart()),
                "",
            ]
        )


def _row(each: Scored, with_sets: bool) -> list[str]:
    published = each.variant.published
    cells = [each.variant.name, f"{each.texts:,}"]
    cells += [f"{each.mean(measure):.1f}" for measure in ("precision", "recall", "f1")]
    cells.append(f"{published.f1:.1f} ({published.source})" if published else "")
    return cells + ([f"{score.f1:.1f}" for score in each.sets] if with_sets else [])


def _differences(each: Scored, paper: Recipe) -> list[str]:
    """Returns sentences about what differs between a training and the paper's."""
    recipe = each.recipe
    sentences = []
    if recipe.model.encoder_config:
        sentences.append(f"The encoder is small and has random weights; the paper's is {paper.model.encoder}.")
    elif recipe.model.encoder and recipe.model.encoder != paper.model.encoder:
        sentences.append(f"The encoder is {recipe.model.encoder}; the paper's is {paper.model.encoder}.")
    if _PILE_NER in paper.data.train:
        share = 100 * each.texts / _PILE_NER_PASSAGES
        if recipe.data.train != paper.data.train:
            sentences.append(
                f"The training has {each.texts:,} texts; Pile-NER has about {_PILE_NER_PASSAGES:,}, so this is "
                f"{share:.2g} % of its size."
            )
    mine, theirs = (_flat(found.to_dict()) for found in (recipe, paper))
    sentences += [
        f"{key} is {mine[key]}; the paper's is {theirs[key]}."
        for key in mine
        if key.startswith(_COMPARED) and mine[key] != theirs[key]
    ]
    return sentences


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found
