"""The Celery application of test_time_limits.py, with a soft time limit in each task."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import time_limited
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

folder = os.environ["LIMITED_BROKER_FOLDER"]
app = Celery("limited", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": f"{folder}-control",
        "polling_interval": 0.05,
    },
    task_ignore_result=True,
    worker_hijack_root_logger=False,
)


class SoftLimit:
    """What Celery's main process does when a task has run too long, sooner and more often."""

    kind = SoftTimeLimitExceeded

    def __init__(self):
        self.others = time_limited.Others()

    def arm(self, seconds):
        self.others.after(seconds, lambda: os.kill(os.getpid(), signal.SIGUSR1))


class CelerysOwn(SoftLimit):
    """The one that the task was started with; it comes after a second."""

    def arm(self, seconds):
        pass


@app.task
def storm(number, answer):
    found = time_limited.Storm(SoftLimit(), random.Random(0)).blow_over_all(number, probed=True)
    write(found, answer)


@app.task
def wait_for_the_limit(answer):
    storm = time_limited.Storm(CelerysOwn(), random.Random(0), lost_after_seconds=10)
    write(storm.blow_probed(1, "call", "thing.total"), answer)


def write(found, answer):
    Path(f"{answer}.new").write_text(json.dumps(found))
    Path(f"{answer}.new").rename(answer)
