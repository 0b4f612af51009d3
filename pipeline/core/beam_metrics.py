"""The CPU seconds of a Beam pipeline's items: a counter in the workers, added up in the driver."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cloze.pipeline.core import cpu_time

if TYPE_CHECKING:
    import apache_beam as beam

_NAMESPACE, _NAME = "cloze", "cpu_microseconds"


def count_cpu_seconds(driver: str) -> Callable[[float], None]:
    """Returns a function that reports an item's CPU seconds in the worker that runs it.

    `driver` is `cpu_time.PROCESS` of the driver, which counts the items that run in itself.
    """

    def report(seconds: float) -> None:
        from apache_beam.metrics.metric import Metrics

        is_driver = driver == cpu_time.PROCESS
        Metrics.counter(_NAMESPACE, _NAME).inc(0 if is_driver else round(seconds * 1e6))

    return report


def run_to_end(running: "beam.Pipeline") -> None:
    """Run the pipeline, and count the CPU seconds that its workers have reported."""
    from apache_beam.metrics.metric import MetricsFilter

    result: Any = running.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace(_NAMESPACE).with_name(_NAME))
    for counter in found["counters"]:
        cpu_time.add_worker_seconds(counter.result / 1e6)
