"""The CPU seconds of a stage's items, in the driver and in worker processes."""

import threading
import time

import pytest

from cloze.pipeline.core import cpu_time
from cloze.pipeline.core.beam import for_each
from cloze.pipeline.core.cpu_time import StageClock, measured_item

PROCESSES = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
SPIN = 0.3  # CPU seconds of an item


def spin(_: object) -> None:
    """Use the processor; names nothing of this module, as another process runs it."""
    import time

    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        pass


def test_a_stage_without_items_has_no_cpu_time():
    clock = StageClock()
    spin(None)
    assert clock.seconds() is None
    cpu_time.add_worker_seconds(0.5)
    assert clock.seconds() == pytest.approx(0.5 + SPIN, abs=0.2)


def test_items_that_overlap_count_each_second_once():
    reported: list[float] = []

    def item() -> None:
        with measured_item(reported.append):
            spin(None)

    start = time.process_time()
    threads = [threading.Thread(target=item) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(reported) == pytest.approx(time.process_time() - start, abs=0.1) and len(reported) == 2


@pytest.mark.parametrize("options", [["--runner=FnApiRunner"], PROCESSES])
def test_the_items_of_a_pipeline_count_wherever_they_run(options: list[str]):
    clock, driver = StageClock(), time.process_time()
    for_each([1, 2, 3, 4], spin, options)
    driver = time.process_time() - driver
    seconds = clock.seconds()
    assert seconds is not None
    workers = seconds - driver
    assert workers == pytest.approx(4 * SPIN if options == PROCESSES else 0.0, abs=0.4)
