"""What runs inside the sandbox: it takes on limits, runs a program and says how that ended.

`eval/sandbox.py` starts this file as a script, by itself in a Python without site-packages, so it
imports the standard library alone. Read from stdin: one line of JSON with the secret and the
limits, then the program's source. Written to stdout: "ready" before the program runs; when it has
run to its end or raised, the secret, "+" or "-", and the reason in one line. A program that ends
any other way (`os._exit(0)`, a signal) leaves no verdict, and that is a failure.

The program runs in this interpreter, as its tests do. It could find the secret by searching the
interpreter's frames; nothing that it prints, returns or overrides gives it away.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import types

READY = b"ready\n"
PASSED, FAILED = b"+", b"-"
_FILE = "<program>"


def main() -> None:
    """Run the program on stdin; never returns."""
    channel, write, leave = os.dup(1), os.write, os._exit  # kept from a program that replaces them
    header, source = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    setup = json.loads(header)
    secret = setup["secret"].encode()
    passed = secret + PASSED + b"passed"
    out_of_memory = secret + FAILED + b"MemoryError: out of memory"
    sys.path.extend(setup["path"])

    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    seconds, memory = setup["seconds"], setup["memory"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    write(channel, READY)
    try:
        _run(source)
    except MemoryError:
        write(channel, out_of_memory)  # made before: there may be no memory to make it now
    except BaseException as error:
        write(channel, secret + FAILED + _describe(error).encode(errors="replace"))
    else:
        write(channel, passed)
    leave(0)  # nothing of the program's own runs after it: no atexit, no thread, no destructor


def _run(source: bytes) -> None:
    """Run the source as a module that is not `__main__`, as the original evaluators do."""
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses and pickle look a class's module up
    exec(compile(source, _FILE, "exec"), module.__dict__)


def _describe(error: BaseException) -> str:
    """The error's name, the start of its message, and the program's line; cut to a short line."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"line {line}: " if line else ""
    try:
        message = str(error.msg if isinstance(error, SyntaxError) else error)[:300]
    except BaseException:  # a program's own __str__
        message = "(no message)"
    return " ".join(f"{where}{type(error).__name__}: {message}".split())[:300].rstrip(" :")


if __name__ == "__main__":
    main()
