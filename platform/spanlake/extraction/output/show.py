"""What an extraction found, at a glance: counts by label, frequent forms, and passages with their entities marked."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from shlex import quote
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spanlake.errors import UserError
from spanlake.extraction.output.ledger import Ledger
from spanlake.extraction.output.rows import batches, committed_units
from spanlake.extraction.source.texts import decoded, text_path, text_type, text_values

ROWS = 200_000  # read at most, from the beginning: a glance, where `audit` counts all
_FREQUENT = 4
_CANDIDATES = 50  # passages of a batch that are looked at
_PASSAGE = 320  # characters of an example
_MARGIN = 40  # of them before its first entity
_STYLES = ("bold cyan", "bold green", "bold magenta", "bold yellow", "bold blue", "bold red")


@dataclass
class Glance:
    """Counts over the rows read, and the passages that show most."""

    rows: int = 0
    forms: dict[str, Counter[str]] = field(default_factory=dict)  # label -> surface form -> mentions
    passages: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)  # text, entities


def glance(ledger: Ledger, examples: int) -> Glance:
    """Read up to ROWS rows of what is committed.

    Raises: UserError for an output without texts or lists of entities.
    """
    text_column = ledger.manifest["text_column"]
    lacking = [name for name in (text_column, "entities") if text_type(ledger.schema, name) is None]
    if lacking:
        raise UserError(
            f"{ledger.output.uri} has no column {lacking[0]}, which `spanlake show` reads: use `spanlake report`."
        )
    found = Glance(forms={label: Counter() for label in ledger.manifest["settings"]["labels"]})
    columns = [text_path(ledger.schema.names, text_column)[0], "entities"]
    for batch in chain.from_iterable(batches(ledger, unit, columns) for unit in committed_units(ledger)):
        _count_forms(found, batch.column("entities"))
        _keep_passages(found, decoded(text_values(batch, text_column))[0], batch.column("entities"), examples)
        found.rows += batch.num_rows
        if found.rows >= ROWS:
            break
    return found


def _count_forms(found: Glance, entities: pa.Array) -> None:
    flat = pc.list_flatten(entities)
    table = pa.table({"label": pc.struct_field(flat, "label"), "text": pc.struct_field(flat, "text")})
    for row in table.group_by(["label", "text"]).aggregate([([], "count_all")]).to_pylist():
        found.forms.setdefault(row["label"], Counter())[row["text"]] += row["count_all"]


def _keep_passages(found: Glance, texts: pa.Array, entities: pa.Array, examples: int) -> None:
    """Keep the passages with most kinds of entity, then most entities; of equals, the first."""
    counts = pc.fill_null(pc.list_value_length(entities), 0).to_pylist()
    rows = sorted((row for row, count in enumerate(counts) if count), key=lambda row: -counts[row])[:_CANDIDATES]
    passages = [cropped(texts[row].as_py(), entities[row].as_py()) for row in rows]
    found.passages = sorted([*found.passages, *passages], key=_richness, reverse=True)[:examples]


def cropped(text: str, entities: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The part of a long text that begins a little before its first entity, and the entities inside it."""
    if len(text) <= _PASSAGE:
        return text, entities
    start = _cut_at_space(text, max(0, min(entity["start"] for entity in entities) - _MARGIN))
    stop = _cut_at_space(text, min(len(text), start + _PASSAGE))
    before, after = "… " if start else "", "…" if stop < len(text) else ""
    shift = len(before) - start
    inside = [entity for entity in entities if entity["end"] <= stop]
    shifted = [entity | {"start": entity["start"] + shift, "end": entity["end"] + shift} for entity in inside]
    return before + text[start:stop] + after, shifted


def _cut_at_space(text: str, position: int) -> int:
    """A position at most _MARGIN before the given one where a word begins; the given one, where there is none."""
    if position in (0, len(text)):
        return position
    space = text.rfind(" ", max(0, position - _MARGIN), position)
    return position if space < 0 else space + 1


