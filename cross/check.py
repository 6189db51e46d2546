#!/usr/bin/env python3
"""Runs the static binaries of a folder, under qemu-user where this machine is another: version, start, messages through to a real
mosquitto over an outage and a kill -9. Prints a line for each; exit code 1 when one does not do it."""
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

EMULATORS = {"aarch64": "qemu-aarch64-static", "armv7": "qemu-arm-static", "arm": "qemu-arm-static", "x86_64": "qemu-x86_64-static", "riscv64gc": "qemu-riscv64-static"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def accepts(port):
    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex(("127.0.0.1", port)) == 0


def runner(binary):
    machine = binary.name.removeprefix("selvedge-").split("-")[0]
    if machine == os.uname().machine:
        return []
    emulator = shutil.which(EMULATORS[machine])
    if not emulator:
        raise RuntimeError(f"missing: {EMULATORS[machine]} (Debian package qemu-user-static)")
    return [emulator]


def mosquitto(folder, port):
    config = pathlib.Path(folder, "mosquitto.conf")
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
    if not program:
        raise RuntimeError("missing: mosquitto (Debian package mosquitto)")
    return subprocess.Popen([program, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def publish(port, first, last):
    lines = "".join(f"{n}\n" for n in range(first, last)).encode()
    subprocess.run(["mosquitto_pub", "-p", str(port), "-q", "1", "-t", "sensors/a", "-l"], input=lines, check=True, timeout=60)


def check(binary):
    run = runner(binary)
    version = subprocess.run([*run, binary, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    headers = subprocess.run(["readelf", "-lW", binary], capture_output=True, text=True, check=True).stdout
    if "INTERP" in headers:
        raise RuntimeError("it asks for a dynamic linker: not static")
    with tempfile.TemporaryDirectory() as folder:
        cloud, devices = free_port(), free_port()
        resources = pathlib.Path(folder, "resources")
        resources.mkdir()
        resources.joinpath("node.yaml").write_text(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: cloud}\n"
            f'spec: {{type: pubsub.mqtt5, version: v1, metadata: [{{name: url, value: "mqtt://127.0.0.1:{cloud}"}}]}}\n---\n'
            "apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {name: devices}\n"
            f'spec: {{protocol: mqtt, bind: "127.0.0.1:{devices}"}}\n---\n'
            "apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {name: up}\n"
            'spec: {routes: [{from: local, topics: ["#"], to: [cloud]}]}\n'
        )
        command = [*run, binary, "--app-id", "box", "--resources-path", resources, "--data-dir", pathlib.Path(folder, "data")]
        for name in ("dapr-http-port", "dapr-grpc-port", "metrics-port"):
            command += [f"--{name}", str(free_port())]
        log = open(pathlib.Path(folder, "log"), "w")
        processes = []
        try:
            # The broker is away at first; the box dies with what it has.
            node = subprocess.Popen(command, stdout=log, stderr=log)
            processes.append(node)
            wait_for(lambda: accepts(devices), 60, "the listener accepts")
            publish(devices, 0, 200)
            node.send_signal(signal.SIGKILL)
            node.wait()
            broker = mosquitto(folder, cloud)
            processes.append(broker)
            wait_for(lambda: accepts(cloud), 10, "mosquitto accepts")
            sink = subprocess.Popen(
                ["mosquitto_sub", "-p", str(cloud), "-t", "sensors/#", "-q", "1", "-W", "90"], stdout=subprocess.PIPE, text=True
            )
            processes.append(sink)
            node = subprocess.Popen(command, stdout=log, stderr=log)
            processes.append(node)
            wait_for(lambda: accepts(devices), 60, "the listener accepts again")
            publish(devices, 200, 300)
            seen = []
            while len(set(seen)) < 300:
                line = sink.stdout.readline()
                if not line:
                    raise RuntimeError(f"{len(set(seen))} of 300 messages arrived")
                seen.append(int(line))
            if list(dict.fromkeys(seen)) != list(range(300)):
                raise RuntimeError("messages arrived out of order")
            node.terminate()
            if node.wait(30) != 0:
                raise RuntimeError(f"exit code {node.returncode} after SIGTERM")
        finally:
            for process in processes:
                process.kill()
                process.wait()
            log.close()
    how = f"under {pathlib.Path(run[0]).name}" if run else "natively"
    return f"version {version}, {binary.stat().st_size / 1e6:.2f} MB, static; 300 messages through {how}, over an outage and a kill -9"


def main():
    binaries = sorted(p for p in pathlib.Path(sys.argv[1]).resolve().glob("selvedge-*-linux-musl*") if p.suffix != ".json")
    if not binaries:
        sys.exit("nothing to check: build something first")
    failed = 0
    for binary in binaries:
        try:
            print(f"{binary.name}: {check(binary)}")
        except (RuntimeError, subprocess.SubprocessError) as error:
            failed += 1
            print(f"{binary.name}: FAILED: {error}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
