"""One open handle per file and process."""

import multiprocessing
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from tasks.datasets.handles import process_handle


class Opened:
    """Remembers who opened it, and takes long enough for threads to race."""

    def __init__(self, path):
        time.sleep(0.02)
        self.pid = os.getpid()
        self.closed = False

    def close(self):
        self.closed = True


def test_threads_that_race_for_a_file_share_one_handle(tmp_path):
    path = str(tmp_path / "raced")
    with ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda _: process_handle(path, Opened), range(8)))
    assert len(set(map(id, handles))) == 1


def test_a_forked_child_closes_what_it_inherited_and_opens_its_own(tmp_path):
    path = str(tmp_path / "inherited")
    parents = process_handle(path, Opened)

    def child(connection):
        own = process_handle(path, Opened)
        connection.send((own.pid == os.getpid(), own is parents, parents.closed))

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender,))
    with warnings.catch_warnings():
        # Python 3.12 warns of any fork while the parent has threads, as torch always does
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        process.start()
    assert receiver.poll(timeout=60) and receiver.recv() == (True, False, True)
    process.join()
    assert process_handle(path, Opened) is parents and not parents.closed
