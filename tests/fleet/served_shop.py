"""What test_prefork_servers.py serves: one function, reached through WSGI, ASGI, Celery or a pool.

With ``SHOP_STARTS_ITS_MANAGER`` set it starts a manager itself, where docs/prefork.md says to for each
server; without it nothing here knows of diagnose.
"""

from __future__ import annotations

import multiprocessing
import os
import sys

IN_CODE = "SHOP_STARTS_ITS_MANAGER" in os.environ


def price(pid):
    return pid


def start():
    import diagnose_mongo

    return diagnose_mongo.start(
        database=os.environ["DIAGNOSE_DATABASE"],
        period=float(os.environ["DIAGNOSE_PERIOD"]),
        heartbeat=float(os.environ["DIAGNOSE_HEARTBEAT"]),
    )


def wsgi(environ, start_response):
    body = b"%d" % price(os.getpid())
    start_response("200 OK", [("Content-Length", str(len(body))), ("Connection", "close")])
    return [body]


def make_wsgi():
    if IN_CODE:
        start()
    return wsgi


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        manager = start() if IN_CODE else None
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if manager is not None:
            manager.stop()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % price(os.getpid())})


def serve_until_told(connection):
    """A child of multiprocessing: answers with its price until it is told to end."""
    while connection.recv() != "end":
        connection.send(price(os.getpid()))


def child_with_manager(connection):
    if IN_CODE and multiprocessing.get_start_method() != "fork":
        start()
    serve_until_told(connection)


def main():
    """Two children, which answer each line of stdin; with its end they end."""
    children = []
    for _ in range(2):
        here, there = multiprocessing.Pipe()
        child = multiprocessing.Process(target=child_with_manager, args=(there,))
        child.start()
        children.append((child, here))
    for _ in sys.stdin:
        for _, pipe in children:
            pipe.send("price")
            print(pipe.recv(), flush=True)
    for child, pipe in children:
        pipe.send("end")
        child.join()


if __name__ == "__main__":
    import served_shop

    multiprocessing.set_start_method(sys.argv[1])
    if IN_CODE:
        start()
    served_shop.main()
