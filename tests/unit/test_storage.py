from __future__ import annotations

import threading
import time
from contextlib import suppress
from itertools import count

from wals_spark import storage


def test_a_directory_that_others_still_write_into_is_removed_when_they_stop(tmp_path):
    base = tmp_path / "scratch"
    base.mkdir()
    stopped = threading.Event()

    def outlive_the_driver():
        for number in count():
            if stopped.is_set():
                return
            part = base / f"part-{number % 7}"
            with suppress(FileNotFoundError):  # removed under its hands; as a writer of Arrow does, it does not make it
                part.mkdir(exist_ok=True)
                (part / str(number)).touch()

    writer = threading.Thread(target=outlive_the_driver)
    writer.start()
    while not list(base.glob("*/*")):
        time.sleep(0.001)
    timer = threading.Timer(0.3, stopped.set)
    timer.start()
    storage.remove(str(base))
    assert not base.exists()
    stopped.set()
    writer.join()
    timer.cancel()


def test_removing_what_is_not_there_is_nothing(tmp_path):
    storage.remove(str(tmp_path / "missing"))
