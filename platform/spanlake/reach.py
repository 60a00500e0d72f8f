"""Says what a model cannot find, whatever its weights are: by its widest span, its splitter and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from spanlake.data.examples import edges_of_words
from spanlake.doctor import Check
from spanlake.modeling.tokens import ModelTokenizer, unknown_token
from spanlake.package import open_package
from spanlake.splitters.find import find_splitter

# For each script a sentence, and a name in it.
_SAMPLES = {
    "Arabic": ("يعمل محمد في جامعة القاهرة.", "محمد"),
    "Bengali": ("রবীন্দ্রনাথ ঠাকুর কলকাতায় জন্মগ্রহণ করেন।", "রবীন্দ্রনাথ"),
    "Burmese": ("ကျွန်တော်သည်မြန်မာနိုင်ငံ၏ပြည်သူဖြစ်သည်။", "မြန်မာနိုင်ငံ"),
    "Chinese": ("王小明在北京大学学习。", "北京大学"),
    "Cyrillic": ("Анна живёт в Москве.", "Анна"),
    "Devanagari": ("नरेंद्र मोदी भारत के प्रधानमंत्री हैं।", "नरेंद्र मोदी"),
    "Greek": ("Η Μαρία ζει στην Αθήνα.", "Μαρία"),
    "Hebrew": ("דוד גר בתל אביב.", "דוד"),
    "Japanese": ("田中さんは昨日パリに行きました。", "パリ"),
    "Khmer": ("រាជធានីភ្នំពេញគឺជាទីក្រុងធំ", "ភ្នំពេញ"),
    "Korean": ("김철수 씨는 서울에 산다.", "김철수"),
    "Lao": ("ປະເທດລາວມີນະຄອນຫຼວງແມ່ນວຽງຈັນ", "ລາວ"),
    "Latin": ("Ada Lovelace lived in London.", "Ada Lovelace"),
    "Tamil": ("சென்னை தமிழ்நாட்டின் தலைநகரம்.", "சென்னை"),
    "Thai": ("นายสมชายทำงานที่กรุงเทพมหานคร", "สมชาย"),
}


def examine_model(model: str) -> Iterator[Check]:
    """Yields what the model can find, and what it cannot. Raises `UserError` as `open_package` does."""
    package = open_package(model)
    config, tokenizer = package.config, package.tokenizer
    yield Check("model", "ok", f"{package.name}, fingerprint {package.fingerprint[:12]}")
    yield Check("widest entity", "ok", f"{config.widest} words; a longer entity is never found whole")
    yield Check("words", "ok", f"splitter {config.splitter}; an entity begins and ends where words do")
    inside = [script for script, (text, name) in _SAMPLES.items() if not _findable(text, name, config.splitter)]
    if inside:
        says = f"a name may lie inside a word, and is then not found, in {', '.join(inside)}"
        yield Check("scripts", "missing", f"{says}: choose a model with the splitter unicode")
    else:
        yield Check("scripts", "ok", f"names can be told from their neighbours in {', '.join(_SAMPLES)}")
    unread = [script for script, (_, name) in _SAMPLES.items() if not _readable(name, tokenizer)]
    if unread:
        says = f"the tokenizer has no sub-words for {', '.join(unread)}, so names look alike"
        yield Check("letters", "missing", f"{says}: choose a model with a multilingual encoder")
    else:
        yield Check("letters", "ok", f"the tokenizer reads {', '.join(_SAMPLES)}")


def _findable(text: str, name: str, splitter: str) -> bool:
    first, last = edges_of_words(text, find_splitter(splitter)(text))
    start = text.index(name)
    return start in first and start + len(name) in last


def _readable(name: str, tokenizer: ModelTokenizer) -> bool:
    """Returns whether the tokenizer spells a name without its token for unknown characters."""
    unknown = unknown_token(tokenizer.backend)
    number = None if unknown is None else tokenizer.backend.token_to_id(unknown)
    ids = tokenizer.words(name.split()).ids
    return len(ids) > 0 and number not in ids
