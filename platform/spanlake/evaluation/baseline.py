"""Language models as baselines: what the model behind a chat endpoint finds in the texts of sets.

Two styles of asking: `conversation`, one question for each type (Zhou et al. 2023; Figure 1a of Zaratiana et al. 2023),
and `tuples`, one question for all types, answered with a list of tuples (Figure 3).
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from spanlake.chat.answers import read_rows
from spanlake.chat.endpoint import Chat, Endpoint, EndpointError, Message, Price, UnansweredError, Usage
from spanlake.chat.parallel import in_parallel
from spanlake.data.examples import Example
from spanlake.data.mentions import find_mentions
from spanlake.decoding import Entity
from spanlake.errors import one_line, shown
from spanlake.evaluation.scores import ModelFacts, Outcome
from spanlake.evaluation.sets import BenchmarkSet
from spanlake.splitters.find import find_splitter

Style = Literal["conversation", "tuples"]
STYLES: tuple[Style, ...] = get_args(Style)
_MOST_NAMED = 20  # problems


@dataclass
class Answers:
    """What became of the questions of a run. `problems` counts answers and mentions, by what was wrong with them."""

    style: Style
    price: Price | None
    usage: Usage = field(default_factory=Usage)
    questions: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)  # the first problems

    def note(self, where: str, problem: str, what: str, count: int = 1) -> None:
        self.problems[problem] += count
        if len(self.named) < _MOST_NAMED:
            self.named.append(f"{where}: {problem}: {what}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "style": self.style,
            "questions": self.questions,
            **self.usage.to_dict(self.price),
            "problems": dict(sorted(self.problems.items())),
            "first_problems": self.named,
        }

    def sentence(self) -> str:
        problems = ", ".join(f"{count:,} {problem}" for problem, count in sorted(self.problems.items())) or "none"
        return (
            f"{self.usage.answers:,} of {self.questions:,} questions answered; {self.usage.sentence(self.price)}; "
            f"problems: {problems}"
        )


def ask_sets(
    endpoint: Endpoint, style: Style, price: Price | None, sets: Sequence[BenchmarkSet], *, nested: bool = False
) -> tuple[ModelFacts, list[Outcome], Answers]:
    """Asks the endpoint about every text of each set. An answer that cannot be used is counted, and the rest goes on.

    A string that the model answers counts as a mention at each place where it occurs in the text. It scores 1.

    Raises `EndpointError` where the endpoint is down, `UserError` where it refuses the key or the model.
    """
    answers = Answers(style, price)
    outcomes = asyncio.run(_ask_sets(endpoint, sets, nested, answers))
    facts = ModelFacts(endpoint.model, "", sys.maxsize, asked=f"asked at {endpoint.shown}, style {style}")
    return facts, outcomes, answers


async def _ask_sets(endpoint: Endpoint, sets: Sequence[BenchmarkSet], nested: bool, answers: Answers) -> list[Outcome]:
    outcomes = []
    async with Chat(endpoint) as chat:
        for benchmark in sets:
            found = await _ask_set(chat, endpoint.concurrency, benchmark, nested or benchmark.nested, answers)
            outcomes.append(Outcome(benchmark, found))
        answers.usage = chat.usage
    if answers.questions and not answers.usage.answers:
        raise EndpointError(
            f"The endpoint {endpoint.shown} answered none of {answers.questions} questions (the first: "
            f"{answers.named[0]}); run the command again when it answers."
        )
    return outcomes


@dataclass(frozen=True)
class _Question:
    number: int  # of the text in its set
    example: Example
    labels: Sequence[str]  # one where each type has a question of its own


async def _ask_set(
    chat: Chat, concurrency: int, benchmark: BenchmarkSet, nested: bool, answers: Answers
) -> list[list[Entity]]:
    questions = []
    for number, example in enumerate(benchmark.examples):
        labels = benchmark.asked(example)
        parts = [[label] for label in labels] if answers.style == "conversation" else [labels] if labels else []
        questions += [_Question(number, example, part) for part in parts]

    async def ask(question: _Question) -> list[tuple[str, str]]:
        return await _ask(chat, question, f"{benchmark.name}, text {question.number}", answers)

    said = await in_parallel(ask, questions, concurrency)
    wanted: list[list[tuple[str, str]]] = [[] for _ in benchmark.examples]
    for question, pairs in zip(questions, said, strict=True):
        wanted[question.number] += pairs
    found = []
    split = find_splitter("unicode")  # its words are those of every script
    for number, (example, pairs) in enumerate(zip(benchmark.examples, wanted, strict=True)):
        mentions, dropped = find_mentions(example.text, pairs, nested=nested, split=split)
        for reason, count in dropped.items():
            answers.note(f"{benchmark.name}, text {number}", reason, shown([string for _, string in pairs]), count)
        found.append([Entity(m.start, m.end, example.text[m.start : m.end], m.label, 1.0) for m in mentions])
    return found


async def _ask(chat: Chat, question: _Question, where: str, answers: Answers) -> list[tuple[str, str]]:
    """Returns the pairs (label, string) of an answer."""
    ask = _conversation if answers.style == "conversation" else _tuples
    answers.questions += 1
    try:
        reply = await chat.ask(ask(question.example.text, question.labels))
        rows = read_rows(reply.text)
    except UnansweredError as error:
        answers.note(where, "unanswered", one_line(error))
        return []
    except ValueError:
        answers.note(where, "unreadable", shown(reply.text))
        return []
    if reply.cut or not rows.whole:
        answers.note(where, "not_whole", shown(reply.text))
    if rows.malformed:
        answers.note(where, "malformed", shown(reply.text), rows.malformed)
    if answers.style == "conversation":
        return [(question.labels[0], row[0]) for row in rows.rows]
    asked = set(question.labels)
    pairs = []
    for string, *types in rows.rows:
        labels = [label for label in (each.strip().lower() for each in types) if label in asked]
        if not labels:
            answers.note(where, "other_type", shown((string, *types)))
        pairs += [(label, string) for label in labels]
    return pairs


def _conversation(text: str, labels: Sequence[str]) -> list[Message]:
    return [
        {
            "role": "system",
            "content": "A virtual assistant answers questions from a user based on the provided text. "
            "It answers with a JSON list of strings that are copied from the text, and with [] if there are none.",
        },
        {"role": "user", "content": f"Text: {text}"},
        {"role": "assistant", "content": "I've read this text."},
        {"role": "user", "content": f"What describes {labels[0]} in the text?"},
    ]


def _tuples(text: str, labels: Sequence[str]) -> list[Message]:
    return [
        {"role": "system", "content": "You are a helpful information extraction system."},
        {
            "role": "user",
            "content": "Given a passage, your task is to extract all entities of the types below and identify their "
            "entity types. Copy each entity from the passage. The output should be in a list of tuples of the "
            'following format: [("entity 1", "type of entity 1"), ... ], and [] if there are none.\n\n'
            f"Types: {', '.join(labels)}\n\nPassage: {text}",
        },
    ]
