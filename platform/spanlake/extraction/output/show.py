"""Shows an output at a glance: counts by label, frequent forms, and passages with their entities marked."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from shlex import quote

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spanlake.errors import UserError
from spanlake.extraction.output.ledger import Ledger, labels_of
from spanlake.extraction.output.passages import Passage, passages_of
from spanlake.extraction.output.rows import batches, committed_units
from spanlake.extraction.source.texts import decoded, text_path, text_type, text_values

ROWS = 200_000  # the most that are read, from the beginning; `audit` counts all
_FREQUENT = 4
_CANDIDATES = 50  # passages of a batch that are considered
LENGTH = 320  # characters of an example
MARGIN = 40  # the part of them before the first entity
_STYLES = ("bold cyan", "bold green", "bold magenta", "bold yellow", "bold blue", "bold red")


@dataclass
class Glance:
    """Counts over the rows that were read, and the passages with most entities."""

    rows: int = 0
    forms: dict[str, Counter[str]] = field(default_factory=dict)  # label -> surface form -> mentions
    passages: list[Passage] = field(default_factory=list)


def glance(ledger: Ledger, examples: int) -> Glance:
    """Returns the counts and passages of up to ROWS committed rows.

    Raises UserError for an output without texts or lists of entities.
    """
    names = ledger.text_columns
    lacking = [name for name in (*names, "entities") if text_type(ledger.schema, name) is None]
    if lacking:
        raise UserError(
            f"{ledger.output.uri} has no column {lacking[0]}, which `spanlake show` reads: use `spanlake report`."
        )
    found = Glance(forms={label: Counter() for label in labels_of(ledger.manifest)})
    columns = [*dict.fromkeys(text_path(ledger.schema.names, name)[0] for name in names), "entities"]
    for batch in chain.from_iterable(batches(ledger, unit, columns) for unit in committed_units(ledger)):
        _count_forms(found, batch.column("entities"))
        texts = {name: decoded(text_values(batch, name)) for name in names}
        _keep_passages(found, texts, batch.column("entities"), examples)
        found.rows += batch.num_rows
        if found.rows >= ROWS:
            break
    return found


def _count_forms(found: Glance, entities: pa.Array) -> None:
    flat = pc.list_flatten(entities)
    table = pa.table({"label": pc.struct_field(flat, "label"), "text": pc.struct_field(flat, "text")})
    for row in table.group_by(["label", "text"]).aggregate([([], "count_all")]).to_pylist():
        found.forms.setdefault(row["label"], Counter())[row["text"]] += row["count_all"]


def _keep_passages(found: Glance, texts: Mapping[str, pa.Array], entities: pa.Array, examples: int) -> None:
    """Keeps the passages with most labels, then those with most entities, then the first."""
    counts = pc.fill_null(pc.list_value_length(entities), 0).to_pylist()
    rows = sorted((row for row, count in enumerate(counts) if count), key=lambda row: -counts[row])[:_CANDIDATES]
    passages = [
        passage.cropped(LENGTH, MARGIN)
        for row in rows
        for passage in passages_of({name: values[row] for name, values in texts.items()}, entities[row])
    ]
    found.passages = sorted([*found.passages, *passages], key=_richness, reverse=True)[:examples]


def _richness(passage: Passage) -> tuple[int, int]:
    return len({entity["label"] for entity in passage.entities}), len(passage.entities)


# --- drawing ------------------------------------------------------------------------------------------------------


def draw(ledger: Ledger, found: Glance, console: Console) -> None:
    """Prints a glance: with colour and frames on a terminal, otherwise as plain text."""
    console.print(_label_table(found, _styles(list(found.forms))))
    console.print(_caption(ledger, found), style="dim")
    if found.passages:
        console.print(examples(found.passages, list(found.forms)))
    console.print(_next_steps(ledger), soft_wrap=True)


def examples(passages: Sequence[Passage], labels: Sequence[str]) -> Panel:
    """Returns the passages with their entities marked."""
    marked = [_marked(passage, _styles(labels)) for passage in passages]
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


def _marked(passage: Passage, styles: dict[str, str]) -> Text:
    """Returns the text with each entity in brackets and its label after it. Entities inside others are not marked."""
    drawn = Text()
    for piece in passage.pieces():
        if isinstance(piece, str):
            drawn.append(_on_one_line(piece))
            continue
        entity = piece.entity
        drawn.append(f"[{_on_one_line(entity['text'])}]", style=styles.get(entity["label"], _STYLES[0]))
        drawn.append(f" {entity['label']} {entity['score']:.2f}", style="dim italic")
    return drawn


def _on_one_line(text: str) -> str:
    """Returns the text without line breaks and control characters, which would disturb a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _with_gaps(passages: Sequence[Text]) -> Iterator[Text]:
    for index, passage in enumerate(passages):
        if index:
            yield Text()
        yield passage


def _next_steps(ledger: Ledger) -> Text:
    output, source = ledger.output.uri, ledger.manifest["source"]["uri"]
    steps = [
        ("check that every row is there", f"spanlake audit {quote(output)}"),
        (
            "find other entities",
            f"spanlake extract {quote(source)} other-output --labels event,product",
        ),
        ("read it in Python", f"pandas.read_parquet({output!r})"),
    ]
    lines = Text("what to try next\n", style="bold")
    for purpose, command in steps:
        lines.append(f"  {purpose}: ", style="not bold").append(f"{command}\n", style="not bold cyan")
    return lines
