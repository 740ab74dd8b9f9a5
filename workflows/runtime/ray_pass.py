"""One pass of Ray Data over work items, shards to write or pictures to draw: their results as they are finished."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from diffusion_core.errors import RaverseError

if TYPE_CHECKING:
    from ray.data import Dataset as RayDataset

_ADVICE: Final = "\nFailed to "
"""What Ray Data puts behind the message of any error, with how to change its retries."""


def run_pass(
    items: Sequence[dict[str, Any]], build: Callable[[RayDataset], RayDataset], blocks_per_cpu: int | None = None
) -> Iterator[dict[str, Any]]:
    """Runs one pass over work items.

    Args:
        items: rows for Ray Data.
        build: adds the work, such as `lambda rows: rows.map(write)`.
        blocks_per_cpu: items are joined to so many blocks for each CPU at most, since Ray Data takes 20 ms of the
            driver for a block; None: each item is a block.

    Yields:
        What the work returns, as rows are finished.

    Raises:
        RaverseError: what a worker says.
    """
    if not items:
        return
    import ray
    from ray.data import DataContext
    from ray.exceptions import RayError

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Our own errors would otherwise arrive inside Ray Data's.
    context.raise_original_map_exception = True
    failure = None
    with DataContext.current(context):
        try:
            blocks = len(items)
            if blocks_per_cpu is not None:
                blocks = min(blocks, max(1, blocks_per_cpu * int(ray.cluster_resources().get("CPU", 1))))
            yield from build(ray.data.from_items(list(items), override_num_blocks=blocks)).iter_rows()
        except RayError as error:
            cause = getattr(error, "cause", None)
            failure = _as_raised(cause) if isinstance(cause, RaverseError) else error
    if failure is not None:
        # Ray Data's actors live as long as a reference to them, and the error's frames hold some in a cycle.
        failure = failure.with_traceback(None)
        gc.collect()
        raise failure


def _as_raised(error: RaverseError) -> RaverseError:
    """The error with its own sentence alone."""
    error.args = tuple(arg.split(_ADVICE)[0] if isinstance(arg, str) else arg for arg in error.args)
    return error
