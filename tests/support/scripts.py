"""Texts in sixteen scripts, and where their grapheme clusters begin and end."""

import regex

# For each script a text, and words of it that an entity could be.
SCRIPTS = {
    "Latin": (
        "Ada's friend Zoe\u0308 lives in Que\u0301bec, l'Italie.",
        ["Ada", "Zoe\u0308", "Que\u0301bec", "Italie"],
    ),
    "Cyrillic": ("Анна живёт в Санкт-Петербурге.", ["Анна", "Санкт", "Петербурге"]),
    "Greek": ("Η Μαρία ζει στην Αθήνα.", ["Μαρία", "Αθήνα"]),
    "Arabic": ("يعمل محمد في جامعة القاهرة بمُدُنٍ.", ["محمد", "القاهرة", "بمُدُنٍ"]),
    "Hebrew": ('הוא שירת בצה"ל בתל אביב.', ['בצה"ל', "אביב"]),
    "Devanagari": ("नरेंद्र मोदी भारत के प्रधानमंत्री हैं।", ["नरेंद्र", "मोदी", "प्रधानमंत्री"]),
    "Bengali": ("রবীন্দ্রনাথ ঠাকুর কলকাতায় জন্মগ্রহণ করেন।", ["রবীন্দ্রনাথ", "ঠাকুর", "কলকাতায়"]),
    "Tamil": ("சென்னை தமிழ்நாட்டின் தலைநகரம்.", ["சென்னை", "தமிழ்நாட்டின்"]),
    "Hangul": ("김철수는 서울에서 일한다.", ["김철수는", "서울에서"]),
    "Han": ("王小明在北京大学学习。他很高兴。", ["北京", "大学"]),
    "Japanese": ("田中さんは昨日パリに行きました。", ["田中", "パリ"]),
    "Thai": ("นายสมชายทำงานที่กรุงเทพมหานคร", ["สมชาย", "กรุงเทพมหานคร"]),
    "Lao": ("ປະເທດລາວມີນະຄອນຫຼວງແມ່ນວຽງຈັນ", ["ລາວ", "ວຽງຈັນ"]),
    "Khmer": ("រាជធានីភ្នំពេញគឺជាទីក្រុងធំជាងគេនៅក្នុងប្រទេសកម្ពុជា", ["ភ្នំពេញ", "កម្ពុជា"]),
    "Myanmar": ("မြန်မာနိုင်ငံ၏မြို့တော်သည်နေပြည်တော်ဖြစ်သည်။", ["မြန်မာနိုင်ငံ", "။"]),
    "Tai Tham": ("ᨩᩮ᩠ᨿᨦᩉ᩠ᨾᩲ᩵", ["ᨩᩮ᩠ᨿ", "ᨦ"]),  # ICU has no dictionary for it
}


def cluster_edges(text: str) -> set[int]:
    """Returns where a grapheme cluster of the text begins or ends, in code points."""
    readable = regex.sub("[\ud800-\udfff]", "\ufffd", text)
    return {0, *(cluster.end() for cluster in regex.finditer(r"\X", readable))}
