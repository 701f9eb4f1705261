"""The commands that are not Hydra's: key=value arguments, their messages, and exit codes."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence


def read_options(
    arguments: Sequence[str], *, required: Sequence[str], optional: Sequence[str], usage: str
) -> dict[str, str]:
    """The options by key, none of them empty.

    Raises:
        ValueError: an argument that is not key=value, an unknown, repeated or missing key.
    """
    known = (*required, *optional)
    options: dict[str, str] = {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or not value:
            raise ValueError(f"{argument!r} is not of the form key=value\n\n{usage}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise ValueError(f"{key}= is not an option{hint}\n\n{usage}")
        if key in options:
            raise ValueError(f"{key}= is given twice")
        options[key] = value
    missing = [f"{key}=" for key in required if key not in options]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}\n\n{usage}")
    return options


def read_choice(options: Mapping[str, str], key: str, valid: Sequence[str]) -> str:
    """The chosen word; the first valid one by default.

    Raises:
        ValueError: another word.
    """
    chosen = options.get(key, valid[0])
    if chosen not in valid:
        raise ValueError(f"{key}={chosen}: choose {', '.join(valid[:-1])} or {valid[-1]}")
    return chosen


def read_whole(options: Mapping[str, str], key: str, default: int, *, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        ValueError: something else.
    """
    text = options.get(key, str(default))
    if not re.fullmatch(r"\d{1,12}", text) or int(text) < least:
        raise ValueError(f"{key}={text}: give a whole number, {least} or more")
    return int(text)


def run_command(arguments: Sequence[str] | None, usage: str, work: Callable[[Sequence[str]], Iterable[str]]) -> int:
    """Run a command line and print the lines that its work returns, or the usage.

    Args:
        arguments: of the command; None is those of the process.
        usage: for --help and for a call without arguments.
        work: does what the arguments ask.

    Returns:
        The exit code: 0; 1 after an error that the user can mend; 2 if nothing was asked; 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(usage)
        return 0 if given else 2
    try:
        lines = list(work(given))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. What was not finished is not written.", file=sys.stderr)
        return 130
    print("\n".join(lines))
    return 0
