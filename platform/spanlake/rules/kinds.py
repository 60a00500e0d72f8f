"""Kinds of entities with a form that can be checked: addresses, numbers with check digits.

Each function yields the start and end (exclusive) of the entities in a text, in code points. They do not overlap.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address
from urllib.parse import urlsplit

import idna
import phonenumbers
from stdnum import iban, luhn

from spanlake.rules.patterns import compiled, spans

Spans = Iterator[tuple[int, int]]

_EMAIL = compiled(
    r"[\p{L}\p{N}_](?:[.]?[\p{L}\p{M}\p{N}_%+'&-]+)*@"
    r"(?:[\p{L}\p{N}][\p{L}\p{M}\p{N}-]*[.])+\p{L}[\p{L}\p{M}\p{N}-]*[\p{L}\p{M}\p{N}]"
)
_URL = compiled(r"(?i)(?:https?|ftps?)://[^\s\p{Z}<>\"]+|\bwww[.][^\s\p{Z}<>\"]+")
# These are linear in any engine, and `re` has less to do for each of their many matches.
_IP = re.compile(r"[0-9A-Fa-f:.]{3,}")
_DIGITS = re.compile(r"[0-9]{3,}")
_DIGITS_OR_LETTERS = re.compile(r"[0-9A-Za-z]+")

_EMAIL_NAME = 64  # characters before the @, at most
_CARD_LENGTHS = range(13, 20)
_CARD_BEGINNING = re.compile("[2-6]")  # the first digit, which tells the industry of the issuer
_IBAN_LENGTHS = range(15, 35)
_IBAN_BEGINNING = re.compile(r"[A-Za-z]{2}[0-9]{2}")
_SEPARATORS = " -\u00a0\u202f"
_PUNCTUATION = ".,;:!?'\"*_…”’»"
_OPENERS = {")": "(", "]": "[", "}": "{"}


def emails(text: str) -> Spans:
    """E-mail addresses with a domain that can exist, by the rules for internationalized names (IDNA)."""
    for start, end in spans(_EMAIL, text):
        name, _, domain = text[start:end].partition("@")
        if len(name) <= _EMAIL_NAME and _is_domain(domain):
            yield start, end


def _is_domain(text: str) -> bool:
    try:
        idna.encode(text, uts46=True)
    except idna.IDNAError:
        return False
    return True


def urls(text: str) -> Spans:
    """Web and FTP addresses with a scheme, or that begin with `www.`, without the punctuation of the sentence."""
    for start, end in spans(_URL, text):
        url = _without_punctuation(text[start:end])
        try:
            parts = urlsplit(url if "://" in url else f"//{url}")
            has_host = bool(parts.hostname and parts.hostname.strip("."))
            _ = parts.port  # raises ValueError if it is not a port
        except ValueError:
            continue
        if has_host:
            yield start, start + len(url)


def _without_punctuation(url: str) -> str:
    """Returns the URL without punctuation at its end, and without brackets there that nothing in it opens."""
    left = Counter(character for character in url if character in "()[]{}")
    end = len(url)
    while end and (url[end - 1] in _PUNCTUATION or left[url[end - 1]] > left[_OPENERS.get(url[end - 1], url[end - 1])]):
        end -= 1
        left[url[end]] -= 1
    return url[:end]


def ip_addresses(text: str) -> Spans:
    """IPv4 and IPv6 addresses. An IPv6 address has at least one digit, because `dead::beef` may be program text."""
    for match in _IP.finditer(text):
        found = match[0].strip(".")
        if found.endswith(":") and not found.endswith("::"):
            found = found[:-1]
        host, _, port = found.partition(":")
        if port.isdecimal() and "." in host:
            found = host
        if _is_ip(found):
            start = match.start() + match[0].index(found)
            if _stands_alone(text, start, start + len(found)):
                yield start, start + len(found)


def _is_ip(text: str) -> bool:
    if not any(map(str.isdecimal, text)) or not ("." in text or ":" in text):
        return False
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def cards(text: str) -> Spans:
    """Numbers of payment cards: 13 to 19 digits with a check digit (Luhn), in groups of three or more."""
    digits = [match.span() for match in _DIGITS.finditer(text)]
    return _grouped(text, digits, _CARD_BEGINNING, _CARD_LENGTHS, luhn.is_valid)


def ibans(text: str) -> Spans:
    """International bank account numbers, by the form of each country and the check digits (ISO 13616)."""
    tokens = [match.span() for match in _DIGITS_OR_LETTERS.finditer(text)]
    return _grouped(text, tokens, _IBAN_BEGINNING, _IBAN_LENGTHS, partial(iban.is_valid, check_country=False))


def _grouped(
    text: str,
    groups: list[tuple[int, int]],
    beginning: re.Pattern[str],
    lengths: range,
    is_valid: Callable[[str], bool],
) -> Spans:
    """Yields valid numbers, written together or in groups with one separator between them; the longest at each start.

    groups: start and end of every group that a number may have, in order.
    """
    position = 0
    for first, (start, _) in enumerate(groups):
        if start < position or not beginning.match(text, start):
            continue
        number = ""
        ends: list[tuple[int, str]] = []
        for begin, end in groups[first : first + lengths[-1]]:
            if ends and (begin - ends[-1][0] != 1 or text[begin - 1] not in _SEPARATORS):
                break
            number += text[begin : min(end, begin + lengths[-1] + 1)]
            if len(number) > lengths[-1]:
                break
            ends.append((end, number))
        for end, compact in reversed(ends):
            if len(compact) in lengths and _stands_alone(text, start, end) and is_valid(compact):
                yield start, end
                position = end
                break


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Returns whether no letter or digit touches the span."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() or after.isalnum() or before == "_" or after == "_")


def phones(text: str, region: str | None) -> Spans:
    """Phone numbers that can exist. Without a region, only those that begin with + and the code of a country."""
    for match in phonenumbers.PhoneNumberMatcher(text, region, max_tries=len(text)):
        yield match.start, match.end


KINDS: dict[str, Callable[[str], Spans]] = {
    "email": emails,
    "url": urls,
    "ip": ip_addresses,
    "card": cards,
    "iban": ibans,
}
REGIONS: frozenset[str] = frozenset(phonenumbers.SUPPORTED_REGIONS)
