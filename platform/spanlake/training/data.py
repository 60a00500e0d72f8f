"""The data sets that a recipe names, prepared and opened."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from spanlake.data.examples import Example
from spanlake.data.prepare import prepare
from spanlake.data.prepared import read_statistics
from spanlake.data.sampling import SetTypes
from spanlake.data.stream import ExampleStream, PreparedSet, open_prepared, without_types
from spanlake.errors import UserError, one_line, shown
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.tokens import ModelTokenizer
from spanlake.storage import Place, locate
from spanlake.training.encoders import words_of
from spanlake.training.recipe import DataSection, Recipe

_DEV_TYPES = 50  # that a text is asked for when the dev score is taken


@dataclass(frozen=True)
class DevSet:
    name: str
    types: list[str]  # of the whole data set
    examples: list[Example]

    def asked(self, example: Example) -> list[str]:
        """Returns the types that a text is asked for.

        These are its own types and those it states as absent. A text that states none is asked for all types of its
        data set. If the data set has very many types, as Pile-NER has, the text is asked for its own and a sample of
        the others, the same at each call.
        """
        own = {mention.label for mention in example.mentions}
        if example.negatives:
            return sorted({*own, *example.negatives})
        if len(self.types) <= _DEV_TYPES:
            return self.types
        others = [label for label in self.types if label not in own]
        draw = random.Random(example.text)
        return sorted({*own, *draw.sample(others, min(len(others), max(0, _DEV_TYPES - len(own))))})


@dataclass(frozen=True)
class RecipeData:
    """What a run trains on. It can be pickled: the driver makes it, and the workers read from it."""

    sets: tuple[PreparedSet, ...]
    weights: tuple[float, ...]  # one for each set
    dev: tuple[DevSet, ...]
    set_types: tuple[SetTypes, ...]  # one for each set, with the descriptions of `data.descriptions`

    @cached_property
    def frequencies(self) -> Mapping[str, int]:
        return sum((Counter(data.types) for data in self.sets), Counter[str]())

    def types(self, ignored: Sequence[str] = ()) -> list[str]:
        return sorted({*self.frequencies} - {*ignored})

    def wider_than(self, max_width: int) -> int:
        """Returns how many mentions have more words than the widest span. No model of this width can find them."""
        return sum(
            mentions for data in self.sets for width, mentions in data.mention_widths.items() if width > max_width
        )

    @property
    def inside_words(self) -> int:
        """How many mentions begin or end inside a word of the model, so that nothing can be trained to find them."""
        return sum(data.inside_words for data in self.sets)

    def stream(self, recipe: Recipe, tokenizer: ModelTokenizer, config: ModelConfig) -> ExampleStream:
        """Returns the stream of batches.

        Raises `UserError` for a type or description that the tokenizer cannot read, and if every mention is wider
        than the model's widest span.
        """
        widths = {width for data in self.sets for width in data.mention_widths}
        if widths and min(widths) > config.widest:
            raise UserError(
                f"Every mention of {', '.join(recipe.data.train)} is wider than model.max_width, {config.max_width} "
                f"words, so nothing can be learnt from them; set model.max_width to at least {min(widths)}."
            )
        for label in self.types(recipe.data.ignored_types):
            tokenizer.label(label)
        for of_set in self.set_types:
            for label in of_set.names:
                tokenizer.label(of_set.sampling.descriptions.get(label, label))
        return ExampleStream(
            self.sets,
            self.weights,
            tokenizer,
            config,
            seed=recipe.seed,
            batch_tokens=recipe.schedule.batch_tokens,
            batch_texts=recipe.schedule.batch_texts,
            held_out=0 if recipe.data.dev else recipe.data.held_out,
            ignored_types=frozenset(recipe.data.ignored_types),
            sentence_rates=tuple(of_set.sampling.sentence_rate for of_set in self.set_types),
        )


def recipe_data(recipe: Recipe, cache: Place) -> RecipeData:
    """Opens the data that the recipe names. Data in another format are prepared below the directory `cache`.

    Raises `UserError` for data that cannot be found or read, or that holds nothing to train on.
    """
    section = recipe.data
    splitter, max_width = words_of(recipe.model)
    sets: list[PreparedSet] = []
    weights: list[float] = []
    set_types: list[SetTypes] = []
    ignored = frozenset(section.ignored_types)
    described = _descriptions(section)
    for name in section.train:
        opened = [data.counted_in(splitter) for data in _opened(name, section, max_width, splitter, cache)]
        sets += opened
        weights += [_weight(data, section.weights.get(name, 1.0), section.max_per_set) for data in opened]
        sampling = recipe.sampling_of(name)
        sampling = sampling.model_copy(update={"descriptions": {**described, **sampling.descriptions}})
        set_types += [SetTypes(sampling, _without(data.types, ignored)) for data in opened]
    if not any(set(data.types) - ignored for data in sets):
        raise UserError(f"The data sets {', '.join(section.train)} mention no type; there is nothing to train on.")
    if section.dev:
        named = [data for name in section.dev for data in _opened(name, section, max_width, splitter, cache)]
        dev = [_dev_set(data, None, ignored) for data in named]
    else:
        dev = [_dev_set(data, data.held_out(section.held_out, recipe.seed), ignored) for data in sets]
    if not any(data.examples for data in dev):
        raise UserError(
            f"Nothing of {shown(section.train)} is left for the dev score; name data.dev, or let data.held_out keep "
            "some of at least ten examples."
        )
    return RecipeData(tuple(sets), tuple(weights), tuple(data for data in dev if data.examples), tuple(set_types))


def _without(counts: Mapping[str, int], ignored: frozenset[str]) -> Mapping[str, int]:
    return {label: count for label, count in counts.items() if label not in ignored}


def _weight(data: PreparedSet, weight: float, most: int) -> float:
    return min(weight, most / max(data.rows, 1)) if most else weight


def _dev_set(data: PreparedSet, rows: frozenset[int] | None, ignored: frozenset[str]) -> DevSet:
    examples = [without_types(example, ignored) for example in data.examples(rows)]
    return DevSet(data.name, sorted(set(data.types) - ignored), examples)


def _opened(name: str, section: DataSection, max_width: int, splitter: str, cache: Place) -> list[PreparedSet]:
    if "://" in name:
        return open_prepared(locate(name))
    path = Path(section.root, name)
    if path.is_dir() and read_statistics(locate(str(path))):
        return open_prepared(locate(str(path)))
    base = path.with_name(path.name.partition(":")[0])
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+(:\w+)?", name) is not None and not path.parent.is_dir()
    if not base.exists() and not hub_id:
        raise UserError(
            f"The recipe's data {name!r} is not at {path.absolute()}; say where it is with data.root=DIRECTORY."
        )
    output = cache.inside(re.sub(r"[^A-Za-z0-9.-]+", "_", name))
    source = str(path) if base.exists() else name
    prepare([source], output, max_width=max_width, max_bad_rate=section.max_bad_rate, splitter=splitter)
    return open_prepared(output)


def _descriptions(section: DataSection) -> Mapping[str, str]:
    if not section.descriptions:
        return {}
    path = Path(section.root, section.descriptions)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The descriptions {path} cannot be read ({one_line(error)}).") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise UserError(f"The descriptions {path} must be a JSON object of texts, {{type: description}}.")
    return found
