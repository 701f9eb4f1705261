"""key=value arguments and exit codes of commands."""

import pytest

from saccade.run.arguments import read_choice, read_options, read_whole, run_command


def read(*arguments):
    return read_options(arguments, required=("run",), optional=("out", "steps"), usage="usage: it")


def test_options_are_read():
    assert read("run=a=b", "steps=3") == {"run": "a=b", "steps": "3"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out=a"], "missing: run="),
        (["run=a", "run=b"], "run= is given twice"),
        (["run"], "key=value"),
        (["run="], "key=value"),
        (["run=a", "stepps=1"], "did you mean steps=?"),
    ],
)
def test_wrong_options_are_named(arguments, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        read(*arguments)


def test_choices_and_numbers():
    assert read_choice({}, "mode", ("grid", "files")) == "grid"
    assert read_choice({"mode": "files"}, "mode", ("grid", "files")) == "files"
    with pytest.raises(ValueError, match="mode=x: choose a, b or c"):
        read_choice({"mode": "x"}, "mode", ("a", "b", "c"))
    assert read_whole({}, "steps", 4, least=1) == 4
    assert read_whole({"steps": "7"}, "steps", 4, least=1) == 7
    for wrong in ("0", "-1", "1.5", "x", "9" * 13):
        with pytest.raises(ValueError, match="a whole number, 1 or more"):
            read_whole({"steps": wrong}, "steps", 4, least=1)


def test_exit_codes(capsys):
    def fail(arguments):
        raise OSError("no such disk")

    assert run_command([], "usage: it", fail) == 2
    assert run_command(["--help"], "usage: it", fail) == 0
    assert capsys.readouterr().out == "usage: it\nusage: it\n"
    assert run_command(["run=a"], "usage: it", fail) == 1
    assert capsys.readouterr().err == "Error: no such disk\n"
    assert run_command(["run=a"], "usage: it", lambda given: [*given, "done"]) == 0
    assert capsys.readouterr().out == "run=a\ndone\n"


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def work(arguments: object) -> list[str]:
        raise KeyboardInterrupt

    assert run_command(["key=value"], "usage", work) == 130
    assert "Stopped" in capsys.readouterr().err
