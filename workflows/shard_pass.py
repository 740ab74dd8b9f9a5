"""One pass of Ray Data over work items, shards to write or pictures to draw: their results as they are finished."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from diffusion_core.errors import RaverseError

if TYPE_CHECKING:
    from ray.data import Dataset as RayDataset


def run_pass(items: Sequence[dict[str, Any]], build: Callable[[RayDataset], RayDataset]) -> Iterator[dict[str, Any]]:
    """Runs one pass over work items, one block each.

    Args:
        items: rows for Ray Data.
        build: adds the work, such as `lambda rows: rows.map(write)`.

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
            yield from build(ray.data.from_items(list(items), override_num_blocks=len(items))).iter_rows()
        except RayError as error:
            cause = getattr(error, "cause", None)
            failure = cause if isinstance(cause, RaverseError) else error
    if failure is not None:
        # Ray Data's actors live as long as a reference to them, and the error's frames hold some in a cycle.
        failure = failure.with_traceback(None)
        gc.collect()
        raise failure
