"""Finds entities with an exported model, without torch: python find_with_onnx.py DIRECTORY person,place "A text" """

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def cut(piece):
    return tokenizer.encode([piece], is_pretokenized=True, add_special_tokens=False).ids


directory, labels, text = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
about = json.loads((directory / "runtime.json").read_text(encoding="utf-8"))
if about["splitter"] != "gliner" or about["span_head"] == "token_level":
    sys.exit(f"{directory} needs the splitter {about['splitter']} or scores words; this program does neither.")
tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
ids, types, words, places = list(about["before"]), [], [], []
for label in labels:
    types.append(len(ids) + about["type_offset"])
    ids += [about["entity_id"], *cut(label)]
ids.append(about["separator_id"])
for match in re.finditer(r"\w+(?:-\w+)*|\S", text):
    if sub_words := cut(match.group()):
        words.append(match)
        places.append(len(ids))
        ids += sub_words
ids += about["after"]
if not 0 < len(words) <= about["max_words"] or len(ids) > about["max_tokens"]:
    sys.exit(f"The text has {len(words)} words; give 1 to {about['max_words']}, and cut a longer text into pieces.")
if len(labels) > (about["max_labels"] or len(labels)):
    sys.exit(f"There are {len(labels)} labels; the model reads up to {about['max_labels']} at once, so ask in turns.")
rows = {"input_ids": ids, "attention_mask": [1] * len(ids), "word_positions": places, "type_positions": types}
inputs = {name: np.array([row], dtype=np.int64) for name, row in rows.items()}
session = onnxruntime.InferenceSession(directory / "model.onnx")
scores = session.run(["scores"], inputs | {"word_counts": np.array([len(words)], dtype=np.int64)})[0][0]
limits = [about["thresholds"].get(label.lower(), about["threshold"]) for label in labels]
taken = set()
for first, more, label in sorted(np.argwhere(scores > limits).tolist(), key=lambda at: -scores[tuple(at)]):
    if taken.isdisjoint(span := range(first, first + more + 1)):
        taken.update(span)
        start, end = words[first].start(), words[first + more].end()
        print(start, end, labels[label], f"{scores[first, more, label]:.4f}", text[start:end], sep="\t")
