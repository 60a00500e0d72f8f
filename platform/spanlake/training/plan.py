"""What a run of a recipe would need, found without starting it and without a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spanlake.data.prepared import read_statistics
from spanlake.data.stream import PROMPT_ROOM
from spanlake.modeling.bi_encoder import BiEncoderModel
from spanlake.modeling.model import SpanModel, new_encoder
from spanlake.storage import locate
from spanlake.training.encoders import bi_encoder_config, model_config, planned_config, starting_package
from spanlake.training.lora import add_lora
from spanlake.training.recipe import Recipe

_WORDS_PER_TOKEN = 0.7  # for English text; only for estimates


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker."""

    weights: float
    gradients: float
    optimiser: float
    on_host: float  # bytes of the optimiser's state, if it is offloaded

    @property
    def on_device(self) -> float:
        return self.weights + self.gradients + self.optimiser


@dataclass(frozen=True)
class Plan:
    encoder: int  # parameters
    head: int  # parameters
    trained: int  # parameters of both, or of the adapter
    origin: str  # where the encoder's shape comes from
    activations: float  # bytes on one worker; an estimate
    most_tokens: int  # padded sub-words
    most_texts: int
    data: tuple[str, ...]  # one line about each data set

    @property
    def parameters(self) -> int:
        return self.encoder + self.head


def plan(recipe: Recipe) -> Plan:
    """Raises `UserError` for an encoder whose shape is not known without a network."""
    model, origin = _model(recipe)
    if recipe.model.lora:
        add_lora(model, recipe.model.lora)
    encoder = sum(parameter.numel() for part in model.encoders() for parameter in part.parameters())
    return Plan(
        encoder=encoder,
        head=sum(parameter.numel() for parameter in model.parameters()) - encoder,
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        origin=origin,
        activations=_activations(recipe, model),
        most_tokens=recipe.schedule.steps * recipe.schedule.batch_tokens,
        most_texts=recipe.schedule.steps * recipe.schedule.batch_texts,
        data=tuple(f"{name}: {_known(name, recipe)}" for name in recipe.data.train),
    )


def memory(parameters: int, trained: int, stage: int, workers: int, offload: bool) -> Memory:
    """Returns the bytes of weights and gradients in float32, and of two moments of AdamW.

    Only the `trained` ones of the parameters have gradients and moments. DeepSpeed keeps a second copy of them from
    stage 1 on. ZeRO splits the optimiser's state among the workers
    from stage 1 on, the gradients from 2 and the weights from 3 (Rajbhandari et al. 2020, section 5).
    """
    sizes = (4 * parameters, 4 * trained, (12 if stage else 8) * trained)
    offload = offload and stage > 0
    share = [1.0 if stage < first else 1 / workers for first in (3, 2, 1)]
    weights, gradients, optimiser = (size * part for size, part in zip(sizes, share, strict=True))
    return Memory(weights, gradients, 0.0 if offload else optimiser, optimiser if offload else 0.0)


def plan_text(recipe: Recipe) -> str:
    """Returns the plan as `spanlake train --dry-run` prints it."""
    found, schedule, parallel = plan(recipe), recipe.schedule, recipe.parallel
    fewest, most = parallel.workers
    lines = [
        f"recipe   {recipe.name}",
        f"model    {_name(recipe)}: {found.parameters / 1e6:.1f} M parameters, {found.encoder / 1e6:.1f} M of them in "
        f"the encoder (by {found.origin}) and {found.head / 1e6:.1f} M in the head",
        *([f"adapter  {found.trained:,} parameters, which alone are trained"] if recipe.model.lora else []),
        f"workers  {f'{most}' if fewest == most else f'{fewest} to {most}'}, each with {parallel.gpus_per_worker} GPU "
        f"and {parallel.cpus_per_worker} CPU; ZeRO stage {parallel.zero_stage}, {parallel.precision}",
        *_memory_lines(found, recipe),
        f"steps    {schedule.steps:,}, of which {int(schedule.steps * schedule.warmup):,} warm up; a score every "
        f"{schedule.evaluate_every:,}, a checkpoint every {recipe.checkpoint.every:,}",
        f"tokens   at most {found.most_tokens:,} padded sub-words in at most {found.most_texts:,} texts: "
        f"{schedule.batch_tokens:,} in {schedule.batch_texts:,} a step",
        *(f"data     {line}" for line in found.data),
    ]
    return "\n".join(lines)


