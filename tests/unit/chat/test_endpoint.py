"""The client of chat endpoints, with a real server that fails in many ways."""

import asyncio
import logging
from typing import Any

import pytest
from chat_server import ChatServer, chat_server
from commands import free_port

from spanlake.chat.endpoint import Chat, Endpoint, EndpointError, Price, Reply, UnansweredError, Usage, endpoint_at
from spanlake.chat.parallel import in_parallel
from spanlake.errors import UserError

QUESTION = [{"role": "user", "content": "Who?"}]
KEY = "sk-secret-of-the-test"


def ask(server: ChatServer, times: int = 1, **settings: Any) -> tuple[list[Reply | Exception], Usage]:
    """Returns the answers to the same question, one after the other, or the errors."""

    async def ask_all() -> tuple[list[Reply | Exception], Usage]:
        found: list[Reply | Exception] = []
        async with Chat(Endpoint(server.url, "m", **{"first_pause": 0.001, **settings})) as chat:
            for _ in range(times):
                try:
                    found.append(await chat.ask(QUESTION))
                except (UnansweredError, EndpointError, UserError) as error:
                    found.append(error)
            return found, chat.usage

    return asyncio.run(ask_all())


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 429, "headers": {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}},
        {"status": 500},
        {"status": 503, "body": "not the form of an error"},
        {"body": {"choices": []}},
        {"body": ["nonsense"]},
        {"seconds": 0.3},
    ],
)
def test_a_question_is_asked_again(failure: dict[str, Any]):
    with chat_server({**failure, "times": 2}, {"say": '["Ada"]'}) as server:
        [reply], usage = ask(server, seconds=0.1 if "seconds" in failure else 10)
    assert isinstance(reply, Reply) and (reply.text, reply.cut) == ('["Ada"]', False)
    assert len(server.asked) == 3
    assert (usage.answers, usage.tokens, usage.estimated) == (1, 12, False)
    assert usage.cost(Price(1e6, 1e5)) == pytest.approx(10.2)


def test_the_endpoint_names_the_pause():
    with chat_server({"status": 429, "headers": {"Retry-After": "0"}, "times": 1}, {"say": "[]"}) as server:
        [reply], _ = ask(server, first_pause=1e6)
    assert isinstance(reply, Reply)


def test_a_question_without_an_answer_is_an_error_of_its_own():
    with chat_server({"status": 500, "say": "broken", "times": 6}, {"say": "[]"}) as server:
        [first, second], _ = ask(server, 2)
    assert isinstance(first, UnansweredError) and "6 attempts: status 500: 'broken'" in str(first)
    assert isinstance(second, Reply)


@pytest.mark.parametrize("before", ["", "The proxy of this endpoint has an answer of the model's server. " * 3])
def test_settings_that_the_model_refuses_are_left_out(before: str):
    says = f"{before}Unsupported parameter: 'max_tokens'. See the reference of the chat endpoint."
    refusal = {"status": 400, "say": says, "times": 1}
    with chat_server(refusal, {"say": "[]"}) as server:
        [reply], _ = ask(server)
    assert isinstance(reply, Reply)
    assert ["max_tokens" in body for body in server.asked] == [True, False]
    assert server.asked[1]["temperature"] == 0 and server.asked[1]["model"] == "m"


def test_an_endpoint_that_fails_for_good_stops_the_run():
    with chat_server({"status": 400, "say": "too long"}) as server:
        found, _ = ask(server, 20)
    assert [type(each) for each in found] == [UnansweredError] * 19 + [EndpointError]
    assert "answered none of the last 20 questions (status 400: 'too long')" in str(found[-1])


@pytest.mark.parametrize(
    ("status", "says"), [(401, "refuses the key"), (403, "refuses the key"), (404, "does not know the model 'm'")]
)
def test_a_refusal_stops_at_once_and_does_not_show_the_key(status: int, says: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with chat_server({"status": status, "say": f"Wrong key {KEY}"}) as server:
        [error], _ = ask(server, key=KEY)
    assert isinstance(error, UserError) and says in str(error)
    assert server.asked[0]["key"] == f"Bearer {KEY}" and len(server.asked) == 1
    assert KEY not in str(error) + repr(Endpoint("u", "m", KEY)) + caplog.text


def test_a_long_refusal_shows_no_part_of_the_key():
    says = f"{'Wrong key ':x<70}{KEY}, and more words that are left out of the message of the error"
    with chat_server({"status": 401, "say": says}) as server:
        [error], _ = ask(server, key=KEY)
    assert "x" * 20 in str(error) and KEY[:6] not in str(error)


def test_an_endpoint_that_is_down_is_named():
    endpoint = Endpoint(f"http://127.0.0.1:{free_port()}/v1", "m", first_pause=0.001)

    async def ask_it() -> None:
        async with Chat(endpoint) as chat:
            await chat.ask(QUESTION)

    with pytest.raises(EndpointError, match=r"http://127.0.0.1:\d+/v1 cannot be reached") as caught:
        asyncio.run(ask_it())
    assert "\n" not in str(caught.value)


def test_tokens_are_estimated_where_the_endpoint_does_not_count():
    body = {"choices": [{"message": {"content": [{"text": "12345"}]}, "finish_reason": "length"}]}
    with chat_server({"body": body}) as server:
        [reply], usage = ask(server)
    assert isinstance(reply, Reply) and (reply.text, reply.cut) == ("12345", True)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (1, 2, True)


@pytest.mark.parametrize("workers", [1, 4])
def test_so_many_questions_are_asked_at_a_time(workers: int):
    with chat_server({"seconds": 0.02}) as server:

        async def ask_all() -> list[int]:
            async with Chat(Endpoint(server.url, "m", concurrency=workers)) as chat:

                async def ask_one(number: int) -> int:
                    await chat.ask(QUESTION)
                    return number

                return await in_parallel(ask_one, range(12), workers)

        assert asyncio.run(ask_all()) == list(range(12))
    assert server.most_open <= workers and len(server.asked) == 12
    assert workers == 1 or server.most_open > 1


def test_the_first_error_stops_the_work():
    done = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number == 3:
            raise UserError("three")
        done.append(number)

    with pytest.raises(UserError, match="three"):
        asyncio.run(in_parallel(work, range(1000), 2))
    assert len(done) < 10


def test_the_key_comes_from_a_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert endpoint_at("http://h/v1", "m").key is None
    monkeypatch.setenv("OPENAI_API_KEY", " one ")
    monkeypatch.setenv("OTHER", "two")
    assert (endpoint_at("http://h/v1", "m").key, endpoint_at("http://h/v1", "m", "OTHER").key) == ("one", "two")


@pytest.mark.parametrize(
    ("url", "variable", "says"),
    [
        ("localhost:8000", None, "'localhost:8000' is not a URL"),
        ("http://", None, "is not a URL"),
        ("http://h:x/", None, "is not a URL"),
        ("http://user:pass@h/v1", None, "holds a password"),
        ("http://h/v1", "ABSENT_KEY", "ABSENT_KEY holds no key"),
        ("http://h/v1", "ODD_KEY", "ODD_KEY has characters that no header can hold"),
    ],
)
def test_bad_addresses_and_keys_are_refused(url: str, variable: str | None, says: str, monkeypatch: Any):
    monkeypatch.setenv("ODD_KEY", "kéy")
    with pytest.raises(UserError, match=says) as caught:
        endpoint_at(url, "m", variable)
    assert "pass@" not in str(caught.value)
