"""What the fields of a dataclass must be, and what they are if nothing is said."""

import dataclasses
from typing import Any


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError, naming the field, unless every named field is positive."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive; got {getattr(config, name)}")


def check_positive_or_none(config: Any, *names: str) -> None:
    """`check_positive` of those of the named fields that are given, not None."""
    check_positive(config, *(name for name in names if getattr(config, name) is not None))


def check_not_negative(config: Any, *names: str) -> None:
    """Raise ValueError, naming the field, if a named field is negative."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} must not be negative; got {getattr(config, name)}")


def check_seeds(config: Any) -> None:
    """Raise ValueError unless its `seeds` are one or more different numbers that are not
    negative.
    """
    seeds = list(config.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different numbers; got {seeds}")
    if min(seeds) < 0:
        raise ValueError(f"seeds must not be negative; got {seeds}")


def default_of(config: Any, name: str) -> Any:
    """What a field of a dataclass is if nothing is said."""
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )
