"""Functions that workers of a Dask cluster import in tests."""

import os
import signal
import time
from pathlib import Path

from mlcycle.core.execution import read_execution_settings
from mlcycle.errors import SourceError


def square(number):
    "The square, after a moment."
    time.sleep(0.02)
    return number * number


def slow_square(number):
    "The square, after a while."
    time.sleep(0.2)
    return number * number


def refuse(number):
    "Raises an error of mlcycle."
    raise SourceError(f"No {number}.", "Another one is expected.", "Take another one.")


def square_and_kill_once(task):
    "The square; the process is killed unless a file exists."
    number, flag = task
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def square_at_the_third_time(task):
    "The square; the first two times, a store does not respond."
    number, flag = task
    with open(flag, "a") as file:
        file.write(".")
    if len(flag.read_text()) < 3:
        raise ConnectionError("the store does not respond")
    return number * number


def kill(number):
    "Killed whenever it runs, as for want of memory."
    os.kill(os.getpid(), signal.SIGKILL)


def executor_here(number):
    "What tasks of a task would be executed by."
    return read_execution_settings(Path(os.sep)).executor


def total(table, factor):
    "The sum of a table, times a number."
    return table.to_numpy().sum() * factor
