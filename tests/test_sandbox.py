"""Hostile programs are contained, leave nothing behind and never count as a success."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import sandbox
from eval.sandbox import Outcome, run_program, run_programs

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)
LIMITS: dict[str, Any] = {"seconds": 1, "memory_mb": 100}
PASSED = Outcome(passed=True, reason="passed")


def alive(mark: str) -> list[str]:
    """Command lines of all processes that hold the mark: a sandbox's own, inside and out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
        found += [command] if mark in command else []
    return found


def wait_for(mark: str, *, running: bool, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while bool(alive(mark)) is not running:
        assert time.monotonic() < end, f"running: {alive(mark)}"
        time.sleep(0.02)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word in the command line of this test's sandboxes."""
    mark = f"mark-{uuid.uuid4().hex}"
    command = (*sandbox._bubblewrap(), "--setenv", "MARK", mark)
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda: command)
    return mark


@pytest.fixture
def unharmed(mark: str, tmp_path: Path) -> Iterator[Path]:
    """A directory with a file in it; afterwards both are as they were and no process is left."""
    file = tmp_path / "precious"
    file.write_text("as it was")
    yield tmp_path
    wait_for(mark, running=False)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert file.read_text() == "as it was"
    for place in PLACES:
        assert not (Path(place) / mark).exists()


HERE = Path(__file__).parent
PLACES = ["/", "/usr", "/usr/bin", "/etc", "/dev", "/dev/shm", "/tmp", "/var/tmp", sys.base_prefix]
PLACES += [str(Path.home()), str(HERE)]

