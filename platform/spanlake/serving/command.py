"""`spanlake serve`, `spanlake key` and `spanlake plan`."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from spanlake.errors import UserError, one_line
from spanlake.options import above_zero, add_labels_option, add_model_options, positive
from spanlake.strict_yaml import load_yaml

if TYPE_CHECKING:
    from spanlake.serving.plan import Speed

# Everything else is imported where it is used: `spanlake --help` waits for neither Ray nor torch.

_PLAN_TEXTS = 500  # that are measured with, at most


def add_commands(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the three commands. Each sets `run`, a function from the parsed arguments to an exit code."""
    serve = subparsers.add_parser("serve", help="answer over HTTP, on Ray Serve, with a page to try it on")
    add_model_options(serve)
    serve.set_defaults(model=None, device=None, precision=None)  # by default, those of --config
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines to reach it (127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8000, help="(default: 8000)")
    serve.add_argument("--grpc-port", type=_port, help="a port for gRPC (default: no gRPC)")
    serve.add_argument("--replicas", type=positive, default=1, metavar="N", help="at most (default: 1)")
    serve.add_argument("--gpus", type=float, metavar="SHARE", help="of a GPU for each replica (1 with --device cuda)")
    serve.add_argument("--keys", metavar="FILE", help="a file of API keys, made by `spanlake key`")
    serve.add_argument(
        "--rules",
        type=_named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="YAML with rules that a request may name; may be repeated",
    )
    serve.add_argument(
        "--redact-key-file",
        metavar="FILE",
        help="a file with the key of hashes and surrogates (default: the variable SPANLAKE_REDACTION_KEY)",
    )
    serve.add_argument("--config", metavar="FILE", help="YAML with more settings, as docs/serving.md lists")
    serve.set_defaults(run=_serve)
    key = subparsers.add_parser("key", help="make an API key: print it once, and add its hash to a file")
    key.add_argument("name", metavar="NAME", help="of the key's user, for the log")
    key.add_argument("--file", type=Path, default=Path("keys.yaml"), help="(default: keys.yaml)")
    key.add_argument("--requests-per-minute", type=float, metavar="N", help="(default: any number)")
    key.set_defaults(run=_key)
    plan = subparsers.add_parser("plan", help="how many replicas a load needs, and what they cost")
    plan.add_argument("--texts-per-day", type=above_zero, required=True, metavar="N", help="of all callers")
    plan.add_argument("--peak", type=above_zero, default=3.0, help="the busiest hour, in mean hours (default: 3)")
    plan.add_argument("--p99", type=above_zero, default=1.0, metavar="SECONDS", help="99 %% answered in (default: 1)")
    plan.add_argument("--price", type=above_zero, metavar="P", help="of one replica for an hour, in any currency")
    plan.add_argument("--rate", type=above_zero, metavar="R", help="texts/s of one replica (default: measured here)")
    plan.add_argument("--texts", type=Path, metavar="FILE", help="typical texts to measure with, one a line")
    add_labels_option(plan, required=False)
    add_model_options(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_plan)


def _named_file(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name and a file, as in pii=pii.yaml")
    return name, str(Path(file).absolute())


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _serve(args: argparse.Namespace) -> int:
    missing = [name for name in ("ray", "fastapi") if find_spec(name) is None]
    if missing:
        raise UserError(f"`spanlake serve` needs {missing[0]}, which is not installed: pip install 'spanlake[serve]'.")
    from spanlake.inference.settings import read_rules
    from spanlake.package import find_model
    from spanlake.redaction import read_key
    from spanlake.serving.config import read_config
    from spanlake.serving.keys import read_keys

    given = {name: getattr(args, name) for name in ("model", "device", "precision", "keys")}
    keys = args.keys or os.environ.get("SPANLAKE_KEYS")
    given["keys"] = str(Path(keys).absolute()) if keys else None
    given["rules"] = dict(args.rules) or None
    given["redact_key_file"] = str(Path(args.redact_key_file).absolute()) if args.redact_key_file else None
    config = read_config(_file(args.config) | {name: value for name, value in given.items() if value is not None})
    for model in (config.model, *config.models.values()):
        find_model(model)  # fail before Ray starts if it does not exist
    if config.keys:
        read_keys(Path(config.keys))
    read_key(config.redact_key_file)
    for rules in config.rules.values():
        read_rules(rules)
    _check_free(args.host, args.port, "--port")
    if args.grpc_port:
        _check_free(args.host, args.grpc_port, "--grpc-port")
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


def _check_free(host: str, port: int, option: str) -> None:
    """Raises UserError where nothing can listen there; Ray would start first, and say less."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port that was left just now counts
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UserError(
                f"Nothing can listen at {host}:{port} ({error.strerror}); give another {option}, or stop what does."
            ) from error


def _scaling(replicas: int) -> dict[str, Any]:
    policy = {"policy_function": "spanlake.serving.scaling:QueuePolicy"}
    return {"min_replicas": 1, "max_replicas": replicas, "look_back_period_s": 11, "policy": policy}


def _file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = load_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The settings {path} cannot be read ({one_line(error)}).") from error
    if not isinstance(values, dict):
        raise UserError(f"The settings {path} hold no mapping of names to values.")
    return values


def _key(args: argparse.Namespace) -> int:
    from spanlake.serving.keys import add_key

    print(add_key(args.file, args.name, args.requests_per_minute))
    return 0


def _plan(args: argparse.Namespace) -> int:
    from spanlake.serving.plan import Speed, capacity, in_words

    if args.rate is None and not (args.texts and args.labels):
        raise UserError(
            "The speed of a replica is neither given nor can it be measured; give --rate, or --texts and --labels."
        )
    if args.rate is not None and args.texts:
        raise UserError("--rate gives the speed of a replica, and --texts measures it; give one of them.")
    speed = Speed(args.rate, 1 / args.rate) if args.rate else _measured(args)
    found = capacity(speed, args.texts_per_day, args.peak, args.p99, args.price)
    print(json.dumps(found.as_json()) if args.json else in_words(found))
    return 0


def _measured(args: argparse.Namespace) -> Speed:
    from spanlake.inference.extractor import Extractor
    from spanlake.inference.settings import read_settings
    from spanlake.serving.plan import measure

    settings = read_settings(args.labels, [], False, False)
    try:
        lines = args.texts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The texts {args.texts} cannot be read ({one_line(error)}).") from error
    texts = [line for line in lines if line.strip()][:_PLAN_TEXTS]
    if not texts:
        raise UserError(f"{args.texts} has no text; write typical texts into it, one a line.")
    extractor = Extractor.load(args.model, device=args.device, precision=args.precision)
    print(f"measuring {extractor.package.name} with {len(texts)} texts on this machine", file=sys.stderr)
    return measure(lambda chosen: list(extractor.stream((text, settings) for text in chosen)), texts)
