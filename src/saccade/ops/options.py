"""What every backend asks of its options: one check for each kind of number, and messages that name op and option."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from saccade.geometry import Size, whole_number


def whole(op: str, option: str, value: object, least: int = 1, other: str = "") -> int:
    """The option as an int, of NumPy's kinds too; `other` says what else may be given, for the message.

    Raises:
        ValueError: the value is below `least`, or a bool, a float or no number.
    """
    number = whole_number(value)
    if number is None or number < least:
        raise ValueError(f"{op}: {option} must be a whole number, {least} or more{_or(other)}; got {value!r}.")
    return number


def flag(op: str, option: str, value: object) -> bool:
    """The option, which must be True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{op}: {option} must be True or False; got {value!r}.")
    return value


def positive(op: str, option: str, value: object, other: str = "") -> float:
    """The option as a float: a finite number above 0, of NumPy's kinds too."""
    number = _finite(value)
    if number is None or number <= 0:
        raise ValueError(f"{op}: {option} must be a positive number{_or(other)}; got {value!r}.")
    return number


def not_negative(op: str, option: str, value: object) -> float:
    """The option as a float: a finite number, 0 or more, of NumPy's kinds too."""
    number = _finite(value)
    if number is None or number < 0:
        raise ValueError(f"{op}: {option} must be a number, 0 or more; got {value!r}.")
    return number


def sides(op: str, option: str, value: int | Sequence[int], hint: str = "") -> Size:
    """The option as a size: one whole number, or (rows, cols) of such."""
    try:
        return Size.of(value)
    except ValueError:
        raise ValueError(
            f"{op}: {option} must be a whole number, 1 or more, or (rows, cols) of such; got {value!r}.{hint}"
        ) from None


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        return None
    number = float(value)
    return number if abs(number) < float("inf") else None  # NaN is not below either


def _or(other: str) -> str:
    return f", or {other}" if other else ""
