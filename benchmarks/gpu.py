"""Measures extraction on a GPU: words per second, share of the card's matrix rate, idle share, memory, and equality.

    python benchmarks/gpu.py [--device cuda] [--texts 1500] [--rounds 3] [--shapes minilm,bert-base] [--labels 5,25]

It needs torch, transformers and the core of this package: no Ray and no network. The models are random checkpoints of
well-known shapes, so their entities mean nothing, but their cost is that of the real ones. The gliner library runs the
same checkpoints in float16 where it is installed. Both sides take turns, and the figures are medians.

With `--device cpu`, and on a machine without a GPU, it runs tiny shapes over a few texts: that proves the program, and
measures no card.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from arguments import numbers, plain_errors
from machine import machine
from torch.profiler import ProfilerActivity, profile

from spanlake import Entity, Extractor
from spanlake.inference.hardware import choose_device, choose_precision
from spanlake.inference.settings import Settings
from spanlake.modeling.config import ModelConfig
from spanlake.modeling.gliner_format import write_gliner
from spanlake.modeling.model import SpanModel
from spanlake.options import positive
from spanlake.package import Package, open_package

PASSAGES = Path(__file__).parents[1] / "examples" / "passages.parquet"
KINDS = {"short": 20, "medium": 80, "long": 280}  # words of a text; gliner would cut longer ones
NAMES = """person organization location date product film award team event city song book law disease drug animal plant
vehicle weapon food currency religion language building country""".split()  # noqa: SIM905
LABELS = [*NAMES, *(f"{kind} {name}" for kind in ("famous", "small", "old") for name in NAMES)]
THRESHOLD = 0.9
_SQUARE = 8192  # of the matrices that the card's rate is measured with


@dataclass(frozen=True)
class Shape:
    encoder: dict[str, Any]
    width: int  # D
    lstm: bool = True

    @property
    def per_token(self) -> int:
        """Returns the operations of the encoder's matrices for one sub-word; attention comes on top."""
        width = self.encoder["hidden_size"]
        return self.encoder["num_hidden_layers"] * (8 * width**2 + 4 * width * self.encoder["intermediate_size"])


def deberta(layers: int, width: int) -> Shape:
    relative = {"relative_attention": True, "position_buckets": 256, "max_relative_positions": -1}
    kind = {"norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
    other = {"position_biased_input": False, "type_vocab_size": 0, "layer_norm_eps": 1e-7}
    return Shape({"model_type": "deberta-v2", **sizes(layers, width), **relative, **kind, **other}, 512)


def sizes(layers: int, width: int, inner: int | None = None) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": inner or 4 * width,
        "max_position_embeddings": 512,
    }


SHAPES = {
    "minilm": Shape({"model_type": "bert", **sizes(6, 384)}, 384, lstm=False),
    "bert-base": Shape({"model_type": "bert", **sizes(12, 768)}, 512),
    "deberta-v3-small": deberta(6, 768),
    "deberta-v3-base": deberta(12, 768),
    "deberta-v3-large": deberta(24, 1024),
    "modernbert-base": Shape(
        {"model_type": "modernbert", **sizes(22, 768, 1152), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
         "cls_token_id": 0, "sep_token_id": 0}, 512
    ),
}  # fmt: skip
TINY = {
    "tiny-bert": Shape({"model_type": "bert", **sizes(1, 64)}, 64),
    "tiny-deberta": Shape({**deberta(1, 64).encoder, "position_buckets": 16}, 64),
}


def random_package(name: str, shape: Shape) -> Package:
    mini = open_package("mini")
    tokenizer = mini.tokenizer
    values = {**shape.encoder, "vocab_size": tokenizer.backend.get_vocab_size()}
    config = ModelConfig(
        encoder=values,
        hidden_size=shape.width,
        span_head="marker_v0",
        entity_token=mini.config.entity_token,
        separator_token=mini.config.separator_token,
        entity_token_id=mini.config.entity_token_id,
        lstm=shape.lstm,
        dropout=0.0,
        max_labels=None,
    )
    torch.manual_seed(0)
    return Package(name, SpanModel(config).eval(), tokenizer, {}, "")


def texts_of(words: int, count: int) -> list[str]:
    """Returns texts of that many words each, cut from the passages one after the other, over and over."""
    passages = pq.read_table(PASSAGES, columns=["text"]).column("text").to_pylist()
    stream = [word for passage in passages for word in passage.split()]
    return [
        " ".join(stream[(start := words * i % (len(stream) - words)) : start + words]) for i in range(count)
    ]  # fmt: skip


def matrix_rate(device: torch.device, dtype: torch.dtype, square: int) -> float:
    """Returns the operations per second of products of square matrices."""
    one, other = (torch.randn(square, square, device=device).to(dtype) for _ in range(2))
    times = []
    for turn in range(6):
        began = time.perf_counter()
        one @ other
        wait(device)
        if turn:
            times.append(time.perf_counter() - began)
    return 2 * square**3 / statistics.median(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def sub_words(extractor: Extractor, texts: list[str], settings: Settings) -> int:
    """Returns how many sub-words the passes over the texts read, those of labels included, and no padding."""
    read: list[int] = []
    for _ in extractor.stream([(text, settings) for text in texts], read.append):
        pass
    return sum(read)


def profiled(work: Callable[[], object], device: torch.device) -> tuple[float, str]:
    """Returns the seconds in which the device computed or copied, and a table of what took longest."""
    on_gpu = device.type == "cuda"
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity], experimental_config=everywhere) as found:
        work()
        wait(device)
    events = found.key_averages()
    busy = sum(event.self_device_time_total for event in events) / 1e6
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return busy, events.table(sort_by=order, row_limit=15, max_name_column_width=60)


