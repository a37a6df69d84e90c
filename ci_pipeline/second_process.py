"""A second process for the one-shot command. It is started before the heavy imports, so that both processes import side
by side: this module imports none of them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_all_start_methods, get_context
from typing import ParamSpec, Protocol, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Start(Protocol):
    """Starts a call in the second process; calling what this returns waits for its result.

    A call that has not begun by then is made here: this process has nothing else to do.
    """

    def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]: ...


@contextmanager
def second_process() -> Generator[Start]:
    """It makes one call after the other. Should it be killed, its calls are made here."""
    context = get_context("fork" if "fork" in get_all_start_methods() else None)
    with _no_garbage(), ProcessPoolExecutor(1, context, initializer=gc.disable) as worker:

        def start(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
            try:
                future = worker.submit(call, *args, **kwargs)
            except BrokenProcessPool:
                return lambda: call(*args, **kwargs)

            def result() -> T:
                if future.cancel():
                    return call(*args, **kwargs)
                try:
                    return future.result()
                except BrokenProcessPool:
                    log.warning("The second process was killed; its work is done once more")
                    return call(*args, **kwargs)

            return result

        for module in ("ci_pipeline.publish.hub", "huggingface_hub.hf_api"):  # the longest of the imports
            start(import_module, module)
        yield start


@contextmanager
def _no_garbage() -> Generator[None]:
    """Nothing is thrown away before the end: looking for it would take a quarter of the time, and as long at exit."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
