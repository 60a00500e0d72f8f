"""`spanlake serve` and `spanlake key`."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from spanlake.errors import UserError, one_line
from spanlake.options import add_model_options, positive

# Everything else is imported where it is used: `spanlake --help` waits for neither Ray nor torch.


def add_commands(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the two commands; each sets `run`, a function from the parsed arguments to an exit code."""
    serve = subparsers.add_parser("serve", help="answer over HTTP, on Ray Serve, with a page to try it on")
    add_model_options(serve)
    serve.set_defaults(model=None, device=None, precision=None)  # not given: those of --config
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines to reach it (127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8000, help="(default: 8000)")
    serve.add_argument("--grpc-port", type=_port, help="to answer over gRPC too (default: not)")
    serve.add_argument("--replicas", type=positive, default=1, metavar="N", help="at most (default: 1)")
    serve.add_argument("--gpus", type=float, metavar="SHARE", help="of a GPU for each replica (1 with --device cuda)")
    serve.add_argument("--keys", metavar="FILE", help="the API keys to ask for, as `spanlake key` writes them")
    serve.add_argument(
        "--redact-key-file",
        metavar="FILE",
        help="a file with the key of redacted hashes (default: the variable SPANLAKE_REDACTION_KEY)",
    )
    serve.add_argument("--config", metavar="FILE", help="YAML with more settings, as docs/serving.md lists")
    serve.set_defaults(run=_serve)
    key = subparsers.add_parser("key", help="make an API key: print it once, and add its hash to a file")
    key.add_argument("name", metavar="NAME", help="of whoever is to use it, for the log")
    key.add_argument("--file", type=Path, default=Path("keys.yaml"), help="(default: keys.yaml)")
    key.add_argument("--requests-per-minute", type=float, metavar="N", help="(default: any number)")
    key.set_defaults(run=_key)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _serve(args: argparse.Namespace) -> int:
    missing = [name for name in ("ray", "fastapi") if find_spec(name) is None]
    if missing:
        raise UserError(f"`spanlake serve` needs {missing[0]}, which is not installed: pip install 'spanlake[serve]'.")
    from spanlake.package import find_model
    from spanlake.redaction import read_key
    from spanlake.serving.config import read_config
    from spanlake.serving.keys import read_keys

    given = {name: getattr(args, name) for name in ("model", "device", "precision", "keys")}
    keys = args.keys or os.environ.get("SPANLAKE_KEYS")
    given["keys"] = str(Path(keys).absolute()) if keys else None
    given["redact_key_file"] = str(Path(args.redact_key_file).absolute()) if args.redact_key_file else None
    config = read_config(_file(args.config) | {name: value for name, value in given.items() if value is not None})
    for model in (config.model, *config.models.values()):
        find_model(model)  # whether it is there is better said before Ray starts
    if config.keys:
        read_keys(Path(config.keys))
    read_key(config.redact_key_file)
    from spanlake.serving.deployment import serve_until_stopped

    cpus = max(1, (os.cpu_count() or 1) // args.replicas)
    gpus = args.gpus if args.gpus is not None else float(config.device.startswith("cuda"))
    serve_until_stopped(
        config if config.threads else config.model_copy(update={"threads": cpus}),
        args.host,
        args.port,
        args.grpc_port,
        ray_actor_options={"num_cpus": 0 if gpus else 1 / args.replicas, "num_gpus": gpus},
        autoscaling_config=_scaling(args.replicas),
    )
    return 0


def _scaling(replicas: int) -> dict[str, Any]:
    policy = {"policy_function": "spanlake.serving.scaling:QueuePolicy"}
    return {"min_replicas": 1, "max_replicas": replicas, "look_back_period_s": 11, "policy": policy}


def _file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The settings {path} cannot be read ({one_line(error)}).") from error
    if not isinstance(values, dict):
        raise UserError(f"The settings {path} hold no mapping of names to values.")
    return values


def _key(args: argparse.Namespace) -> int:
    from spanlake.serving.keys import add_key

    print(add_key(args.file, args.name, args.requests_per_minute))
    return 0
