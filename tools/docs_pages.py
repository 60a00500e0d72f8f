"""Pages of the documentation site that are made from code, or that live elsewhere in the repository.

MkDocs calls the functions whose names begin with `on_` while it builds the site; mkdocs.yml names this file.
"""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["COLUMNS"] = "100"  # of the help that argparse writes

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from spanlake.cli import make_parser  # noqa: E402
from spanlake.serving.openapi import openapi_document  # noqa: E402

ROOT = Path(__file__).parents[1]
OF_THE_PROJECT = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for page, name in OF_THE_PROJECT.items()}
    pages |= {"reference/command-line.md": command_line(), "reference/http.md": http_api()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points links between files of the repository at pages, and replaces those to files that are no pages by names."""
    for name, original in OF_THE_PROJECT.items():
        markdown = markdown.replace(f"]({original})", f"]({name})")
    markdown = markdown.replace("](docs/", "](").replace("](README.md)", "](../README.md)")
    return re.sub(r"\[[^\]]+\]\(\.\./([\w./-]+)\)", r"`\1`", markdown)


def command_line() -> str:
    """Returns the help of every command."""
    lines = [
        "# Command line",
        "",
        "Exit codes: 0 for success, 1 where the work could not be finished, 2 where the call was wrong.",
    ]
    for parser in parsers(make_parser()):
        lines += ["", f"## {parser.prog}", "", "```text", parser.format_help().strip(), "```"]
    return "\n".join(lines) + "\n"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields the parsers of all commands, without those that only have commands of their own."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for command in group.choices.values():
            yield from parsers(command)


def http_api() -> str:
    """Returns the routes, and the fields of what they take and return."""
    document = openapi_document(with_keys=True)
    lines = ["# HTTP API", "", "A server has the same at `/docs`, and as OpenAPI at `/openapi.json`."]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += [
                "",
                f"## {method.upper()} {path}",
                "",
                operation["summary"] + ".",
                "",
                "| status | |",
                "|---|---|",
            ]
            lines += [f"| {status} | {answer['description']} |" for status, answer in operation["responses"].items()]
    for name, schema in document["components"]["schemas"].items():
        lines += ["", f"## {name}", "", schema.get("description", ""), "", "| field | type | |", "|---|---|---|"]
        for field, about in schema.get("properties", {}).items():
            lines.append(f"| `{field}` | {type_of(about)} | {about.get('description', '')} |")
    return "\n".join(lines) + "\n"


def type_of(schema: dict[str, Any]) -> str:
    """Returns the type of a field in words, for a cell of a table."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(type_of(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    return str(schema.get("type", "any"))
