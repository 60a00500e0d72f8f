"""Makes examples/conversations.json.gz: passages of examples/passages.parquet and the entities that `mini` finds there.

The format is that of Pile-NER. The file shows how training runs. It cannot train a good model, because a small model
guessed its labels.

    python tools/make_conversations.py examples/passages.parquet examples/conversations.json.gz
"""

import gzip
import json
import sys

import pyarrow.parquet as pq

from spanlake import Extractor

TYPES = [
    *("person", "organization", "location", "country", "city", "film", "song", "album", "book", "award", "sports team"),
    *("political party", "university", "company", "event", "building", "river", "species", "software", "vehicle"),
]


def conversation(number: int, text: str, found: dict[str, list[str]]) -> dict[str, object]:
    turns = [{"from": "human", "value": f"Text: {text}"}, {"from": "gpt", "value": "I've read this text."}]
    for label, strings in found.items():
        turns.append({"from": "human", "value": f"What describes {label} in the text?"})
        turns.append({"from": "gpt", "value": json.dumps(strings, ensure_ascii=False)})
    return {"id": f"ner_{number}", "conversations": turns}


def main(source: str, target: str) -> None:
    texts = pq.read_table(source, columns=["text"])["text"].to_pylist()
    entities = Extractor.load("mini", precision="float32").extract(texts, TYPES, threshold=0.6)
    records = []
    for number, (text, entities_here) in enumerate(zip(texts, entities, strict=True)):
        found: dict[str, list[str]] = {}
        for entity in entities_here:
            strings = found.setdefault(entity.label, [])
            if entity.text not in strings:
                strings.append(entity.text)
        records.append(conversation(number, text, found))
    with open(target, "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(json.dumps(records, ensure_ascii=False).encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
