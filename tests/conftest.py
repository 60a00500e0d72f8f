"""Settings and fixtures of all tests. The settings come before any import: no network, and no state in the user's home.

`tiny_model_dir` is a package that loads in a moment, for tests that need a model but not a good one.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a local Ray writes a token into the home directory
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported

if TYPE_CHECKING:  # so that tests without a model do not wait for torch
    from tokenizers import Tokenizer

    from spanlake.modeling.model import SpanModel

# Words that are one sub-word each in the tiny tokenizer. It spells other words letter by letter.
WORDS = """ada alain and at babbage by canada charles curie european farley fell for found geneva in june knew london
lovelace marie mcgill met montreal nations of on percent pierre prices radium said she the to union united university
warsaw where works wrote"""


TINY_ENCODER = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
}


def tiny_tokenizer() -> "Tokenizer":
    """Returns a WordPiece tokenizer like BERT's, with the prompt's tokens. It does not know letters beyond ASCII."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *WORDS.split()]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens([*tokens[:4], "[FLERT]", "<<ENT>>", "<<SEP>>"])
    return tokenizer


def tiny_model(tokenizer: "Tokenizer", seed: int = 1, **architecture: Any) -> "SpanModel":
    """Returns a model with two layers of random weights. Its scores are distinct, and lie on both sides of 0.5.

    `architecture` replaces values of its configuration. A window holds 48 words or 96 sub-words, prompt included. A
    span has at most 4 words.
    """
    import torch

    from spanlake.modeling.config import ModelConfig
    from spanlake.modeling.model import SpanModel

    entity_token_id = tokenizer.token_to_id("<<ENT>>")
    assert entity_token_id is not None
    values: dict[str, Any] = {"span_head": "marker_v0"} | architecture
    config = ModelConfig(
        encoder=TINY_ENCODER | {"vocab_size": tokenizer.get_vocab_size(), "initializer_range": 0.5},
        hidden_size=32,
        entity_token="<<ENT>>",
        separator_token="<<SEP>>",
        entity_token_id=entity_token_id,
        max_width=4,
        max_words=48,
        max_labels=6,
        **values,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SpanModel(config)
        with torch.no_grad():
            for parameter in (*model.spans.parameters(), *model.types.parameters()):
                parameter.mul_(2.0 if parameter.dim() == 2 else 0.0)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from spanlake.package import save_package

    directory = tmp_path_factory.mktemp("tiny") / "package"
    tokenizer = tiny_tokenizer()
    save_package(directory, tiny_model(tokenizer), tokenizer, name="tiny", metadata={}, card="Random weights.\n")
    return directory


@pytest.fixture(scope="session")
def token_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a token-level package, like the tiny model, that cuts words of every script."""
    from spanlake.package import save_package

    directory = tmp_path_factory.mktemp("token-level") / "package"
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, span_head="token_level", splitter="unicode")
    save_package(directory, model, tokenizer, name="token-level", metadata={}, card="Random weights.\n")
    return directory


@pytest.fixture(scope="module")
def serve_app() -> Iterator[Callable[..., str]]:
    """Yields a function that serves the real application without Ray, under uvicorn on a thread.

    The function takes the settings and the other arguments of `make_app`, and returns the URL.
    """
    import uvicorn

    from spanlake.serving.app import make_app
    from spanlake.serving.config import read_config
    from spanlake.serving.service import Service

    stops: list[Callable[[], None]] = []

    def serve(settings: dict[str, Any], **arguments: Any) -> str:
        config = read_config({"device": "cpu", "precision": "float32", **settings})
        started = threading.Event()
        server = uvicorn.Server(uvicorn.Config(lambda: None, port=0, log_level="warning", lifespan="off"))

        async def run() -> None:
            service = await Service.load(config)
            server.config.app = make_app(service, config, **arguments)
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            started.set()
            await serving
            await service.close(5)

        thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
        thread.start()
        assert started.wait(60), "the server did not start"

        def stop() -> None:
            server.should_exit = True
            thread.join(30)

        stops.append(stop)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield serve
    for stop in stops:
        stop()
