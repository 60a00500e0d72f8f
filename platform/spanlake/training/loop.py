"""Trains a span model in one process."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel

from spanlake.data.batches import TokenizedExample, Unusable, plan_epoch, tokenize, training_batch
from spanlake.data.examples import Example, read_word_lists
from spanlake.errors import ShortfallError, UserError
from spanlake.evaluation.metrics import Tally
from spanlake.inference.extractor import Extractor
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.model import SpanModel, drop_pooler, encoder_values
from spanlake.modeling.pretrained import pretrained_tokenizer
from spanlake.modeling.tokens import PromptTokenizer
from spanlake.package import Package, open_package, prompt_tokenizer, repack
from spanlake.training.loss import span_loss
from spanlake.training.recipe import ModelSection, Recipe

# The published checkpoints' tokens, in their order, so that a trained model can be written in their form.
_PROMPT_TOKENS = ["[FLERT]", "<<ENT>>", "<<SEP>>"]
_LOG_EVERY = 100  # steps
_PROMPT_ROOM = 64  # sub-words that length planning sets aside for the prompt


@dataclass
class DataSet:
    name: str
    types: list[str]
    train: list[Example]
    dev: list[Example]


def train(recipe: Recipe, run_directory: Path) -> Path:
    """Runs the recipe and returns the directory of the package, `run_directory/package`.

    Raises `UserError` for data or an encoder that cannot be read, `ShortfallError` when the loss stops being finite.
    """
    torch.manual_seed(recipe.seed)
    log = run_directory / "metrics.jsonl"
    run_directory.mkdir(parents=True, exist_ok=True)
    (run_directory / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1), encoding="utf-8")
    sets = [read_set(Path(recipe.data.root, file), recipe) for file in recipe.data.train]
    tokenizer, model = starting_model(recipe.model)
    prompts = prompt_tokenizer(tokenizer, model.config)
    examples, unusable = _tokenized(sets, prompts, model.config)
    if not examples:
        raise UserError(
            f"None of the {unusable.texts_too_long} texts fits the encoder's {model.config.max_tokens} sub-words with "
            "its labels; give shorter texts or an encoder that reads more."
        )
    _report({"texts": len(examples), "unusable_mentions": asdict(unusable)}, log)
    metadata: dict[str, Any] = {
        "license": recipe.license,
        "labels_seen": sorted({label for data in sets for label in data.types}),
        "training": {"recipe": recipe.to_dict(), "texts": len(examples), "torch": torch.__version__},
    }
    best = -1.0
    for step in _optimise(recipe, model, prompts, examples, log):
        package = Package(recipe.name, model, prompts, metadata, "")
        f1 = dev_score(package, sets)
        _report({"step": step, "dev_f1": f1}, log)
        if f1 > best:
            best = f1
            known = {**metadata, "training": {**metadata["training"], "step": step, "dev_f1": f1}}
            _replace_package(run_directory / "package", package, known)
    return run_directory / "package"


def dev_score(package: Package, sets: list[DataSet]) -> float:
    """The mean over data sets of the exact-match F1 on their dev parts, 0 to 1.

    A text is asked for all types of its data set, or for its own and its stated negatives where it states any.
    """
    package.model.eval()
    extractor = Extractor(package, next(package.model.parameters()).device, torch.float32)
    scores = []
    for data in sets:
        tally = Tally()
        asked = [
            sorted({*(m.label for m in e.mentions), *e.negatives}) if e.negatives else data.types for e in data.dev
        ]
        found = extractor.extract([example.text for example in data.dev], asked)
        for example, entities in zip(data.dev, found, strict=True):
            tally.add(
                ((entity.start, entity.end, entity.label) for entity in entities),
                ((mention.start, mention.end, mention.label) for mention in example.mentions),
            )
        scores.append(tally.overall().f1)
    return sum(scores) / len(scores)


def _dev_types(example: Example, data: DataSet) -> list[str]:
    if not example.negatives:
        return data.types
    return sorted({*(mention.label for mention in example.mentions), *example.negatives})


def _replace_package(directory: Path, package: Package, metadata: dict[str, Any]) -> None:
    draft = directory.with_name("package.new")
    shutil.rmtree(draft, ignore_errors=True)
    repack(Package(package.name, package.model, package.tokenizer, metadata, ""), draft, name=package.name, int8=False)
    shutil.rmtree(directory, ignore_errors=True)
    draft.rename(directory)


def _report(record: dict[str, Any], log: Path) -> None:
    with open(log, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
    print(json.dumps(record), file=sys.stderr, flush=True)


def read_set(path: Path, recipe: Recipe) -> DataSet:
    """The last `held_out` examples of a seeded shuffle are the dev part."""
    ignored = set(recipe.data.ignored_types)
    examples = [
        Example(example.text, tuple(m for m in example.mentions if m.label not in ignored), example.negatives)
        for example in read_word_lists(path)
    ]
    if not examples:
        raise UserError(f"The training file {path} holds no examples.")
    types = sorted({mention.label for example in examples for mention in example.mentions})
    order = np.random.default_rng(recipe.seed).permutation(len(examples))
    cut = len(examples) - min(recipe.data.held_out, len(examples) // 10)
    return DataSet(path.name, types, [examples[i] for i in order[:cut]], [examples[i] for i in order[cut:]])


def starting_model(section: ModelSection) -> tuple[Tokenizer, SpanModel]:
    """Raises `UserError` where the recipe names no encoder and no model to start from, or both."""
    if bool(section.encoder) == bool(section.start):
        raise UserError("The recipe names model.encoder and model.start, or neither; name one of them.")
    if section.encoder:
        return from_encoder(section)
    package = open_package(section.start)
    return package.tokenizer.backend, package.model


def from_encoder(section: ModelSection) -> tuple[Tokenizer, SpanModel]:
    """A model with a pretrained encoder and a random head.

    Raises `UserError` where `section.encoder` holds no encoder that the transformers library can read.
    """
    try:
        config = AutoConfig.from_pretrained(section.encoder)
        for key in ("attention_probs_dropout_prob", "hidden_dropout_prob"):
            setattr(config, key, section.encoder_dropout)
        encoder = AutoModel.from_pretrained(section.encoder, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"The encoder {section.encoder!r} cannot be read: {str(error).splitlines()[0]}") from error
    tokenizer = pretrained_tokenizer(section.encoder)
    tokenizer.add_special_tokens(_PROMPT_TOKENS)
    entity_id = tokenizer.token_to_id(_PROMPT_TOKENS[1])
    assert entity_id is not None
    drop_pooler(encoder)
    encoder.resize_token_embeddings(tokenizer.get_vocab_size(), mean_resizing=True)
    model_config = ModelConfig(
        encoder=encoder_values(encoder.config),
        hidden_size=section.hidden_size,
        span_head=section.span_head,
        entity_token=_PROMPT_TOKENS[1],
        separator_token=_PROMPT_TOKENS[2],
        entity_token_id=entity_id,
        max_width=section.max_width,
        lstm=section.lstm,
        dropout=section.dropout,
    )
    return tokenizer, SpanModel(model_config, encoder)


def _tokenized(
    sets: list[DataSet], prompts: PromptTokenizer, config: ModelConfig
) -> tuple[list[TokenizedExample], Unusable]:
    unusable = Unusable()
    examples = []
    for data in sets:
        examples += tokenize(
            data.train,
            data.types,
            prompts,
            max_width=config.max_width,
            max_tokens=config.max_tokens - prompts.special_tokens - 2 * _PROMPT_ROOM,
            unusable=unusable,
        )
    return examples, unusable


def _batches(recipe: Recipe, examples: list[TokenizedExample]) -> Iterator[list[int]]:
    lengths = [example.tokens + _PROMPT_ROOM for example in examples]
    schedule = recipe.schedule
    for epoch in range(sys.maxsize):
        rng = np.random.default_rng((recipe.seed, 1, epoch))
        yield from plan_epoch(lengths, schedule.batch_tokens, schedule.batch_texts, rng)


def _optimise(
    recipe: Recipe, model: SpanModel, prompts: PromptTokenizer, examples: list[TokenizedExample], log: Path
) -> Iterator[int]:
    """Trains `model` in place, and yields the step whenever it is time to evaluate and after the last one."""
    schedule, optim = recipe.schedule, recipe.optim
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    encoder = {id(parameter) for parameter in model.encoder.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in encoder], "lr": optim.encoder_lr},
        {"params": [p for p in model.parameters() if id(p) not in encoder], "lr": optim.head_lr},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=optim.weight_decay, fused=True)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, schedule.steps, schedule.warmup))
    started, texts, total = time.monotonic(), 0, 0.0
    for step, chosen in zip(range(1, schedule.steps + 1), _batches(recipe, examples), strict=False):
        model.train()
        batch, targets = training_batch(
            [examples[i] for i in chosen],
            prompts,
            recipe.sampling,
            max_width=model.config.max_width,
            pad_id=model.config.pad_token_id,
            rng=np.random.default_rng((recipe.seed, 2, step)),
        )
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.parallel.precision == "bfloat16"):
            logits = model(batch.to(device))
        loss = span_loss(logits, targets.to(device), batch.word_counts, batch.type_counts, optim.positive_weight)
        if not torch.isfinite(loss):
            raise ShortfallError(f"The loss at step {step} is {loss.item()}; lower optim.encoder_lr and optim.head_lr.")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_norm)
        optimiser.step()
        rates.step()
        texts += len(chosen)
        total += loss.item()
        if step % _LOG_EVERY == 0:
            rate = texts / (time.monotonic() - started)
            _report({"step": step, "loss": total / _LOG_EVERY, "texts": texts, "texts_per_second": rate}, log)
            total = 0.0
        if step % schedule.evaluate_every == 0 or step == schedule.steps:
            yield step


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over the share `warmup` of the steps, then cosine decay to zero."""
    rising = max(1, int(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
