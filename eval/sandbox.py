"""Run untrusted Python programs in a sandbox: bubblewrap, a system-call filter, resource limits.

A program sees a file system of its own: the system's /usr, this Python's standard library and
NumPy, read-only, and an empty /tmp of 16 MB in memory that goes with it. It sees no other process
and no network, can start neither process nor thread, and has limits on processor time, wall time
and memory. Where that cannot be had nothing is run: before the first program the sandbox tries its
own walls (`check`).

What this does not give: protection from a bug of the kernel; a limit on the sum of what programs
take that run at the same time; a verdict that cannot be forged. The program shares an interpreter
with its tests. One written against this sandbox could search the interpreter for the secret that
vouches for a pass, as it could return an object that equals everything.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from eval import sandbox_driver

_MB = 1_000_000
_TEMPORARY_BYTES = 16 * _MB
_START_SECONDS = 60  # on a loaded machine; 0.1 s is usual
_PATIENCE = 5  # seconds of wall time for each of the processor's
_VERDICT_BYTES = 4096  # more than the driver ever writes
_PACKAGES = "/packages"

# System calls refused with EPERM, for what namespaces and resource limits leave open. A program
# that starts no process or thread is no fork bomb (RLIMIT_NPROC would not hold root); a network
# namespace does not cover AF_VSOCK, by which a virtual machine talks to its host; RLIMIT_AS does
# not count memory outside the address space (extended attributes alone took 0.5 GB a second).
# The last two lines are parts of the kernel that no program here needs.
_REFUSED: tuple[str | int, ...] = (
    *("fork", "vfork", "clone", "clone3"),
    *("socket", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("memfd_create", "memfd_secret", "shmget", "semget", "msgget", "mq_open"),
    *("setxattr", "lsetxattr", "fsetxattr", 463),  # setxattrat: libseccomp 2.5 has no name for it
    *("unshare", "setns", "ptrace", "process_vm_readv", "process_vm_writev", "userfaultfd"),
    *("bpf", "perf_event_open", "keyctl", "add_key", "request_key"),
)

_NOT_RUN = "generated code is not run here: "
_INSTALL = (
    "it needs Linux with bubblewrap (apt-get install bubblewrap libseccomp2) "
    "and the Python package pyseccomp (pip install pyseccomp)"
)
_ALLOW = (
    "bubblewrap needs user namespaces (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns"
    "=0; Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined)"
)

# `check` fills in the braces.
_PROBE = """
import os, resource, socket
def refused(act, *arguments):
    try:
        act(*arguments)
    except OSError:
        return True
    return False
assert os.getuid() != 0, "a program runs as root"
assert refused(os.fork), "a program can start processes"
assert refused(socket.socket), "a program can open sockets"
assert refused(open, "/written", "w") and refused(open, "/usr/written", "w"), "a program can write"
assert not any(os.path.exists(path) for path in {hidden}), "a program can read the user's files"
assert resource.getrlimit(resource.RLIMIT_AS)[1] == {memory}, "a program's memory has no limit"
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool
    """It ran to its end and raised nothing."""
    reason: str
    """"passed", or in one line why not: the error and its line, a limit, an early exit."""


@functools.cache
def check() -> None:
    """Make sure that programs can be contained here, by trying; only the first call takes time.

    Raises:
      ValueError: they cannot; the message says what to install or allow.
    """
    if sys.platform != "linux" or shutil.which("bwrap") is None:
        raise ValueError(_NOT_RUN + _INSTALL)
    memory_mb = 512
    probe = _PROBE.format(hidden=[__file__, "/etc/passwd", "/proc/self"], memory=memory_mb * _MB)
    try:
        outcome = _run(probe, seconds=10, memory_mb=memory_mb)
    except OSError as error:
        raise ValueError(f"{_NOT_RUN}{error}; {_ALLOW}") from None
    if not outcome.passed:
        raise ValueError(f"{_NOT_RUN}the sandbox does not hold: {outcome.reason}")


def run_program(source: str, *, seconds: int, memory_mb: int) -> Outcome:
    """Run a program in the sandbox and say whether it got to its end without an error.

    Args:
      source: Python. It reads an empty stdin, its output is thrown away, and its `__name__` is not
        "__main__". It can import the standard library and NumPy.
      seconds: processor time allowed, in whole seconds. Wall time is limited to five times that, so
        that a loaded machine changes no verdict.
      memory_mb: address space allowed, in megabytes; the interpreter takes 30 of it, NumPy 200.

    Raises:
      ValueError: programs cannot be contained here (see `check`), or a limit is not positive.
      OSError: the sandbox broke; nothing is known of the program.
    """
    return run_programs([source], seconds=seconds, memory_mb=memory_mb, workers=1)[0]


