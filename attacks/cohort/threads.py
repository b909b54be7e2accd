"""Work in threads, with the same results as one after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The result of each item, in their order. It uses PyTorch's number of threads, and holds about as many results.

    NumPy computes outside of Python's lock. Results do not depend on the number of threads if what `function` gives or writes
    does not depend on other items: sums over items are taken by the caller, in order.
    """
    import torch  # here, because a plan reads the attacks and must not wait for PyTorch

    threads = torch.get_num_threads()
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
