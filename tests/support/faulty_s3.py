"""A server with the S3 protocol that can refuse or delay requests."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import WSGIRequestHandler, make_server

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class FaultyS3:
    """`refuses` and `delay` (seconds) are asked about each request: its method, its path and its query."""

    address: str = ""
    refuses: Callable[[str, str, str], bool] = lambda method, path, query: False
    delay: Callable[[str, str, str], float] = lambda method, path, query: 0.0
    refused: list[str] = field(default_factory=list)

    def uri(self, path: str) -> str:
        return f"s3://name:secret@{path}?endpoint_override={self.address}&scheme=http&region=us-east-1"

    def filesystem(self) -> fs.S3FileSystem:
        options = {"endpoint_override": self.address, "scheme": "http", "region": "us-east-1"}
        return fs.S3FileSystem(access_key="name", secret_key="secret", allow_bucket_creation=True, **options)


class _Silent(WSGIRequestHandler):
    def log(self, *_: object) -> None: ...


@contextmanager
def faulty_s3(bucket: str) -> Iterator[FaultyS3]:
    """Runs a server with an empty bucket inside the block."""
    application, control = DomainDispatcherApplication(create_backend_app), FaultyS3()

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        request = (environment["REQUEST_METHOD"], environment["PATH_INFO"], environment.get("QUERY_STRING", ""))
        time.sleep(control.delay(*request))
        if control.refuses(*request):
            control.refused.append(" ".join(request))
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(_SLOW_DOWN)))])
            return [_SLOW_DOWN]
        answered: Iterable[bytes] = application(environment, start)
        return answered

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=_Silent)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    control.address = f"127.0.0.1:{server.server_port}"
    try:
        control.filesystem().create_dir(bucket)
        yield control
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
