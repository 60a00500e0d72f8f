"""Finds the version of a table from which `extract --since` continues."""

from typing import Any

from pyarrow import fs

from spanlake.errors import UserError
from spanlake.extraction.output.ledger import is_of_another_command, manifest_in, read_ledger, read_manifest
from spanlake.extraction.output.publish import published, target_named
from spanlake.extraction.output.target import TableOptions, Target
from spanlake.extraction.source.tables import TableName
from spanlake.storage import Place, locate


def find_since(uri: str, since: str, output: Place, begun: dict[str, Any] | None, into: str | None) -> int | None:
    """Returns the version or snapshot after which changes are read; None if all rows count as added.

    `since` is a version, an earlier output, or a directory of outputs. `begun` is the manifest of an output that has
    begun, which decides. `into` is the table to which the outputs are added.
    Raises UserError if `since` names no version, or another one than the output began with.
    """
    name = TableName.of(uri, "--since")
    if begun is not None:
        if "since" not in begun["source"]:
            raise UserError(f"{output.uri} began without --since: leave it out, or choose another output directory.")
        recorded: int | None = begun["source"]["since"]
        if since.isdecimal() and int(since) != recorded:
            raise UserError(
                f"{output.uri} began with --since {recorded}, and {since} is requested: use the same, or choose "
                "another output directory."
            )
        return recorded
    if since.isdecimal():
        return int(since)
    target = target_named(into, TableOptions()) if into else None
    place = locate(since)
    if read_manifest(place) is None:
        return _newest(place, name, target, output)
    found = _version(place, name, target)
    if found is None:
        raise UserError(
            f"--since {since} is not a complete output of {name.kind}:{name.table}{f' in {into}' if into else ''}: "
            "finish it with the command that began it, or name another output or a version."
        )
    return found


def _newest(folder: Place, name: TableName, target: Target | None, output: Place) -> int | None:
    """Returns the version of the newest complete output in a directory, but not of `output` itself."""
    if folder.kind() != fs.FileType.Directory:
        return None
    outputs = [
        folder.inside(info.base_name)
        for info in folder.list(recursive=False)
        if info.type == fs.FileType.Directory and info.path != output.path.rstrip("/")
    ]
    manifests = [
        (manifest["created"], place)
        for place in outputs
        if not is_of_another_command(manifest_in(place)) and (manifest := read_manifest(place))
    ]
    for _, place in sorted(manifests, key=lambda pair: pair[0], reverse=True):
        version = _version(place, name, target)
        if version is not None:
            return version
    return None


def _version(output: Place, name: TableName, target: Target | None) -> int | None:
    """Returns the version of the table in an output; None if it is another table, incomplete, or not in the target."""
    ledger = read_ledger(output)
    read = TableName.parse(ledger.manifest["source"]["uri"])
    if read is None or (read.kind, read.table) != (name.kind, name.table):
        return None
    if ledger.pending(ledger.committed()).num_rows or (target and not published(ledger, target)):
        return None
    return read.version
