"""Tests the kinds of rules: what they find, where it ends, and what they leave."""

import pytest

from spanlake.rules.kinds import KINDS, phones

FOUND = {
    "email": [
        ("Mail ada@example.org, or o'brien@x.ie.", ["ada@example.org", "o'brien@x.ie"]),
        ("see..bob@corp.local <jörg@müller.de>", ["bob@corp.local", "jörg@müller.de"]),
        ("mailto:a.b+c@sub.domain.test?x", ["a.b+c@sub.domain.test"]),
        ("a@b ada@-x.org @example.org ada@example", []),
        ("x" * 65 + "@example.org", []),
    ],
    "url": [
        ("(see https://en.wikipedia.org/wiki/Ada_(name)).", ["https://en.wikipedia.org/wiki/Ada_(name)"]),
        (
            "HTTP://10.0.0.1:80/a?b=c! www.example.org, ftp://f.org",
            ["HTTP://10.0.0.1:80/a?b=c", "www.example.org", "ftp://f.org"],
        ),
        ("http://x.org:99999/ http:// https://?", []),
    ],
    "ip": [
        ("10.0.0.1. 192.168.1.1:8080 [fe80::1]:80", ["10.0.0.1", "192.168.1.1", "fe80::1"]),
        ("2001:db8::8a2e:370:7334, ::1", ["2001:db8::8a2e:370:7334", "::1"]),
        ("12:34:56 1.2.3.4.5 999.1.1.1 v1.2.3.4 std::abc1 dead::beef", []),
    ],
    "card": [
        ("4111 1111 1111 1111 or 378282246310005.", ["4111 1111 1111 1111", "378282246310005"]),
        ("order 123 4111-1111-1111-1111-1", ["4111-1111-1111-1111"]),
        ("4111 1111 1111 1112, 0000000000000000, A4111111111111111, 4111  1111  1111  1111", []),
    ],
    "iban": [
        ("DE89 3704 0044 0532 0130 00 BIC COBADEFF", ["DE89 3704 0044 0532 0130 00"]),
        ("gb82west12345698765432; NL91 ABNA 0417 1643 00.", ["gb82west12345698765432", "NL91 ABNA 0417 1643 00"]),
        ("DE88 3704 0044 0532 0130 00, XDE89370400440532013000", []),
    ],
}


@pytest.mark.parametrize(("kind", "text", "expected"), [(kind, *case) for kind in FOUND for case in FOUND[kind]])
def test_a_kind_finds_what_is_valid(kind: str, text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in KINDS[kind](text)] == expected


def test_every_kind_is_tried() -> None:
    assert FOUND.keys() == KINDS.keys()


def test_phone_numbers_are_read_as_of_a_region() -> None:
    text = "Call +44 20 7946 0958, 030 123456 or 12."
    assert [text[start:end] for start, end in phones(text, None)] == ["+44 20 7946 0958"]
    assert [text[start:end] for start, end in phones(text, "DE")] == ["+44 20 7946 0958", "030 123456"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["a", "1", "4 ", "a@", ")", "www.", "http://)", "::", "DE89 ", "1.", "@a."])
def test_a_long_text_of_one_part_is_read(kind: str, unit: str) -> None:
    assert list(KINDS[kind](unit * 20_000)) is not None