def run_programs(
    sources: Sequence[str],
    *,
    seconds: int,
    memory_mb: int,
    workers: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """As `run_program`, for many programs, some at the same time.

    Args:
      sources: the programs.
      seconds, memory_mb: what each is allowed.
      workers: how many run at the same time.
      advance: called after each program, in this thread.

    Returns:
      The outcomes, in the order of the sources.

    Raises:
      ValueError, OSError: as `run_program`; no further program is started then.
    """
    for name, value in {"seconds": seconds, "memory_mb": memory_mb, "workers": workers}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number and at least 1, got {value!r}")
    check()
    with ThreadPoolExecutor(workers) as threads:
        runs = [
            threads.submit(_run, source, seconds=seconds, memory_mb=memory_mb) for source in sources
        ]
        try:
            for run in as_completed(runs):
                run.result()
                advance()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return [run.result() for run in runs]


def _run(source: str, *, seconds: int, memory_mb: int) -> Outcome:
    secret = secrets.token_hex(32)
    limits = {"seconds": seconds, "memory": memory_mb * _MB}
    setup = json.dumps({"secret": secret, "path": [_PACKAGES], **limits})
    ready, late = b"", False
    with _start(f"{setup}\n{source}".encode(errors="replace")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        start = select.poll()
        start.register(process.stdout)
        try:
            if start.poll(1000 * _START_SECONDS):
                ready = os.read(process.stdout.fileno(), len(sandbox_driver.READY))
            # What is not read stays in the pipe: a program that fills it waits until it is ended.
            process.wait(_PATIENCE * seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            process.kill()  # and with it, by --die-with-parent, everything inside
        said = process.stdout.read(_VERDICT_BYTES)  # up to its end: nothing inside lives any more
        errors = process.stderr.read(_VERDICT_BYTES).decode(errors="replace").strip()
        status = process.wait()
    if ready != sandbox_driver.READY:
        raise OSError(f"the sandbox did not start, status {status}: {errors}")
    if said.startswith(secret.encode()):
        sign, reason = said[len(secret) :][:1], said[len(secret) + 1 :]
        return Outcome(sign == sandbox_driver.PASSED, reason.decode(errors="replace"))
    if late:
        return Outcome(False, "out of time (wall clock)")
    if status == 128 + signal.SIGXCPU:
        return Outcome(False, "out of time (processor)")
    if status > 128:
        return Outcome(False, f"ended by signal {status - 128}")
    return Outcome(False, f"ended early, with exit status {status}")


def _start(stdin: bytes) -> subprocess.Popen[bytes]:
    """The driver, started in a sandbox."""
    filter_end, filling_end = os.pipe()
    with open(filter_end, "rb"), tempfile.TemporaryFile() as file:
        with open(filling_end, "wb") as filling:
            filling.write(_filter())  # 0.3 kB: a pipe holds it
        file.write(stdin)
        file.seek(0)
        python = f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        return subprocess.Popen(
            [*_bubblewrap(), "--seccomp", str(filter_end), "--", python, "-PsS", "/driver.py"],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(filter_end,),
            env={},
        )


def _bubblewrap() -> tuple[str, ...]:
    """The command up to the program: namespaces, and all that is in them."""
    import numpy as np

    numpy = Path(np.__file__).parent
    files = {
        "/usr": "/usr",
        "/lib": "/lib",
        "/lib64": "/lib64",
        "/etc/ld.so.cache": "/etc/ld.so.cache",
        sys.base_prefix: sys.base_prefix,
        str(numpy): f"{_PACKAGES}/numpy",
        f"{numpy}.libs": f"{_PACKAGES}/numpy.libs",
        sandbox_driver.__file__: "/driver.py",
    }
    environment = {
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib",  # some Pythons find their own library by it
        "OPENBLAS_NUM_THREADS": "1",  # more it may not start
        "PATH": "/usr/bin",
        "PYTHONHASHSEED": "0",  # the same order of a set, the same verdict
    }
    return (
        *(shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--uid", "65534", "--gid", "65534"),
        *("--size", str(_TEMPORARY_BYTES), "--tmpfs", "/tmp"),  # first: a Python may lie in /tmp
        *(word for at, to in files.items() for word in ("--ro-bind-try", at, to)),
        *("--dev-bind", "/dev/null", "/dev/null"),
        *("--remount-ro", "/", "--chdir", "/tmp"),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
    )


@functools.cache
def _filter() -> bytes:
    """The system-call filter, compiled for this machine by libseccomp.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError):  # the second: without libseccomp
        raise ValueError(_NOT_RUN + _INSTALL) from None
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call in _REFUSED:
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), call)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
