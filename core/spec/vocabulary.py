"""What a researcher writes: Experiment, Expect, Sweep, codemod."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import attrs

from core.errors import SpecError

PROFILE_NAMES = ("gpu", "cpu")
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")  # of all that -k matches
MAX_CASES = 64  # of one sweep: at five minutes a trial this is already a night
HARM = "harm"  # the tag of an experiment whose positive delta_bpb is meant
SAID = {  # what a reader finds in each text
    "hypothesis": "why the change should help or harm",
    "change": "what to change in the training module",
}

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?")
RANGE = re.compile(r"\s*(?:\.{2,}|\bto\b|,|…)\s*")  # between the ends of one

Option = bool | int | float | str | None | tuple["Option", ...]


@attrs.frozen(kw_only=True)
class CodemodCall:
    """A codemod with its options, named but not imported.

    Attributes:
        reference: Module and class below ``codemods/``, as ``constants.SetConstant``.
        options: Name and value of each option, in the order in which they were given.
    """

    reference: str
    options: tuple[tuple[str, Option], ...] = ()

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options)
        return f"{self.reference}({options})"


def codemod(reference: str, /, **options: Option) -> CodemodCall:
    """Name a codemod below ``codemods/`` with its options.

    Args:
        reference: Module and class, as ``"constants.SetConstant"``.
        **options: Values; ``"{axis}"`` stands for the value of a sweep's axis and
            keeps its type.

    Raises:
        SpecError: The reference is not ``module.Class``, or a value is not data.
    """
    if not isinstance(reference, str) or not re.fullmatch(
        r"([a-z_][a-z0-9_]*\.)+[A-Z][A-Za-z0-9]*", reference
    ):
        raise SpecError(
            f"codemod({reference!r}) names no codemod: expected 'module.Class'.",
            hint="name a class below codemods/, as in "
            'codemod("constants.SetConstant", name=..., value=...).',
            field="codemod",
        )
    for name, value in options.items():
        if not is_option(value):
            raise SpecError(
                f"codemod option {name}={value!r}: expected a number, a text, "
                "a truth value, None or a tuple of them.",
                hint=f"write {name}= as plain data.",
                field=name,
            )
    return CodemodCall(reference=reference, options=tuple(options.items()))


def is_option(value: Any) -> bool:
    """Whether *value* is plain data, as a codemod takes it."""
    if isinstance(value, tuple):
        return all(is_option(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int | str | None)


def _text(owner: object, attribute: attrs.Attribute, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        hint = f"say in {attribute.name}= {SAID[attribute.name]}."
        if isinstance(value, tuple | list):
            hint = "write one text, without commas between its parts or behind it."
        raise SpecError(
            f"{attribute.name}={value!r}: expected a sentence.",
            hint=hint,
            field=attribute.name,
        )


def _bpb(owner: object, attribute: attrs.Attribute, value: object) -> None:
    is_width = attribute.name != "delta_bpb"
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        hint = f"write it without quotes: {attribute.name}={value.strip()}."
    elif is_width:
        hint = f"write one number above 0: {attribute.name}=0.001."
    elif (prediction := _prediction(value)) is not None:
        hint = f"write {prediction}, which reads the range as two sd to either side."
    elif isinstance(value, str | tuple | list):
        hint = "give one number, and its uncertainty as sd=: delta_bpb=-0.001."
    else:
        hint = "write a finite number, negative for an improvement: delta_bpb=-0.001."
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
    ):
        raise SpecError(
            f"{attribute.name}={value!r}: expected a number of bits per byte.",
            hint=hint,
            field=attribute.name,
        )


def _prediction(value: object) -> str | None:
    """Return the fields of the prediction that *value* is meant as, if it is a range."""
    parts = RANGE.split(value.strip(" ()[]")) if isinstance(value, str) else value
    try:
        low, high = map(float, parts)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(low) or not math.isfinite(high) or low == high:
        return None
    if low == -high:
        return f"delta_bpb=0, within={abs(high):.2g}"
    return f"delta_bpb={(low + high) / 2:.4g}, sd={abs(high - low) / 4:.2g}"


def _positive_bpb(
    owner: object, attribute: attrs.Attribute, value: float | None
) -> None:
    if value is None:
        return
    _bpb(owner, attribute, value)
    if value <= 0:
        raise SpecError(
            f"{attribute.name}={value!r}: expected more than 0 bits per byte.",
            hint=f"give the width, without a sign: {attribute.name}=0.001.",
            field=attribute.name,
        )


@attrs.frozen(kw_only=True)
class Expect:
    """The change in val_bpb that an experiment predicts.

    Attributes:
        delta_bpb: Bits per byte against the base: negative is an improvement, positive
            predicts harm (the experiment is then tagged ``harm``), 0 with ``within``
            claims equivalence.
        sd: How sure the author is: one standard deviation of the prediction.
        within: For ``delta_bpb=0``: how far from 0 still counts as the same.
        on: The profile that the prediction speaks of; under another one the experiment
            is measured, and never scored.
    """

    delta_bpb: float = attrs.field(validator=_bpb)
    sd: float | None = attrs.field(default=None, validator=_positive_bpb)
    within: float | None = attrs.field(default=None, validator=_positive_bpb)
    on: str = "gpu"

    def __attrs_post_init__(self) -> None:
        if self.on not in PROFILE_NAMES:
            raise SpecError(
                f"on={self.on!r}: expected one of {', '.join(PROFILE_NAMES)}.",
                hint="name the profile that the prediction speaks of.",
                field="on",
            )
        if self.delta_bpb == 0 and self.within is None:
            raise SpecError(
                "delta_bpb=0 predicts no change, and no run can show exactly none.",
                hint="say what still counts as the same: within=0.001.",
                field="delta_bpb",
            )
        if self.delta_bpb != 0 and self.within is not None:
            raise SpecError(
                f"within={self.within!r} goes with delta_bpb=0, not with "
                f"delta_bpb={self.delta_bpb!r}.",
                hint="use sd= for the uncertainty of a prediction that is not 0.",
                field="within",
            )


@attrs.frozen(init=False)
class Sweep:
    """The values that an experiment goes through, one case each.

    Attributes:
        axes: Name and values of each axis; several axes are combined.
    """

    axes: tuple[tuple[str, tuple[Option, ...]], ...]

    def __init__(self, **axes: tuple[Option, ...]) -> None:
        if not axes:
            raise SpecError(
                "Sweep() has no axis.",
                hint="name an axis and its values: Sweep(base=(50_000, 100_000)).",
                field="sweep",
            )
        for name, values in axes.items():
            self._check_axis(name, values)
        size = math.prod(len(values) for values in axes.values())
        if size > MAX_CASES:
            raise SpecError(
                f"this sweep has {size:,} cases; at most {MAX_CASES} are run.",
                hint="sweep fewer values, or split it into experiments.",
                field="sweep",
            )
        for name, values in axes.items():
            self._check_values(name, values)
        self.__attrs_init__(tuple((name, tuple(axes[name])) for name in axes))

    @staticmethod
    def _check_axis(name: str, values: object) -> None:
        if not NAME.fullmatch(name):
            raise SpecError(
                f"the axis {name!r} does not match {NAME.pattern}.",
                hint="name it in lower case, as in Sweep(base=...).",
                field=name,
            )
        if not isinstance(values, tuple | list) or not values:
            raise SpecError(
                f"{name}={values!r}: expected a tuple of values.",
                hint=f"list the values: {name}=(1, 2, 4).",
                field=name,
            )

    @staticmethod
    def _check_values(name: str, values: tuple[Option, ...]) -> None:
        for value in values:
            if isinstance(value, tuple) or not is_option(value):
                raise SpecError(
                    f"{name}={value!r}: expected a number, a text or a truth value.",
                    hint=f"write the values of {name} as plain data.",
                    field=name,
                )
            if isinstance(value, str) and not value.isprintable():
                raise SpecError(
                    f"{name}={value!r}: expected a text that a terminal can show.",
                    hint=f"leave out its special characters: {name} names the cases.",
                    field=name,
                )
        if len({str(value) for value in values}) < len(values):  # as ids have them
            raise SpecError(
                f"{name}={values!r} names a value twice.",
                hint="list each value once.",
                field=name,
            )

    def cases(self) -> Iterator[dict[str, Option]]:
        """Yield one value for every axis, the last axis fastest."""
        names = [name for name, _ in self.axes]
        for values in product(*(values for _, values in self.axes)):
            yield dict(zip(names, values, strict=True))


def _tags(owner: object, attribute: attrs.Attribute, value: object) -> None:
    if isinstance(value, str):
        raise SpecError(
            f"tags={value!r} is one text: expected a tuple of tags.",
            hint=f"write tags={_tuple_of_tags(value.split(','))}.",
            field="tags",
        )
    if not isinstance(value, tuple | list):
        raise SpecError(
            f"tags={value!r}: expected a tuple of tags.",
            hint='list them: tags=("attention", "speed").',
            field="tags",
        )
    for tag in value:
        if not isinstance(tag, str) or not NAME.fullmatch(tag):
            hint = 'begin with a letter, as in tags=("attention", "speed").'
            if NAME.fullmatch(_word(tag)):
                hint = f"use lower case and underscores: tags={_tuple_of_tags(value)}."
            raise SpecError(
                f"the tag {tag!r} does not match {NAME.pattern}.",
                hint=hint,
                field="tags",
            )


def _word(tag: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(tag).lower()).strip("_")


def _tuple_of_tags(tags: Iterable[object]) -> str:
    """Return *tags* as a spec would have them, each in the form of a name."""
    words = [f'"{word}"' for word in map(_word, tags) if word]
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"


def _calls(value: object) -> object:
    return (value,) if isinstance(value, CodemodCall) else value


@attrs.frozen(kw_only=True)
class Experiment:
    """A hypothesis, the change that tests it, and what it should do to val_bpb.

    Attributes:
        hypothesis: Why the change should help, or harm.
        change: What to change in the training module, as an instruction.
        expect: The predicted change in val_bpb; None measures without a prediction.
        codemod: The codemod that makes the change, or several in their order; without
            one it is looked up at ``codemods/<spec file>/<experiment>.py``.
        sweep: Values that ``change`` and ``codemod`` refer to as ``{axis}``.
        tags: Words that ``-k`` matches, besides file, name and swept values; ``harm``
            says that a positive ``delta_bpb`` is meant.
    """

    hypothesis: str = attrs.field(validator=_text)
    change: str = attrs.field(validator=_text)
    expect: Expect | None = None
    codemod: tuple[CodemodCall, ...] = attrs.field(default=(), converter=_calls)
    sweep: Sweep | None = None
    tags: tuple[str, ...] = attrs.field(default=(), validator=_tags)

    def __attrs_post_init__(self) -> None:
        number = isinstance(self.expect, int | float) and self.expect
        prediction = _prediction(self.expect) or f"delta_bpb={number or -0.001!r}"
        for field, kind, example in (
            ("expect", Expect, f"expect=Expect({prediction})"),
            ("sweep", Sweep, "sweep=Sweep(base=(50_000, 100_000))"),
        ):
            value = getattr(self, field)
            if value is not None and not isinstance(value, kind):
                raise SpecError(
                    f"{field}={value!r}: expected {kind.__name__}(...).",
                    hint=f"write {example}.",
                    field=field,
                )
        calls = self.codemod
        if not isinstance(calls, tuple | list) or not all(
            isinstance(call, CodemodCall) for call in calls
        ):
            raise SpecError(
                f"codemod={calls!r}: expected codemod(...), or a tuple of them.",
                hint='write codemod=codemod("constants.SetConstant", name=..., '
                "value=...).",
                field="codemod",
            )
        delta = 0 if self.expect is None else self.expect.delta_bpb
        if delta > 0 and HARM not in self.tags:
            tags = _tuple_of_tags((*self.tags, HARM))
            raise SpecError(
                f"delta_bpb={delta!r} predicts harm: negative is an improvement.",
                hint=f"write delta_bpb={-delta!r}, or tag it if harm is meant: "
                f"tags={tags}.",
                field="expect",
            )


def substitute(text: Option, values: Mapping[str, Option]) -> Option:
    """Return *text* with each ``{axis}`` replaced by its value.

    A text that is nothing but ``{axis}`` becomes the value itself, with its type.
    """
    if isinstance(text, tuple):
        return tuple(substitute(item, values) for item in text)
    if not isinstance(text, str):
        return text
    for axis, value in values.items():
        if text == f"{{{axis}}}":
            return value
    return re.sub(  # in one pass: a value may look like an axis
        r"\{(\w+)\}", lambda axis: str(values.get(axis[1], axis[0])), text
    )
