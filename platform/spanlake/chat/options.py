"""The options of commands that ask a language model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from spanlake.errors import UserError, shown
from spanlake.options import positive

if TYPE_CHECKING:
    from spanlake.chat.endpoint import Endpoint, Price

# The client is imported where it is used: `spanlake --help` does not wait for it.

_CONCURRENCY = 8
_SECONDS = 120


def add_endpoint_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Adds --endpoint and what belongs to it, but not --model. `read_endpoint` and `read_price` read the values."""
    parser.add_argument(
        "--endpoint",
        required=required,
        metavar="URL",
        help="a chat endpoint that speaks OpenAI's protocol, like http://host:8000/v1; --model is its model's name",
    )
    parser.add_argument(
        "--key-variable", metavar="NAME", help="the environment variable with its key (default: OPENAI_API_KEY)"
    )
    parser.add_argument(
        "--concurrency", type=positive, metavar="N", help=f"questions at a time (default: {_CONCURRENCY})"
    )
    parser.add_argument(
        "--timeout", type=positive, metavar="S", help=f"seconds for one attempt at a question (default: {_SECONDS})"
    )
    parser.add_argument(
        "--price", metavar="IN,OUT", help="what a million tokens of questions and of answers cost, to count the cost"
    )


def read_endpoint(args: argparse.Namespace) -> Endpoint:
    """Raises `UserError` as `endpoint_at` does, and where no model is named."""
    from spanlake.chat.endpoint import endpoint_at

    if not args.model:
        raise UserError("--endpoint needs --model, the name of a model that the endpoint knows.")
    concurrency, seconds = args.concurrency or _CONCURRENCY, float(args.timeout or _SECONDS)
    return endpoint_at(args.endpoint, args.model, args.key_variable, concurrency=concurrency, seconds=seconds)


def read_price(args: argparse.Namespace) -> Price | None:
    """Raises `UserError` for a value that is not two numbers from 0 up."""
    from spanlake.chat.endpoint import Price

    if args.price is None:
        return None
    try:
        prompt, completion = map(float, args.price.split(","))
        if not (0 <= prompt < 1e9 and 0 <= completion < 1e9):
            raise ValueError
    except ValueError:
        raise UserError(
            f"The price {shown(args.price)} is not two numbers from 0 up with a comma between them, as in 0.15,0.60."
        ) from None
    return Price(prompt, completion)