def _richness(passage: tuple[str, list[dict[str, Any]]]) -> tuple[int, int]:
    return len({entity["label"] for entity in passage[1]}), len(passage[1])


# --- drawing ------------------------------------------------------------------------------------------------------


def draw(ledger: Ledger, found: Glance, console: Console) -> None:
    """Print a glance: with colour and frames on a terminal, as plain text elsewhere."""
    console.print(_label_table(found, _styles(list(found.forms))))
    console.print(_caption(ledger, found), style="dim")
    if found.passages:
        console.print(examples(found.passages, list(found.forms)))
    console.print(_next_steps(ledger), soft_wrap=True)


def examples(passages: Sequence[tuple[str, list[dict[str, Any]]]], labels: Sequence[str]) -> Panel:
    """Passages, each a text and its entities, with these marked."""
    marked = [_marked(text, entities, _styles(labels)) for text, entities in passages]
    return Panel(Group(*_with_gaps(marked)), title="examples", title_align="left", border_style="dim")


def _styles(labels: Sequence[str]) -> dict[str, str]:
    return {label: _STYLES[index % len(_STYLES)] for index, label in enumerate(labels)}


def _label_table(found: Glance, styles: dict[str, str]) -> Table:
    table = Table(header_style="bold", title_justify="left")
    table.add_column("label")
    table.add_column("mentions", justify="right")
    table.add_column("distinct", justify="right")
    table.add_column("most frequent", overflow="fold")
    for label, forms in sorted(found.forms.items(), key=lambda item: -item[1].total()):
        frequent = ", ".join(f"{_on_one_line(form)} ({count:,})" for form, count in forms.most_common(_FREQUENT))
        table.add_row(Text(label, style=styles[label]), f"{forms.total():,}", f"{len(forms):,}", Text(frequent))
    return table


def _caption(ledger: Ledger, found: Glance) -> str:
    rows, model = ledger.manifest["source"]["rows"], ledger.manifest["model"]
    part = "all" if found.rows == rows else f"the first {found.rows:,} of"
    return f"{part} {rows:,} rows, read with {model['name']} ({model['fingerprint'][:12]})"


def _marked(text: str, entities: list[dict[str, Any]], styles: dict[str, str]) -> Text:
    """The text with each entity in brackets, followed by its label; of entities that overlap, the longest."""
    drawn, position = Text(), 0
    for entity in _apart(entities):
        style = styles.get(entity["label"], _STYLES[0])
        drawn.append(_on_one_line(text[position : entity["start"]]))
        drawn.append(f"[{_on_one_line(entity['text'])}]", style=style)
        drawn.append(f" {entity['label']} {entity['score']:.2f}", style="dim italic")
        position = entity["end"]
    return drawn.append(_on_one_line(text[position:]))


def _apart(entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chosen: list[dict[str, Any]] = []
    for entity in sorted(entities, key=lambda entity: (entity["start"] - entity["end"], entity["start"])):
        if all(entity["end"] <= other["start"] or other["end"] <= entity["start"] for other in chosen):
            chosen.append(entity)
    return sorted(chosen, key=lambda entity: entity["start"])


def _on_one_line(text: str) -> str:
    """The text without line breaks and control characters, which would spoil a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _with_gaps(passages: Sequence[Text]) -> Iterator[Text]:
    for index, passage in enumerate(passages):
        if index:
            yield Text()
        yield passage


def _next_steps(ledger: Ledger) -> Text:
    output, source = ledger.output.uri, ledger.manifest["source"]["uri"]
    steps = [
        ("prove that every row is there", f"spanlake audit {quote(output)}"),
        (
            "look for anything else, by its name",
            f"spanlake extract {quote(source)} other-output --labels event,product",
        ),
        ("read it in Python", f"pandas.read_parquet({output!r})"),
    ]
    lines = Text("what to try next\n", style="bold")
    for purpose, command in steps:
        lines.append(f"  {purpose}: ", style="not bold").append(f"{command}\n", style="not bold cyan")
    return lines
