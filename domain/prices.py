"""Prices of tokens by model, and what calls cost at them, in exact decimal arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from chatjobs.contracts import Cost, Usage

PER_TOKENS = Decimal(1_000_000)
EXAMPLE = "mistral-small-latest=0.1/0.3, mistral-medium-*=0.4/2; EUR"
_EXACT = Context(prec=60)
"""Enough digits for any sum of tokens (16 digits) at any price (15 digits) and factor (7 digits)."""
_MODEL = re.compile(r"(?P<pattern>[A-Za-z0-9._:*-]{1,64})\s*=\s*(?P<input>[^/\s]+)\s*/\s*(?P<output>[^/\s]+)")
_PRICE = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?")
_FACTOR = re.compile(r"(?P<name>cached|batch)\s*=\s*(?P<value>0(?:\.[0-9]{1,6})?|1(?:\.0{1,6})?)")


class Spend(NamedTuple):
    """The tokens of calls of one model. ``batch``: the calls were a batch job's of the model's server.

    ``estimated``: the server did not count the tokens of one of them.
    """

    model: str
    usage: Usage
    batch: bool = False
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """The price of a million tokens of the models whose name matches ``pattern``, where ``*`` is any text."""

    pattern: str
    input: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True)
class Prices:
    """All prices, in one currency (ISO 4217).

    ``cached``: the part of the input price that a token of the prompt costs which the server had in its cache.
    ``batch``: the part of the price that a token costs in a batch job of the model's server.
    """

    currency: str
    models: tuple[ModelPrice, ...]
    cached: Decimal = Decimal(1)
    batch: Decimal = Decimal(1)

    def of(self, model: str) -> ModelPrice | None:
        """The price of a model: that under its own name, else under the pattern with the most letters; None without."""
        found = [one for one in self.models if fnmatchcase(model, one.pattern)]
        return max(found, key=lambda one: ("*" not in one.pattern, len(one.pattern.replace("*", ""))), default=None)

    def cost(self, spends: Iterable[Spend], *, estimated: bool = False) -> Cost | None:
        """What calls cost together; None if one of them is of a model without a price.

        ``estimated``: a part of it is, also if no call says so.
        """
        total = Decimal(0)
        for spend in spends:
            price = self.of(spend.model)
            if price is None:
                return None
            total = _EXACT.add(total, self._amount(price, spend))
            estimated = estimated or spend.estimated
        return Cost(amount=_written(total), currency=self.currency, estimated=estimated)

    def _amount(self, price: ModelPrice, spend: Spend) -> Decimal:
        prompt, answer = spend.usage.prompt_tokens, spend.usage.completion_tokens
        cached = min(cached_tokens(spend.usage), prompt)
        full = _EXACT.add(Decimal(prompt - cached), _EXACT.multiply(Decimal(cached), self.cached))
        tokens = _EXACT.add(_EXACT.multiply(full, price.input), _EXACT.multiply(Decimal(answer), price.output))
        return _EXACT.divide(_EXACT.multiply(tokens, self.batch if spend.batch else Decimal(1)), PER_TOKENS)


def cached_tokens(usage: Usage) -> int:
    """The tokens of a prompt that came from the server's cache; they are among ``prompt_tokens``.

    Mistral reports them as ``prompt_tokens_details.cached_tokens`` (documentation, "Prompt caching"), its older servers
    as ``num_cached_tokens``.
    """
    more: dict[str, Any] = usage.model_extra or {}
    details = more.get("prompt_tokens_details")
    found = details.get("cached_tokens") if isinstance(details, dict) else more.get("num_cached_tokens")
    return max(found, 0) if type(found) is int else 0


def rest(usage: Usage, counted: Sequence[Spend]) -> Usage:
    """The tokens of a job's usage that none of the counted calls has: of an answer whose call is not closed yet."""
    prompt = usage.prompt_tokens - sum(one.usage.prompt_tokens for one in counted)
    answer = usage.completion_tokens - sum(one.usage.completion_tokens for one in counted)
    return Usage(prompt_tokens=max(prompt, 0), completion_tokens=max(answer, 0))


def _written(amount: Decimal) -> str:
    """An amount without an exponent and without zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_prices(text: str) -> Prices:
    """Prices from a setting: ``MODEL=INPUT/OUTPUT, …; CURRENCY; cached=FACTOR; batch=FACTOR``, of which the factors may
    be left out. Prices are per million tokens. Raises ValueError, which says what to correct."""
    first, *others = (part.strip() for part in text.split(";"))
    models = tuple(_model(entry.strip(), number) for number, entry in enumerate(first.split(","), 1) if entry.strip())
    if not models:
        raise ValueError(f"the prices of models come first, as in {EXAMPLE}")
    if len({one.pattern for one in models}) < len(models):
        raise ValueError("a model is there twice; give each name and pattern once")
    currency: str | None = None
    factors: dict[str, Decimal] = {}
    for part in filter(None, others):
        if found := _FACTOR.fullmatch(part):
            if found["name"] in factors:
                raise ValueError(f"{found['name']}= is there twice; give it once")
            factors[found["name"]] = Decimal(found["value"])
        elif re.fullmatch("[A-Z]{3}", part) and currency is None:
            currency = part
        else:
            raise ValueError(_unknown(part, currency))
    if currency is None:
        raise ValueError(f"the currency is missing; write it after a semicolon, as in {EXAMPLE}")
    return Prices(currency, models, **factors)


def _model(entry: str, number: int) -> ModelPrice:
    found = _MODEL.fullmatch(entry)
    if found is None:
        raise ValueError(f"entry {number} is not MODEL=INPUT/OUTPUT, as in mistral-small-latest=0.1/0.3")
    if not (_PRICE.fullmatch(found["input"]) and _PRICE.fullmatch(found["output"])):
        raise ValueError(f"a price of entry {number} is not a number such as 0.1 (at most 6 digits, a point, 9 digits)")
    return ModelPrice(found["pattern"], Decimal(found["input"]), Decimal(found["output"]))


def _unknown(part: str, currency: str | None) -> str:
    if part.startswith(("cached", "batch")):
        return "cached= and batch= are a part of the price, from 0 to 1: batch=0.5 is half of it"
    if currency is not None and re.fullmatch("[A-Z]{3}", part):
        return "there are two currencies; all prices are in one"
    return "after the models come a currency in three capital letters (EUR), cached=0.1 and batch=0.5, with semicolons"
