"""The gRPC method under gRPC's own server, without Ray: the Extractor's answers, and errors under gRPC's codes."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from spanlake import Entity, Extractor
from spanlake.redaction import Redaction
from spanlake.serving.config import read_config
from spanlake.serving.errors import ApiError
from spanlake.serving.grpc_api import extraction_pb2_grpc
from spanlake.serving.grpc_api.extraction_pb2 import ExtractRequest, ExtractResponse, Label, LabelSet, Offsets
from spanlake.serving.grpc_api.service import extract
from spanlake.serving.keys import Key, Keys
from spanlake.serving.middleware import RequestRecord
from spanlake.serving.service import Service

TEXTS = ["Ada met Alain at McGill University", "\U0001f30a Marie Curie found radium in Warsaw", ""]
KEYS = Keys({"reader": Key(sha256=hashlib.sha256(b"secret").hexdigest())})
Ask = Callable[[Any], Any]


def ask(
    model: Path,
    call: Ask,
    keys: Keys | None = None,
    change: Callable[[Service], None] = lambda service: None,
    rules: Path | None = None,
    options: Sequence[tuple[str, int]] = (),
) -> Any:
    """Starts a server, runs `call` with its stub, returns its result and the records of all calls. `options` are those
    of the channel.
    """
    records: list[RequestRecord] = []

    async def run() -> Any:
        named = {"pii": str(rules)} if rules else {}
        config = read_config({"model": str(model), "device": "cpu", "precision": "float32", "rules": named})
        service = await Service.load(config)
        change(service)

        class Servicer:
            async def Extract(self, request: ExtractRequest, context: Any) -> ExtractResponse:
                return await extract(service, keys, [records.append], request, context)

        server = grpc.aio.server()
        extraction_pb2_grpc.add_ExtractionServicer_to_server(Servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                return await call(extraction_pb2_grpc.ExtractionStub(channel))
        finally:
            await server.stop(None)
            await service.close(5)

    return asyncio.run(run()), records


def test_answers_are_the_extractors(tiny_model_dir: Path):
    request = ExtractRequest(
        texts=TEXTS,
        labels=[Label(name="who", description="person"), Label(name="place", threshold=0.6)],
        threshold=0.4,
        nested=True,
    )
    answer, [record] = ask(tiny_model_dir, lambda stub: stub.Extract(request))
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    expected = extractor.extract(TEXTS, {"who": "person", "place": "place"}, {"who": 0.4, "place": 0.6}, nested=True)
    found = [[Entity(e.start, e.end, e.text, e.label, e.score) for e in result.entities] for result in answer.results]
    assert any(expected)
    for one, other in zip(found, expected, strict=True):
        assert [(e.start, e.end, e.text, e.label) for e in one] == [(e.start, e.end, e.text, e.label) for e in other]
        assert [e.score for e in one] == pytest.approx([e.score for e in other], abs=1e-5)
    assert answer.model.fingerprint == extractor.package.fingerprint
    assert (record.status, record.texts, record.model, record.error_type) == (200, 3, "tiny", None)
    assert record.entities == sum(map(len, expected))


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (ExtractRequest(texts=["Ada"]), grpc.StatusCode.INVALID_ARGUMENT, "no labels"),
        (ExtractRequest(texts=["Ada"], labels=[Label(name="a")], threshold=2), grpc.StatusCode.INVALID_ARGUMENT, "2.0"),
        (
            ExtractRequest(texts=["Ada"], labels=[Label(name="a"), Label(name="a", description="b")]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "given twice",
        ),
        (
            ExtractRequest(
                texts=["Ada"] * 2, label_sets=[LabelSet(labels=[Label(name="a", threshold=t)]) for t in (0.1, 0.2)]
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "given twice",
        ),
        (
            ExtractRequest(labels=[Label(name="a")], label_sets=[LabelSet()]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "both labels and label_sets",
        ),
        (
            ExtractRequest(texts=["Ada"], labels=[Label(name="a")], offsets=7),
            grpc.StatusCode.INVALID_ARGUMENT,
            "offsets is 7; give one of CODE_POINTS, UTF16",
        ),
        (ExtractRequest(texts=["Ada"], labels=[Label(name="a")], model="b"), grpc.StatusCode.NOT_FOUND, "not served"),
        (
            ExtractRequest(texts=["Ada"], labels=[Label(name="a")], rules="b"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "The rules 'b' are not on this server; start it with --rules NAME=FILE",
        ),
        (ExtractRequest(texts=[""] * 1001, labels=[Label(name="a")]), grpc.StatusCode.OUT_OF_RANGE, "1001 texts"),
    ],
)
def test_what_is_refused(tiny_model_dir: Path, request_: ExtractRequest, code: grpc.StatusCode, said: str):
    with pytest.raises(grpc.RpcError) as refused:
        ask(tiny_model_dir, lambda stub: stub.Extract(request_))
    assert refused.value.code() == code
    assert said in refused.value.details()


def test_label_sets_offsets_and_redaction_are_those_of_http(tiny_model_dir: Path):
    sets = [LabelSet(labels=[Label(name="who", description="person")]), LabelSet(labels=[Label(name="radium")])]
    request = ExtractRequest(texts=TEXTS[:2], label_sets=sets, threshold=0.4, offsets=Offsets.UTF16, redact="label")
    answer, _ = ask(tiny_model_dir, lambda stub: stub.Extract(request))
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    expected = extractor.extract(TEXTS[:2], [{"who": "person"}, ["radium"]], 0.4)
    redaction = Redaction("label")
    assert [result.redacted for result in answer.results] == list(map(redaction.text, TEXTS, expected))
    units = [len(TEXTS[1][:place].encode("utf-16-le")) // 2 for place in range(len(TEXTS[1]) + 1)]
    second = [(units[entity.start], units[entity.end]) for entity in expected[1]]
    assert [(entity.start, entity.end) for entity in answer.results[1].entities] == second
    assert units[-1] > len(TEXTS[1]) and second


def test_entities_say_their_source_where_the_request_names_rules(tiny_model_dir: Path, tmp_path: Path):
    (tmp_path / "pii.yaml").write_text("rules: [{label: url, kind: url}]")
    request = ExtractRequest(texts=["see www.example.org"], labels=[Label(name="a")], threshold=1, rules="pii")
    answer, _ = ask(tiny_model_dir, lambda stub: stub.Extract(request), rules=tmp_path / "pii.yaml")
    [entity] = answer.results[0].entities
    assert (entity.text, entity.label, entity.score, entity.source) == ("www.example.org", "url", 1, "rule")


def test_adjacent_entities_are_joined_on_request(tiny_model_dir: Path):
    extractor = Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")
    text = "Ada Lovelace Curie Farley Ada London Paris Ada Curie"
    request = ExtractRequest(texts=[text], labels=[Label(name="person")], threshold=0.3, join_adjacent=True)
    answer, _ = ask(tiny_model_dir, lambda stub: stub.Extract(request))
    [joined] = extractor.extract([text], ["person"], 0.3, join_adjacent=True)
    assert [(each.start, each.end) for each in answer.results[0].entities] == [(e.start, e.end) for e in joined]
    assert len(joined) < len(extractor.extract([text], ["person"], 0.3)[0])


def test_an_answer_that_the_channel_would_refuse_is_refused_by_its_size(tiny_model_dir: Path):
    """A channel that takes 4 MiB calls more RESOURCE_EXHAUSTED, as a full queue does."""
    labels = [Label(name=f"{i}" * 500, description=f"type {i}") for i in range(3)]
    texts = [" ".join(["Ada", "met", "Charles"] * 100)] * 10
    request = ExtractRequest(texts=texts, labels=labels, threshold=0, nested=True, multi_label=True)
    with pytest.raises(grpc.RpcError) as refused:
        ask(tiny_model_dir, lambda stub: stub.Extract(request))
    assert refused.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert "bytes, and the channel takes 4194304; send fewer texts" in refused.value.details()

    most = 64 << 20
    answer, [record] = ask(
        tiny_model_dir,
        lambda stub: stub.Extract(request, metadata=[("max-answer-bytes", str(most))]),
        options=[("grpc.max_receive_message_length", most)],
    )
    assert answer.ByteSize() > 4 << 20
    assert record.entities == sum(len(result.entities) for result in answer.results)


@pytest.mark.parametrize("given", ["much", "-1", "1.5", "9" * 30])
def test_a_size_that_is_no_number_is_refused(tiny_model_dir: Path, given: str):
    request = ExtractRequest(texts=["Ada"], labels=[Label(name="a")])
    with pytest.raises(grpc.RpcError) as refused:
        ask(tiny_model_dir, lambda stub: stub.Extract(request, metadata=[("max-answer-bytes", given)]))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "max-answer-bytes" in refused.value.details()


def test_a_full_queue_says_when_to_come_again(tiny_model_dir: Path):
    def fill(service: Service) -> None:
        async def full(request: Any) -> Any:
            raise ApiError(429, "overloaded", "The queue is full.", retry_after=2.5)

        service.extract = full  # type: ignore[method-assign]

    with pytest.raises(grpc.RpcError) as refused:
        request = ExtractRequest(texts=["Ada"], labels=[Label(name="a")])
        ask(tiny_model_dir, lambda stub: stub.Extract(request), change=fill)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(refused.value.trailing_metadata())
    assert (trailing["type"], trailing["retry-after"]) == ("overloaded", "3")


def test_with_keys_nothing_answers_without_one(tiny_model_dir: Path):
    request = ExtractRequest(texts=["Ada"], labels=[Label(name="a")])
    for metadata in ([], [("authorization", "Bearer wrong")]):
        with pytest.raises(grpc.RpcError) as refused:
            ask(tiny_model_dir, lambda stub, metadata=metadata: stub.Extract(request, metadata=metadata), KEYS)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    _, [record] = ask(
        tiny_model_dir, lambda stub: stub.Extract(request, metadata=[("authorization", "Bearer secret")]), KEYS
    )
    assert record.key == "reader"


@pytest.mark.parametrize(
    "request_",
    [
        ExtractRequest(texts=["Ada"], labels=[Label(name=f"label {i}") for i in range(2000)]),
        ExtractRequest(
            texts=["Ada"] * 4,
            label_sets=[LabelSet(labels=[Label(name=str(i)) for i in range(200)]) for _ in range(4)],
            threshold=2,
        ),
    ],
    ids=["too many labels", "a wrong threshold"],
)
def test_a_request_with_many_labels_is_read_beside_the_event_loop(tiny_model_dir: Path, request_: ExtractRequest):
    class Context:
        code: Any = None

        def invocation_metadata(self) -> list[Any]:
            return []

        def set_code(self, code: grpc.StatusCode) -> None:
            self.code = code

        def set_details(self, details: str) -> None:
            pass

        def set_trailing_metadata(self, metadata: Any) -> None:
            pass

    async def turns() -> tuple[int, Any]:
        config = read_config({"model": str(tiny_model_dir), "device": "cpu", "precision": "float32"})
        service, context = await Service.load(config), Context()
        call = asyncio.create_task(extract(service, None, [], request_, context))
        count = 0
        while not call.done():
            await asyncio.sleep(0)
            count += 1
        await service.close(5)
        return count, context.code

    count, code = asyncio.run(turns())
    assert code in (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT)
    assert count > 1  # the event loop goes on while the call is refused
