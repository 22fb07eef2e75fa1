"""A replica set of three on 127.0.0.1, that ends with the program."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pymongo
from pymongo.errors import PyMongoError
from waiting import wait_until

from diagnose_mongo.server import find_mongod, keeper

_SETTINGS = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200}


class Node:
    """One mongod and the process that keeps it; see :mod:`diagnose_mongo.server.keeper`."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._directory = json.loads(self._keeper.stdout.readline())["directory"]

    def start(self):
        Path(self._directory, "data").mkdir(exist_ok=True)
        argv = [str(find_mongod()), "--bind_ip", "127.0.0.1", "--port", str(self.port)]
        argv += ["--dbpath", f"{self._directory}/data", "--nounixsocket", "--replSet", "rs3"]
        argv += ["--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "16"]
        argv += ["--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"]
        argv += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        argv += ["--setParameter", "enableTestCommands=1"]
        self._ask(do="start", argv=argv, orderly=False)

    def kill(self):
        self._ask(do="kill")

    def stop(self):
        self._keeper.stdin.write(b'{"do": "end"}\n')
        self._keeper.stdin.close()
        self._keeper.wait(60)
        self._keeper.stdout.close()

    def client(self, patience):
        uri = f"mongodb://{self.address}/?directConnection=true"
        return pymongo.MongoClient(uri, serverSelectionTimeoutMS=patience)

    def _ask(self, **request):
        self._keeper.stdin.write(json.dumps({"id": 1, **request}).encode() + b"\n")
        self._keeper.stdin.flush()
        reply = json.loads(self._keeper.stdout.readline())
        assert "error" not in reply, reply


class ReplicaSet:
    """Three nodes, of which one is primary as soon as it is entered."""

    def __enter__(self):
        with ExitStack() as stack:
            self.nodes = [Node() for _ in range(3)]
            for node in self.nodes:
                stack.callback(node.stop)
                node.start()
            for node in self.nodes:
                # It answers, so that it can be asked whether it will be a member.
                with node.client(30_000) as client:
                    client.admin.command("ping")
            members = [{"_id": i, "host": node.address} for i, node in enumerate(self.nodes)]
            config = {"_id": "rs3", "members": members, "settings": _SETTINGS}
            with self.nodes[0].client(30_000) as client:
                client.admin.command("replSetInitiate", config)
            hosts = ",".join(node.address for node in self.nodes)
            self.uri = f"mongodb://{hosts}/?replicaSet=rs3"
            wait_until(lambda: self.primary() is not None)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info):
        self._stack.close()

    def primary(self):
        """The node that is primary by its own word; None while there is none."""
        for node in self.nodes:
            try:
                with node.client(200) as client:
                    if client.admin.command("hello")["isWritablePrimary"]:
                        return node
            except PyMongoError:
                pass
        return None
