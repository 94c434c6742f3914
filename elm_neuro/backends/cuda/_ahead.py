"""Machine code that will be asked for, compiled in threads side by side before it is.

NVRTC compiles in as many threads as ask it, and holds no lock of the interpreter meanwhile.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from threading import Thread

from elm_neuro.backends.cuda._compile import Program, is_kept, machine_code

Key = tuple[Program, str, int]  # a kernel of a program, and the architecture

_begun: dict[Key, Future[bytes]] = {}  # until it is asked for; changed in single steps, and so without a lock
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begun.clear)  # a child has none of the threads


def begin(kernels: Iterable[tuple[Program, str]], architecture: int) -> None:
    """Have those compiled that the user's cache has not, as many at a time as there are cores; nothing waits."""
    waiting: deque[tuple[Key, Future[bytes]]] = deque()
    for program, kernel in kernels:
        key, code = (program, kernel, architecture), Future[bytes]()
        if not is_kept(*key) and _begun.setdefault(key, code) is code:
            waiting.append((key, code))
    try:
        for _ in range(min(len(waiting), os.cpu_count() or 1)):
            # no daemon: the interpreter must not end while the compiler runs; a kernel takes it less than a second
            Thread(target=_work, args=(waiting,), name="elm_neuro compiler", daemon=False).start()
    except RuntimeError:  # no more threads
        _work(waiting)


def awaited(program: Program, kernel: str, architecture: int) -> bytes:
    """As :func:`machine_code`, whose errors it raises; waits where it has been begun."""
    key = program, kernel, architecture
    code = _begun.get(key)
    if code is None:
        return machine_code(*key)
    try:
        return code.result()
    finally:
        _begun.pop(key, None)


def _work(waiting: deque[tuple[Key, Future[bytes]]]) -> None:
    """Compile until nothing waits."""
    while True:
        try:
            key, code = waiting.popleft()
        except IndexError:
            return
        try:
            code.set_result(machine_code(*key))
        except BaseException as error:  # noqa: BLE001 - told to who asks
            code.set_exception(error)
