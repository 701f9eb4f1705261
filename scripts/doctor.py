"""Say what will and will not run on this machine, and how to mend it: `python scripts/doctor.py [--json]`."""

import sys


def main() -> int:
    """Run the checks; if even importing them fails, say what is broken."""
    if sys.version_info < (3, 10):  # noqa: UP036, a doctor has to speak to the sick
        print(f"BROKEN  python {sys.version.split()[0]}: 3.10 or newer is needed -> make setup PYTHON=python3.11")
        return 1
    try:
        from saccade.run.doctor import main as run
    except (ImportError, OSError, RuntimeError) as error:
        name = getattr(error, "name", None) or type(error).__name__
        print(f"BROKEN  {name}: {error}\n        -> make clean setup, then .venv/bin/python scripts/doctor.py")
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