# What a hostile program does; itself, with DIRECTORY and so on to be filled in; how it ends.
OUT_OF_TIME = "out of time|ended by signal 9"
HOSTILE = {
    "loops for ever": ("while True: pass", OUT_OF_TIME),
    "sleeps": ("import time; time.sleep(60)", "out of time"),
    "ignores the limit": (
        "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        OUT_OF_TIME,
    ),
    "swallows every exception": (
        "while True:\n  try: raise SystemExit(0)\n  except BaseException: pass",
        OUT_OF_TIME,
    ),
    "forks": (
        "import os, time\n"
        "for _ in range(50):\n"
        "  try: os.fork() or time.sleep(60)\n"
        "  except OSError as e: error = e\n"
        "raise error",
        "PermissionError",
    ),
    "starts threads": (
        "import threading, time\n"
        "for _ in range(50): threading.Thread(target=time.sleep, args=(60,)).start()",
        "can't start new thread",
    ),
    "starts a program": ("import subprocess; subprocess.run(['/usr/bin/true'])", "PermissionError"),
    "takes all memory": ("a = []\nwhile True: a.append(bytearray(10**6))", "out of memory"),
    "takes memory in files": ("import os; os.memfd_create('a')", "PermissionError"),
    "takes memory in attributes": ("import os; os.setxattr('.', 'user.a', b'')", "PermissionError"),
    "fills the disk": (
        "with open('a', 'wb') as file:\n  while True: file.write(bytes(10**6))",
        "No space left",
    ),
    "deletes files": (
        "import shutil; shutil.rmtree('DIRECTORY', ignore_errors=True); open('DIRECTORY/precious')",
        "FileNotFoundError",
    ),
    "overwrites a file": ("open('DIRECTORY/precious', 'w')", "FileNotFoundError"),
    "reads the repository": (f"open({__file__!r})", "FileNotFoundError"),
    "reads the home": (
        "import os, sys\n"
        "files = [f'{at}/{name}' for at, _, names in os.walk('HOME') for name in names]\n"
        "raise Exception([file for file in files if not file.startswith(sys.base_prefix)])",
        r"Exception: \[\]$",
    ),
    "reads what programs run": ("import os; os.listdir('/proc')", "FileNotFoundError"),
    "writes elsewhere": (
        "written = []\n"
        "for place in PLACES:\n"
        "  try: open(f'{place}/MARK', 'w').close(); written.append(place)\n"
        "  except OSError: pass\n"
        "raise Exception(written)",
        r"Exception: \['/tmp'\]$",  # its own, as `unharmed` sees
    ),
    "opens a connection": (
        "import socket; socket.create_connection(('127.0.0.1', PORT))",
        "PermissionError",
    ),
    "calls the host of a virtual machine": (
        "import socket; socket.socket(40, socket.SOCK_STREAM)",  # AF_VSOCK
        "PermissionError",
    ),
    "prints gigabytes": ("while True: print('x' * 10**7)", OUT_OF_TIME),
    "writes to every descriptor": (
        "import os\n"
        "while True:\n"
        "  for i in range(64):\n"
        "    try: os.write(i, b'x' * 10**6)\n"
        "    except OSError: pass",
        OUT_OF_TIME,
    ),
    "closes every descriptor": ("import os; os.closerange(0, 64)", "ended early"),
    "exits": ("import sys; sys.exit(0)\nassert False", "SystemExit"),
    "exits at once": ("import os; os._exit(0)\nassert False", "ended early, with exit status 0"),
    "becomes another program": (
        "import os; os.execv('/usr/bin/true', ['true'])",
        "ended early, with exit status 0",
    ),
    "aborts": ("import os; os.abort()", "ended by signal 6"),
    "kills all others": (
        "import os, signal\n"
        "for i in (1, os.getppid(), -1):\n"
        "  try: os.kill(i, signal.SIGKILL)\n"
        "  except OSError: pass\n"
        "raise Exception('nothing came of it')",
        "nothing came of it",
    ),
    "says that it passed": (
        "import os\n"
        "for i in range(64):\n"
        "  for secret in (b'', b'ready\\n', b'0' * 64):\n"
        "    try: os.write(i, secret + b'+passed')\n"
        "    except OSError: pass\n"
        "os._exit(0)",
        "ended early",
    ),
    "replaces what reports it": (
        "import os, json\nos._exit = os.write = json.dumps = lambda *_: b'+passed'\nassert False",
        "AssertionError|ended early",
    ),
    "raises what cannot be shown": (
        "class Hidden(Exception):\n  def __str__(self): raise SystemExit(0)\nraise Hidden",
        "Hidden: .no message",
    ),
    "raises a long story": ("raise ValueError('so\\n' * 10**6)", "line 1: ValueError: so so so"),
    "is no program": ("def f(:", "line 1: SyntaxError"),
    "is no text": ("x = '\0\udc80'", "null byte|unicode error"),
}


