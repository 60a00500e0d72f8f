"""Made-up values in the place of entities: a name for a name, a number of the same form for a number."""

import hmac
import random
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from itertools import count
from string import ascii_lowercase, ascii_uppercase, digits
from threading import Lock

from spanlake.errors import UserError, shown
from spanlake.redaction.names import normalised

try:
    from faker import Faker
    from faker.config import AVAILABLE_LOCALES
except ImportError as error:
    raise UserError("Surrogates need Faker, which is not installed: pip install 'spanlake[redact]'.") from error

FAKER = version("faker")  # another version makes other values

# Words of labels, and what Faker makes for them; an earlier one counts before a later one.
_PROVIDERS = {
    "email": "ascii_safe_email",
    "mail": "ascii_safe_email",
    "phone": "phone_number",
    "telephone": "phone_number",
    "fax": "phone_number",
    "iban": "iban",
    "card": "credit_card_number",
    "url": "url",
    "website": "url",
    "ip": "ipv4",
    "address": "address",
    "street": "address",
    "city": "city",
    "town": "city",
    "place": "city",
    "location": "city",
    "country": "country",
    "company": "company",
    "organization": "company",
    "organisation": "company",
    "employer": "company",
    "date": "date",
    "birthday": "date",
    "job": "job",
    "profession": "job",
    "username": "user_name",
    "person": "name",
    "name": "name",
    "patient": "name",
    "doctor": "name",
}
_DRAWS = 100  # for one name, until a number goes after it

_faker_lock = Lock()  # a Faker is seeded before each value


def check_locale(locale: str) -> None:
    """Raises UserError for a locale that Faker does not have."""
    if locale not in AVAILABLE_LOCALES:
        raise UserError(f"The locale {shown(locale)} is unknown: give one of Faker's, such as en_US, de_DE or ja_JP.")


def surrogates(names: Mapping[tuple[str, str], str], key: bytes, locale: str) -> dict[tuple[str, str], str]:
    """Returns a made-up value for each name of a document.

    names: the surface of each name, by its label and its normalised form; the result has the same keys. Different names
    get different values, and none of them is a name of the document.
    """
    taken = {name for _, name in names}
    chosen: dict[tuple[str, str], str] = {}
    for (label, name), surface in sorted(names.items()):
        for attempt in count():
            content = f"{label}\0{name}\0{attempt}".encode(errors="surrogatepass")
            value = _made(label, surface, int.from_bytes(hmac.new(key, content, sha256).digest(), "big"), locale)
            if attempt >= _DRAWS:
                value = f"{value} {attempt}"
            if normalised(value) not in taken:
                break
        chosen[label, name] = value
        taken.add(normalised(value))
    return chosen


def _made(label: str, surface: str, seed: int, locale: str) -> str:
    words = re.split(r"[\W_]+", label.replace("e-mail", "email").lower())
    provider = next((made for word, made in _PROVIDERS.items() if word in words), None)
    if provider is None:
        return _of_the_same_form(surface, random.Random(seed))
    with _faker_lock:
        faker = _faker(locale)
        faker.seed_instance(seed)
        return ", ".join(str(getattr(faker, provider)()).splitlines())


def _of_the_same_form(surface: str, chance: random.Random) -> str:
    """Returns the text with another letter for each letter and another digit for each digit."""
    return "".join(
        chance.choice(digits)
        if character.isdecimal()
        else chance.choice(ascii_uppercase if character.isupper() else ascii_lowercase)
        if character.isalpha()
        else character
        for character in surface
    )


@lru_cache(maxsize=8)
def _faker(locale: str) -> Faker:
    return Faker(locale)
