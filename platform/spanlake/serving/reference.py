"""The API's documentation as one page of HTML, made from its OpenAPI document. It needs no script."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} API</title><link rel="stylesheet" href="page/docs.css"></head><body><main>
<h1>{title} API</h1>
<p>Version {version}. The same for programs: <a href="openapi.json">openapi.json</a>.</p>
"""


def reference_page(document: dict[str, Any]) -> str:
    """`document` is an OpenAPI 3.1 document."""
    parts = [_HEAD.format(title=escape(document["info"]["title"]), version=escape(document["info"]["version"]))]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(method, path, operation))
    parts.append("<h2>Messages</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(_message(name, schema))
    return "".join([*parts, "</main></body></html>\n"])


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {})
    takes = "".join(f"<p>Takes <code>{escape(kind)}</code>: {_type(of['schema'])}</p>" for kind, of in body.items())
    rows = []
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        given = ", ".join(_type(of["schema"]) for of in content.values() if "schema" in of)
        rows.append(f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td><td>{given}</td></tr>")
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}.</p>"
        f"<p>{escape(operation.get('description', ''))}</p>{takes}<table>{''.join(rows)}</table></section>"
    )


def _message(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for field, of in schema.get("properties", {}).items():
        default = "" if field in required else f"; default <code>{escape(json.dumps(of.get('default')))}</code>"
        says = escape(of.get("description", ""))
        rows.append(f"<tr><td><code>{escape(field)}</code></td><td>{_type(of)}{default}</td><td>{says}</td></tr>")
    examples = "".join(f"<pre>{escape(json.dumps(example, indent=1))}</pre>" for example in schema.get("examples", ()))
    return (
        f'<section id="{escape(name)}"><h3>{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
        f"<table>{''.join(rows)}</table>{examples}</section>"
    )


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return escape(str(schema.get("type", "any")))
