"""What nobody can beat: a receiver that keeps nothing, and one that writes bytes from a bare socket to synced files.

`python -m benchmarks.ingest.sinks null|raw PORT FOLDER` serves until it is killed, each connection in a process of
its own.
"""

import os
import socket
import struct
import sys
from pathlib import Path
from socketserver import BaseRequestHandler, ForkingTCPServer

from . import association

DONE = b"\x06"
"""Answers each object that lies in a synced file."""


class Null(BaseRequestHandler):
    """Reads C-STORE requests, keeps nothing, answers Success: faster than this the sender cannot be served."""

    def handle(self) -> None:
        association.prepare(self.request)
        association.swallow(self.request)


class Raw(BaseRequestHandler):
    """Reads length and bytes, writes a file, syncs it, answers with one byte: no DICOM, no index."""

    folder: Path

    def handle(self) -> None:
        peer: socket.socket = self.request
        association.prepare(peer)
        while len(prefix := peer.recv(8, socket.MSG_WAITALL)) == 8:
            content = bytearray(struct.unpack(">Q", prefix)[0])
            association.fill(peer, memoryview(content))
            with (self.folder / f"{os.getpid()}-{os.urandom(8).hex()}").open("xb", buffering=0) as file:
                file.write(content)
                os.fsync(file.fileno())
            peer.sendall(DONE)


class _Server(ForkingTCPServer):
    request_queue_size = 64
    allow_reuse_address = True


def main() -> None:
    name, port, folder = sys.argv[1:]
    Raw.folder = Path(folder)
    with _Server(("127.0.0.1", int(port)), {"null": Null, "raw": Raw}[name]) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