@needs_bubblewrap
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained_and_fails(
    name: str, unharmed: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, reason = HOSTILE[name]
    monkeypatch.setattr(sandbox, "_PATIENCE", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        words = {
            "DIRECTORY": unharmed,
            "HOME": Path.home(),
            "MARK": mark,
            "PLACES": PLACES,
            "PORT": server.getsockname()[1],
        }
        for word, value in words.items():
            source = source.replace(word, str(value))
        outcome = run_program(source, **LIMITS)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not outcome.passed
    assert re.search(reason, outcome.reason), outcome.reason
    assert len(outcome.reason) <= 300
    assert "\n" not in outcome.reason


@needs_bubblewrap
@pytest.mark.parametrize(
    "source",
    [
        "",
        "import sys, os; sys.stdout.close(); os.close(2); assert 1 + 1 == 2",
        "print('x' * 10**6); import json; json.dumps = None",
        "with open('a', 'w') as file: file.write('here it may')",
        "import numpy; assert numpy.arange(4).sum() == 6",
        "assert __name__ != '__main__'; assert input is not None",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n  a: 'int' = 1\nassert A() == A(1)",
        "import asyncio; asyncio.run(asyncio.sleep(0))",
    ],
)
def test_a_program_that_gets_to_its_end_passes(source: str, unharmed: Path) -> None:
    assert run_program(source, seconds=5, memory_mb=500) == PASSED


@needs_bubblewrap
def test_a_failure_is_told_with_its_line() -> None:
    source = "def f(x):\n    return 1 / x\n\nf(0)"
    reason = "line 2: ZeroDivisionError: division by zero"
    assert run_program(source, **LIMITS) == Outcome(passed=False, reason=reason)


@needs_bubblewrap
def test_a_program_behaves_alike_every_time() -> None:
    """The order of a set of strings would not, with Python's random hash seed."""
    sources = ["raise Exception(list({'a', 'b', 'c', 'd', 'e'}))"] * 3
    assert len(set(run_programs(sources, **LIMITS, workers=2))) == 1


@needs_bubblewrap
def test_many_programs_come_back_in_order_and_are_counted() -> None:
    done: list[int] = []
    sources = [f"import time; time.sleep({0.3 * (i == 0)}); raise Exception({i})" for i in range(5)]
    outcomes = run_programs(sources, **LIMITS, workers=3, advance=lambda: done.append(1))
    assert [outcome.reason[-1] for outcome in outcomes] == list("01234")
    assert len(done) == 5
    assert run_programs([], **LIMITS, workers=1) == []


@needs_bubblewrap
def test_nothing_survives_the_program_that_started_it(mark: str) -> None:
    start = (
        "from eval import sandbox\n"
        f"command = (*sandbox._bubblewrap(), '--setenv', 'MARK', '{mark}')\n"
        "sandbox._bubblewrap = lambda: command\n"
        "sandbox.run_program('import time; time.sleep(60)', seconds=30, memory_mb=100)"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with subprocess.Popen([sys.executable, "-c", start], env=environment) as process:
        time.sleep(0.5)
        wait_for(mark, running=True)
        process.send_signal(signal.SIGKILL)
    wait_for(mark, running=False)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"seconds": 0, "memory_mb": 100, "workers": 1}, "seconds"),
        ({"seconds": 0.5, "memory_mb": 100, "workers": 1}, "seconds"),
        ({"seconds": 1, "memory_mb": -1, "workers": 1}, "memory_mb"),
        ({"seconds": 1, "memory_mb": 100, "workers": 0}, "workers"),
    ],
)
def test_limits_must_be_limits(limits: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} must be a whole number"):
        run_programs(["pass"], **limits)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The sandbox as in a new process: it has not yet tried itself."""
    sandbox.check.cache_clear()
    sandbox._filter.cache_clear()
    yield
    sandbox.check.cache_clear()
    sandbox._filter.cache_clear()


def fake_bubblewrap(directory: Path, script: str) -> None:
    file = directory / "bwrap"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


DRIVER = sandbox.sandbox_driver.__file__
NO_WALLS = f'while [ "$1" != -- ]; do shift; done; exec "$2" "$3" {DRIVER}'


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "apt-get install bubblewrap"),
        ("echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1", "uid map.*sysctl"),
        (NO_WALLS, "does not hold"),
    ],
)
def test_without_a_sandbox_nothing_runs(
    script: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        fake_bubblewrap(tmp_path, script)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    witness = tmp_path / "witness"
    with pytest.raises(ValueError, match=f"not run here: .*{message}"):
        run_program(f"open({str(witness)!r}, 'w').close()", **LIMITS)
    assert not witness.exists()


@needs_bubblewrap
@pytest.mark.usefixtures("unchecked")
def test_without_the_filter_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(ValueError, match="pip install pyseccomp"):
        run_program("pass", **LIMITS)


@needs_bubblewrap
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("call", ["fork", "socket"])
def test_a_hole_in_the_filter_is_found(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = ("fork", "vfork", "clone", "clone3") if call == "fork" else (call,)
    refused = tuple(name for name in sandbox._REFUSED if name not in calls)
    monkeypatch.setattr(sandbox, "_REFUSED", refused)
    with pytest.raises(ValueError, match=r"does not hold: .*a program can"):
        run_program("pass", **LIMITS)


@needs_bubblewrap
def test_a_sandbox_that_breaks_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.check()
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda: ("false",))
    with pytest.raises(OSError, match="did not start"):
        run_program("pass", **LIMITS)
