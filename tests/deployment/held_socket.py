"""Holds a listening socket as systemd does: starts a service behind it, and starts it again at SIGHUP.

python held_socket.py PORT COMMAND…
"""

import os
import signal
import socket
import subprocess
import sys

listening = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
CODE = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def start() -> subprocess.Popen:
    "Start the service with the socket as file descriptor 3."
    number = os.dup(listening.fileno())
    try:
        return subprocess.Popen([sys.executable, "-c", CODE, str(number), *sys.argv[2:]], pass_fds=[number])
    finally:
        os.close(number)


service = start()
wanted = {signal.SIGHUP, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
while True:
    number = signal.sigwait(wanted)
    service.terminate()
    service.wait(40)
    if number == signal.SIGTERM:
        break
    service = start()
