"""A process of its own for every cell, so that no cell inherits another's allocator, threads or caches.

On a CPU a server that has imported torch, and run nothing with it, forks for each cell: importing anew would take
longer than most cells. On a GPU, where a fork cannot use CUDA, each cell is a new interpreter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from attention_bench.cells import Cell
from attention_bench.peers import why_skipped

SCRIPT = Path(__file__).resolve().parents[1] / "bench_attention.py"
# What cells would each load anew; torch._dynamo comes with the first call under a dispatch mode.
PRELOADED = (
    *("torch", "torch.utils.flop_counter", "torch.profiler", "torch._dynamo"),
    *("saccade.attention", "skimage.data", "skimage.io"),
)
KILLED = 9  # the signal of the kernel's out-of-memory killer, which leaves no other trace


class Fresh:
    """Runs cells, each in a fresh process. One that fails is a row with its last words, not an exception."""

    def __init__(self) -> None:
        self._servers: dict[int, subprocess.Popen[str]] = {}

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self._servers.values():
            assert_pipe(server.stdin).close()
            server.wait(timeout=30)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Status and measured columns of a cell."""
        reason = why_skipped(cell.backend)
        if reason:
            return {"status": f"skipped: {reason}"}
        return self._in_new_interpreter(cell) if cell.device.startswith("cuda") else self._in_fork(cell)

    def _in_fork(self, cell: Cell) -> dict[str, Any]:
        server = self._servers.get(cell.threads)
        if server is None:
            server = self._servers[cell.threads] = _start("--serve", cell.threads)
        pipe = assert_pipe(server.stdin)
        pipe.write(json.dumps(dataclasses.asdict(cell)) + "\n")
        pipe.flush()
        answer = assert_pipe(server.stdout).readline()
        if not answer:
            raise RuntimeError("bench_attention: the process that starts cells has died")
        row: dict[str, Any] = json.loads(answer)
        return row

    def _in_new_interpreter(self, cell: Cell) -> dict[str, Any]:
        process = _start("--worker", cell.threads, json.dumps(dataclasses.asdict(cell)))
        out, err = process.communicate()
        if process.returncode == 0:
            row: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
            return row
        return ended_badly(process.returncode, err)


def assert_pipe(pipe: IO[str] | None) -> IO[str]:
    """The pipe, which a process that we started has."""
    if pipe is None:
        raise RuntimeError("bench_attention: a process was started without its pipes")
    return pipe


def ended_badly(code: int, words: str) -> dict[str, Any]:
    """The row of a process that ended with `code` other than 0; -9 is a kill."""
    if code == -KILLED:
        return {"status": "out of memory"}
    return {"status": f"failed ({code}): {(words.strip().splitlines() or ['no message'])[-1]}"}


def _start(flag: str, threads: int, *arguments: str) -> subprocess.Popen[str]:
    count = str(threads)
    environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "NUMBA_NUM_THREADS": count}
    command = [sys.executable, str(SCRIPT), flag, *arguments]
    errors = None if flag == "--serve" else subprocess.PIPE
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    )


def serve() -> None:
    """Body of the server: a line of JSON in, a fork that measures it, a line of JSON out."""
    for name in PRELOADED:
        with contextlib.suppress(Exception):  # the cell that needs it will say why it fails
            importlib.import_module(name)
    gc.freeze()  # what is loaded is never garbage: a child that looks through it only takes time and copies pages
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _measure_and_leave(line, writer)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            words = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(words.strip() if code == 0 else json.dumps(ended_badly(code, words)), flush=True)


def _measure_and_leave(line: str, writer: int) -> None:
    from attention_bench.measure import row_of

    code = 0
    with os.fdopen(writer, "w") as pipe:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # what libraries print (the profiler does) must not reach the pipe of answers
            os.dup2(nowhere, stream)
        try:
            pipe.write(json.dumps(row_of(Cell.from_json(line))))
        except BaseException as error:
            pipe.write("".join(traceback.format_exception_only(error)).strip().replace("\n", " "))
            code = 1
    os._exit(code)
