"""The Celery application of test_prefork_servers.py; the broker is a folder."""

from __future__ import annotations

import multiprocessing
import os

import served_shop
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

folder = os.environ["SHOP_BROKER_FOLDER"]
app = Celery("served", broker="filesystem://")
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
# Inherited by the children of the pool: two tasks are in two processes.
both = multiprocessing.get_context("fork").Barrier(2)


@app.task
def price():
    served_shop.price(os.getpid())
    both.wait()


if served_shop.IN_CODE:

    @worker_process_init.connect
    def start(**_):
        global manager
        manager = served_shop.start()

    @worker_process_shutdown.connect
    def stop(**_):
        manager.stop()