def differing(one: list[list[Entity]], other: list[list[Entity]]) -> int:
    def places(found: list[list[Entity]]) -> set[tuple[int, int, int, str]]:
        return {(at, entity.start, entity.end, entity.label) for at, text in enumerate(found) for entity in text}

    return len(places(one) ^ places(other))


def compare_with_the_cpu(device: torch.device, texts: list[str]) -> None:
    """Prints how the entities of the embedded model on the device differ from those of the CPU."""
    labels = NAMES[:8]
    expected = Extractor.load("mini", device="cpu", precision="float32").extract(texts, labels)
    for precision in ("float32", str(choose_precision("auto", device)).removeprefix("torch.")):
        with Extractor.load("mini", device=str(device), precision=precision) as extractor:
            found = extractor.extract(texts, labels)
        wrong = f"{differing(found, expected)} of {sum(map(len, expected))}"
        print(f"mini in {precision}: {wrong} entities differ from the CPU's in float32", flush=True)


def peer(package: Package, device: torch.device) -> Any:
    """Returns the gliner library's model with the same weights, or None where the library is missing."""
    try:
        from gliner import GLiNER
    except ImportError:
        return None
    half = {"dtype": torch.float16} if device.type == "cuda" else {}
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "checkpoint"
        write_gliner(checkpoint, package.model, package.tokenizer.backend)
        return GLiNER.from_pretrained(str(checkpoint), map_location=str(device), **half).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--texts", type=positive, help="of 80 words; fewer of longer ones (default: 1500, or 8 on a CPU)"
    )
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--shapes", help=f"of {', '.join(SHAPES)} (default: all)")
    parser.add_argument("--labels", type=numbers, default="5,25,100", help="numbers of labels (default: 5,25,100)")
    parser.add_argument("--no-peer", action="store_true", help="leave gliner out")
    args = parser.parse_args()
    device = choose_device(args.device)
    on_gpu = device.type == "cuda"
    shapes = SHAPES if on_gpu else TINY
    unknown = set((args.shapes or "").split(",")) - {"", *shapes}
    if unknown:
        parser.error(f"unknown shapes {', '.join(sorted(unknown))}; on this device there are {', '.join(shapes)}")
    shapes = {name: shapes[name] for name in args.shapes.split(",")} if args.shapes else shapes
    dtype = choose_precision("auto", device)
    count = args.texts or (1500 if on_gpu else 8)
    print(machine(torch.get_num_threads(), "torch", "transformers"))
    print(f"{torch.cuda.get_device_name(device) if on_gpu else 'CPU'}, {dtype}")
    if not on_gpu:
        print("NO CARD WAS MEASURED: these are tiny shapes on a CPU, and their figures say nothing about a GPU.")
    rate = matrix_rate(device, dtype, _SQUARE if on_gpu else 512)
    print(f"matrix rate {rate / 1e12:.1f} TFLOP/s")
    compare_with_the_cpu(device, texts_of(80, count if on_gpu else 4)[:200])

    names = f"{'shape':<18}{'texts':<8}{'labels':>7}{'words/s':>11}{'of rate':>9}{'idle':>7}{'GiB':>6}"
    print(f"\n{names}{'gliner':>10}{'ratio':>7}")
    missing, table = False, ""
    for name, shape in shapes.items():
        package = random_package(name, shape)
        theirs = None if args.no_peer else peer(package, device)
        missing = missing or theirs is None
        extractor = Extractor(package, device, dtype)
        for kind, length in KINDS.items():
            texts = texts_of(length, max(2, count * 80 // length))
            for labels in (LABELS[:number] for number in args.labels):
                settings = Settings.make(labels, THRESHOLD)
                tokens = sub_words(extractor, texts, settings)  # it warms up, too
                ours: Callable[[], object] = lambda: extractor.extract(texts, labels, THRESHOLD)  # noqa: B023, E731
                other = lambda: theirs.inference(texts, labels, threshold=THRESHOLD, batch_size=32)  # noqa: B023, E731
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats(device)
                taken: dict[str, list[float]] = {"ours": [], "theirs": []}
                if theirs is not None:
                    other()
                for _ in range(args.rounds):
                    taken["ours"].append(seconds_of(ours, device))
                    if theirs is not None:
                        taken["theirs"].append(seconds_of(other, device))
                seconds = statistics.median(taken["ours"])
                idle = "-"
                if on_gpu:
                    busy, table = profiled(ours, device)
                    idle = f"{max(0.0, 1 - busy / seconds):.0%}"
                memory = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}" if on_gpu else "-"
                words = len(texts) * length
                share = tokens * shape.per_token / seconds / rate
                row = f"{name:<18}{kind:<8}{len(labels):>7}{words / seconds:>11.0f}{share:>9.1%}{idle:>7}{memory:>6}"
                if theirs is not None:
                    slow = statistics.median(taken["theirs"])
                    row += f"{words / slow:>10.0f}{slow / seconds:>6.1f}x"
                print(row, flush=True)
        if not on_gpu:
            _, table = profiled(ours, device)
        extractor.close()
    if missing:
        print("gliner was left out: it is not installed, or --no-peer was given")
    print(f"\nthe last case by operation\n{table}")


if __name__ == "__main__":
    with plain_errors():
        main()
