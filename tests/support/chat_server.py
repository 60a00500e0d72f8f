"""A chat endpoint that answers from a file, over real HTTP.

    python tests/support/chat_server.py ANSWERS.json PORT

The file is a JSON list of rules. The first rule counts whose text `if` is in the conversation and that is not used up.

    {"if": "Ada met Bo.", "say": "[...]", "status": 429, "times": 2, "headers": {"Retry-After": "0"}, "seconds": 0.2}

Every key may be left out. `say` with an error status is the error's message. `body` replaces the whole answer.
"""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rules: list[dict[str, Any]], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.rules = rules
        self.used = Counter[int]()
        self.asked: list[dict[str, Any]] = []  # bodies of requests, each with its key
        self.open = self.most_open = 0  # requests at a time
        self.lock = threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """A client that does not wait for the answer is no error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def rule(self, conversation: str) -> dict[str, Any]:
        with self.lock:
            for number, rule in enumerate(self.rules):
                if rule.get("if", "") in conversation and self.used[number] < rule.get("times", sys.maxsize):
                    self.used[number] += 1
                    return rule
        return {"status": 404, "say": "no rule fits"}


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        with server.lock:
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body["key"] = self.headers.get("Authorization")
        server.asked.append(body)
        rule = server.rule("\n".join(message["content"] for message in body["messages"]))
        time.sleep(rule.get("seconds", 0))
        status = rule.get("status", 200)
        answer = {
            "choices": [{"message": {"role": "assistant", "content": rule.get("say", "[]")}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2},
        }
        error = {"error": {"message": rule.get("say", "")}}
        content = json.dumps(rule.get("body", answer if status == 200 else error)).encode()
        with server.lock:
            server.open -= 1
        self.send_response(status)
        for name, value in {**rule.get("headers", {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def chat_server(*rules: dict[str, Any]) -> Iterator[ChatServer]:
    with ChatServer(list(rules)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    ChatServer(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])).serve_forever()
