"""Holds sockets and starts a program with them, as systemd's socket units do; starts it again whenever it ends.

activate.py NAME=tcp:PORT|udp:PORT ... -- PROGRAM ARGUMENTS. Says `activate: pid N` at each start. SIGTERM ends the program and itself.
"""
import ctypes
import os
import signal
import socket
import sys

FIRST = 3
split = sys.argv.index("--")
names, sockets = [], []
for text in sys.argv[1:split]:
    name, _, address = text.partition("=")
    kind, _, port = address.partition(":")
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", int(port)))
    if kind == "tcp":
        held.listen(128)
    names.append(name)
    sockets.append(held)
# Above the numbers that the program is given.
high = [os.dup2(s.fileno(), 100 + i) for i, s in enumerate(sockets)]
child, ended = 0, False


def end(*_):
    global ended
    ended = True
    if child:
        os.kill(child, signal.SIGTERM)


signal.signal(signal.SIGTERM, end)
while not ended:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody outlives a test that failed
        for i, descriptor in enumerate(high):
            os.dup2(descriptor, FIRST + i, inheritable=True)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=":".join(names))
        os.closerange(FIRST + len(high), 256)
        os.execv(sys.argv[split + 1], sys.argv[split + 1:])
    print(f"activate: pid {child}", flush=True)
    os.waitpid(child, 0)
