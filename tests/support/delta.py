"""Delta tables that its own library does not write."""

import json
import struct
from pathlib import Path


def delete_from_delta(path: Path, number: int, places: list[int]) -> None:
    """Deletes rows in the only file of a version with an inline deletion vector, as the protocol describes it."""
    import pyroaring

    log = path / "_delta_log" / f"{number:020}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    bitmap = struct.pack("<IqI", 1681511377, 1, 0) + pyroaring.BitMap(places).serialize()
    vector = {
        "storageType": "i",
        "pathOrInlineDv": z85(bitmap),
        "sizeInBytes": len(bitmap),
        "cardinality": len(places),
    }
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    for action in actions:
        if "protocol" in action:
            action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
        if "add" in action:
            action["add"]["deletionVector"] = vector
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))


def z85(content: bytes) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    content += bytes(-len(content) % 4)
    blocks = [int.from_bytes(content[at : at + 4], "big") for at in range(0, len(content), 4)]
    return "".join(digits[block // 85**power % 85] for block in blocks for power in (4, 3, 2, 1, 0))
