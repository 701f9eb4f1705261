"""One line of the doctor: a name, a state, what was found, how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["OK", "WARN", "MISSING", "BROKEN"]


@dataclass(frozen=True)
class Check:
    """What was found of one thing.

    Attributes:
        state: OK; WARN: runs, but slower or otherwise than one may expect; MISSING: optional and not there; BROKEN:
            Saccade does not run until it is mended.
        mend: what to do; empty where there is nothing to do.
    """

    name: str
    state: State
    found: str
    mend: str = ""
