"""Pictures of many toys, taken side by side."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from experiments.runtime.processes import processors

Pictures = TypeVar("Pictures")


def of_each_toy(
    take: Callable[[int, int], Pictures], toys: Sequence[tuple[int, int]]
) -> list[Pictures]:
    """`take(category, instance)` of each toy, as many at a time as there are processors for this
    process, under a progress bar.
    """
    with (
        ThreadPoolExecutor(processors()) as pool,
        tqdm(total=len(toys), desc="rendering", unit=" toys") as progress,
    ):
        taken = []
        for pictures in pool.map(take, *zip(*toys, strict=True)):
            taken.append(pictures)
            progress.update()
    return taken
