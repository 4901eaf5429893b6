"""What a model's tokens cost."""

import datetime
import re

import attrs

from core.errors import SessionError

# https://platform.claude.com/docs/en/about-claude/pricing, as it was on this day
AS_OF = datetime.date(2026, 10, 24)
# Of the price of input, where a price list names no other
CACHE_WRITE, CACHE_READ = 1.25, 0.1


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens of one call.

    Attributes:
        input_tokens: Of the prompt, that no cache held.
        output_tokens: Of the answer, thinking included.
        cache_read_tokens: Of the prompt, that a cache held.
        cache_write_tokens: Of the prompt, that were put into a cache.
    """

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens


@attrs.frozen(kw_only=True)
class Rates:
    """US dollars a million tokens."""

    input: float
    output: float
    cache_write: float
    cache_read: float

    def usd(self, usage: Usage) -> float:
        """Return what a call cost."""
        millionths = (
            usage.input_tokens * self.input
            + usage.output_tokens * self.output
            + usage.cache_write_tokens * self.cache_write
            + usage.cache_read_tokens * self.cache_read
        )
        return millionths / 1e6


@attrs.frozen(kw_only=True)
class Price:
    """What a model costs.

    Attributes:
        rates: For a prompt of ordinary length.
        long: For a longer one, if that has other rates.
        long_tokens: Where longer begins.
    """

    rates: Rates
    long: Rates | None = None
    long_tokens: int = 0

    def usd(self, usage: Usage) -> float:
        """Return what a call cost."""
        is_long = self.long is not None and usage.prompt_tokens > self.long_tokens
        return (self.long if is_long else self.rates).usd(usage)

    def at_most_usd(self, prompt_tokens: int, output_tokens: int) -> float:
        """Return what a call costs at most: nothing is cached yet, all is written."""
        return self.usd(
            Usage(
                input_tokens=0,
                output_tokens=output_tokens,
                cache_read_tokens=0,
                cache_write_tokens=prompt_tokens,
            )
        )


def rates(
    input_usd: float, output_usd: float, *, cache_read: float | None = None
) -> Rates:
    """Return the rates of a list that names those of input and output."""
    return Rates(
        input=input_usd,
        output=output_usd,
        cache_write=CACHE_WRITE * input_usd,
        cache_read=CACHE_READ * input_usd if cache_read is None else cache_read,
    )


PRICES = {
    "claude-fable-5-1": Price(rates=rates(10, 50, cache_read=0.25)),
    "claude-fable-5": Price(rates=rates(10, 50)),
    "claude-opus-5-5": Price(rates=rates(4, 20, cache_read=0.2)),
    "claude-opus-5": Price(rates=rates(5, 25)),
    "claude-opus-4-8": Price(rates=rates(5, 25)),
    "claude-opus-4-7": Price(rates=rates(5, 25)),
    "claude-opus-4-6": Price(rates=rates(5, 25)),
    "claude-opus-4-5": Price(rates=rates(5, 25)),
    "claude-sonnet-5-5": Price(rates=rates(2, 10, cache_read=0.1)),
    "claude-sonnet-5": Price(rates=rates(2, 10)),
    "claude-haiku-5-5": Price(
        rates=rates(0.1, 0.5), long=rates(0.5, 2.5), long_tokens=100_000
    ),
    "claude-haiku-4-5": Price(rates=rates(1, 5)),
}


def price_of(model: str, usd_per_mtok: tuple[float, float] | None = None) -> Price:
    """Return what *model* costs.

    Args:
        model: As the API names it; a date behind the name does not matter.
        usd_per_mtok: Of input and of output, if the user states them.

    Raises:
        SessionError: It is not known, or what the user states is no price.
    """
    if usd_per_mtok is not None:
        if not all(0 < usd < 10_000 for usd in usd_per_mtok):
            stated = " ".join(f"{usd:g}" for usd in usd_per_mtok)
            raise SessionError(
                f"--usd-per-mtok {stated}: expected two prices above 0.",
                hint="give US dollars a million tokens of input and of output, as "
                "--usd-per-mtok 4 20.",
            )
        return Price(rates=rates(*usd_per_mtok))
    price = PRICES.get(re.sub(r"-\d{8}$", "", model))
    if price is None:
        raise SessionError(
            f"what the model {model!r} costs is not known; the prices here are of "
            f"{AS_OF}, for {', '.join(PRICES)}.",
            hint="state US dollars a million tokens of input and of output: "
            "--usd-per-mtok IN OUT.",
        )
    return price
