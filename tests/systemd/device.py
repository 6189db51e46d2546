#!/usr/bin/env python3
"""A device with a ledger: publishes numbers over MQTT 3.1.1 with QoS 1, connects again when its connection breaks, and repeats what was not
acknowledged. Runs until its standard input ends, then until everything is acknowledged; prints one line of JSON.

    device.py PORT TOPIC RATE      messages a second
"""
import collections
import json
import os
import select
import socket
import sys
import time

WINDOW = 32
# After this long without an answer the connection is broken; and so long the rest may take at the end.
PATIENCE = 15


def text(value):
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def packet(head, body):
    size, digits = len(body), b""
    while True:
        size, digit = divmod(size, 128)
        digits += bytes([digit | (128 if size else 0)])
        if not size:
            return bytes([head]) + digits + body


class Device:
    def __init__(self, port, topic, rate):
        self.address, self.topic, self.rate = ("127.0.0.1", port), topic, rate
        self.acknowledged, self.refused, self.connections, self.next = [], 0, 0, 1
        self.waiting = collections.OrderedDict()
        self.longest_gap, self.last_acknowledged = 0.0, None

    def publish(self, connection, number, again=False):
        # Packet ids are the numbers themselves, which stay unique within a window.
        body = text(self.topic) + (number % 65535 + 1).to_bytes(2, "big") + str(number).encode()
        connection.sendall(packet(0x32 | (8 if again else 0), body))

    def talk(self, done):
        """One connection, until it breaks or everything is said and acknowledged."""
        with socket.create_connection(self.address, timeout=PATIENCE) as connection:
            self.connections += 1
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(packet(0x10, text("MQTT") + b"\x04\x02\x00\x3c" + text(f"device-{self.topic}")))
            received = b""
            started = False
            heard, begun, sent = time.monotonic(), time.monotonic(), 0
            while True:
                ready, _, _ = select.select([connection], [], [], 0.005)
                if ready:
                    data = connection.recv(65536)
                    if not data:
                        return
                    received += data
                    heard = time.monotonic()
                elif time.monotonic() - heard > PATIENCE:
                    return
                # CONNACK and PUBACK alike: four bytes.
                while len(received) >= 4:
                    head, received = received[:4], received[4:]
                    if head[0] == 0x20:
                        if head[3]:
                            return
                        started, begun = True, time.monotonic()
                        for number in self.waiting:
                            self.publish(connection, number, again=True)
                    elif head[0] == 0x40:
                        self.settle(int.from_bytes(head[2:4], "big"))
                if not started:
                    continue
                if done() and not self.waiting:
                    return
                while not done() and len(self.waiting) < WINDOW and sent < (time.monotonic() - begun) * self.rate:
                    self.waiting[self.next] = True
                    self.publish(connection, self.next)
                    self.next += 1
                    sent += 1
                if not self.waiting:
                    heard = time.monotonic()

    def settle(self, packet_id):
        number = next((n for n in self.waiting if n % 65535 + 1 == packet_id), None)
        if number is None:
            return
        del self.waiting[number]
        self.acknowledged.append(number)
        now = time.monotonic()
        if self.last_acknowledged is not None:
            self.longest_gap = max(self.longest_gap, now - self.last_acknowledged)
        self.last_acknowledged = now

    def run(self, done):
        ending = None
        while not (done() and not self.waiting):
            if done():
                ending = ending or time.monotonic()
                if time.monotonic() - ending > 2 * PATIENCE:
                    break
            try:
                self.talk(done)
            except ConnectionRefusedError:
                self.refused += 1
                time.sleep(0.02)
            except OSError:
                pass
        return {
            "acknowledged": self.acknowledged,
            "unanswered": len(self.waiting),
            "refused": self.refused,
            "connections": self.connections,
            "longest_gap_s": round(self.longest_gap, 3),
        }


def main():
    port, topic, rate = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    ended = False

    def done():
        nonlocal ended
        if not ended and select.select([0], [], [], 0)[0] and not os.read(0, 1):
            ended = True
        return ended

    print(json.dumps(Device(port, topic, rate).run(done)))


if __name__ == "__main__":
    main()
