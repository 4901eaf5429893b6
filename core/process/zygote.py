"""Fork children from a process that has imported what they need.

Importing torch takes seconds, and a fork takes a hundredth of one.  Nothing that anybody
edited runs in this process, so that no child can find anything of another.

Runs as ``python -m core.process.zygote SOCKET_FD MODULE...``.  Each message on the socket
is a request as JSON, with the descriptors that its warden and its child get.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys

from core.process import warden

MAX_REQUEST_BYTES = 1 << 16
MAX_DESCRIPTORS = 16


def main(argv: list[str]) -> None:
    """Import the modules, say so, and fork a warden for each request."""
    asks = socket.socket(fileno=int(argv[0]))
    for name in argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it looks at
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # wardens report for themselves
    asks.send(b"ready")
    while True:
        request, fds, _, _ = socket.recv_fds(asks, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
        if not request:
            return
        if os.fork() == 0:
            asks.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            warden.run(json.loads(request), fds)
        for fd in fds:
            os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1:])