def _memory_lines(found: Plan, recipe: Recipe) -> list[str]:
    parallel = recipe.parallel
    offload = parallel.offload == "cpu"
    counts = sorted({parallel.workers[1], 1, 2, 4, 8})
    mine = memory(found.parameters, found.trained, parallel.zero_stage, parallel.workers[1], offload)
    host = f" and {_size(mine.on_host)} in host memory" if offload else ""
    lines = [
        f"memory   on each of {parallel.workers[1]}: weights {_size(mine.weights)}, gradients {_size(mine.gradients)}, "
        f"optimiser {_size(mine.optimiser)}{host}; together, by ZeRO stage and workers:",
        "              stage   " + "".join(f"{f'of {count}':>10}" for count in counts),
    ]
    for stage in range(4):
        used = [memory(found.parameters, found.trained, stage, count, offload).on_device for count in counts]
        mark = "*" if stage == parallel.zero_stage else " "
        lines.append(f"         {mark} {stage:>8}   " + "".join(f"{_size(size):>10}" for size in used))
    checkpointing = ", with gradient checkpointing" if parallel.gradient_checkpointing else ""
    return [*lines, f"         and for activations, as an estimate{checkpointing}, {_size(found.activations)}"]


def _model(recipe: Recipe) -> tuple[SpanModel, str]:
    """Returns the model without memory for its weights. A model that the recipe goes on from is loaded."""
    section = recipe.model
    if section.start:
        return starting_package(section).model, "its package"
    config, origin = planned_config(section)
    if section.labels:
        labels, _ = planned_config(section.labels)
        with torch.device("meta"):
            apart = bi_encoder_config(section, config, labels)
            return BiEncoderModel(apart, new_encoder(config), new_encoder(labels)), origin
    with torch.device("meta"):
        return SpanModel(model_config(section, config, None), new_encoder(config)), origin


def _activations(recipe: Recipe, model: SpanModel) -> float:
    """Returns the bytes that the forward pass keeps for the backward pass.

    Each layer of the encoder keeps 17 values per sub-word and unit of width, and 2.5 per pair of sub-words and head
    (Korthikanti et al. 2023, section 4.1). The span head keeps 3 values per span and unit of its inner layer.
    """
    config: Any = model.encoder.config
    schedule = recipe.schedule
    share = math.ceil(schedule.batch_tokens / recipe.parallel.workers[0])
    tokens = min(schedule.micro_tokens or share, share)
    longest = min(tokens, model.config.max_tokens, math.ceil(model.config.max_words / _WORDS_PER_TOKEN))
    size = 2 if recipe.parallel.precision == "bfloat16" else 4
    width, layers = config.hidden_size, config.num_hidden_layers
    layer = tokens * (17 * width + 2.5 * config.num_attention_heads * longest)
    encoder = layer + layers * tokens * width if recipe.parallel.gradient_checkpointing else layer * layers
    spans = tokens * _WORDS_PER_TOKEN * model.config.max_width
    return size * (encoder + 3 * spans * 4 * model.config.hidden_size)


def _known(name: str, recipe: Recipe) -> str:
    path = Path(recipe.data.root, name)
    statistics = (
        read_statistics(locate(name if "://" in name else str(path))) if "://" in name or path.is_dir() else None
    )
    if statistics is None:
        if path.exists():
            return "here, to be prepared when the run begins"
        return f"not at {path.absolute()}; a Hub id is fetched when the run begins"
    texts, schedule = statistics["examples"], recipe.schedule
    a_text = statistics["words"] / texts / _WORDS_PER_TOKEN + PROMPT_ROOM
    a_step = min(schedule.batch_texts, schedule.batch_tokens / a_text)
    return (
        f"{texts:,} texts, {statistics['mentions']:,} mentions, {statistics['types']:,} types; if it were alone, "
        f"read {schedule.steps * a_step / texts:.1f} times, in about {schedule.steps * a_step * a_text:,.0f} sub-words"
    )


def _name(recipe: Recipe) -> str:
    section = recipe.model
    return section.start or section.encoder or f"a random {section.encoder_config.get('model_type')}"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
