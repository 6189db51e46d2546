#!/usr/bin/env python3
"""The size ledger: writes docs/footprint.md. `tests/bench/footprint.py` builds the gateway as shipped and the smallest useful one, measures
both, and asks cargo-bloat (from crates.io, into target/cross-tools) what each crate adds. Some minutes; nothing is asserted here, the budgets are
checked by `tests/run release`.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import footprint  # noqa: E402

BLOAT = "0.12.1"
TOOLS = ROOT / "target" / "cross-tools"
# Crates that are listed by name; what is smaller is summed up.
LISTED_BYTES = 40_000
STARTS = 21


def run(*command, **options):
    return subprocess.run(command, cwd=ROOT, check=True, text=True, **options)


def built(features, folder):
    """Path of a release build with these features."""
    target = ROOT / "target" / folder
    run("cargo", "build", "--release", "--locked", "--quiet", "-p", "selvedge-gateway", *features, "--target-dir", str(target))
    return target / "release" / "selvedge"


def crates():
    """Bytes of code by crate, and of the whole file and its code."""
    bloat = TOOLS / "bin" / "cargo-bloat"
    if not bloat.exists():
        run("cargo", "install", "--quiet", "--locked", "--root", str(TOOLS), "--version", BLOAT, "cargo-bloat")
    options = ["--release", "-p", "selvedge-gateway", "--crates", "-n", "0", "--message-format", "json", "--target-dir", str(ROOT / "target" / "bloat")]
    out = run(str(bloat), "bloat", *options, stdout=subprocess.PIPE, env=os.environ | {"CARGO_PROFILE_RELEASE_STRIP": "none"}).stdout
    found = json.loads(out)
    return {c["name"]: c["size"] for c in found["crates"]}, found["text-section-size"]


def ready_ms(binary):
    """Milliseconds from exec to a listener that accepts: median and the slowest of some starts."""
    times = []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            port = footprint.free_port()
            pathlib.Path(folder, "node.yaml").write_text(
                "apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {name: devices}\n"
                f'spec: {{protocol: mqtt, bind: "127.0.0.1:{port}"}}\n'
            )
            command = [str(binary), "--app-id", "idle", "--resources-path", folder, "--data-dir", os.path.join(folder, "data")]
            if footprint.has_api(binary):
                for name in ("dapr-http-port", "dapr-grpc-port", "metrics-port"):
                    command += [f"--{name}", str(footprint.free_port())]
            begun = time.monotonic()
            node = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while not footprint.accepts(port):
                pass
            times.append((time.monotonic() - begun) * 1e3)
            node.terminate()
            node.wait(10)
    return statistics.median(times), max(times)


def row(name, binary):
    resident = statistics.median(footprint.idle_kib(binary) for _ in range(footprint.STARTS))
    median, slowest = ready_ms(binary)
    return f"| {name} | {binary.stat().st_size / 1e6:.2f} | {resident / 1024:.1f} | {median:.1f} ({slowest:.1f}) |"


def main():
    whole = built([], "footprint")
    rows = [row("everything", whole), row("smallest: `--no-default-features`", built(["--no-default-features"], "footprint-smallest"))]
    static = sorted(p for p in (ROOT / "dist").glob("selvedge-*-linux-musl*") if p.suffix != ".json")
    sizes = [f"| {p.name.removeprefix('selvedge-')} | {p.stat().st_size / 1e6:.2f} |" for p in static]
    here = f"{os.uname().machine}-unknown-linux-musl"
    rows += [row("everything, static", p) for p in static if p.name.endswith(here)]
    by_crate, text = crates()
    listed = sorted(((n, s) for n, s in by_crate.items() if s >= LISTED_BYTES), key=lambda c: -c[1])
    rest = sum(s for s in by_crate.values() if s < LISTED_BYTES)
    machine = run("uname", "-sm", stdout=subprocess.PIPE).stdout.strip()
    lines = [
        "# Footprint",
        "",
        f"Made by `tests/bench/footprint.py`; `tests/run release` fails when a budget is passed ({footprint.BINARY_BYTES / 1e6:.1f} MB on disk, {footprint.RSS_KIB:,} KiB resident when idle, linked dynamically; the aim",
        "is 9 MB and 9 MiB, static). Sizes are in millions of bytes, resident memory in MiB with an MQTT listener and, where they are built, the API ports open; a start is timed from `exec` to the first connection that the",
        "listener accepts.",
        "",
        f"| build ({machine}, linked dynamically unless said) | MB | resident, idle | start, median (slowest) of {STARTS}, ms |",
        "| --- | ---: | ---: | ---: |",
        *rows,
        "",
        "The smallest gateway has MQTT in, the store, MQTT out, `local`, SQLite and escape mode; Dapr's API, CoAP, bindings and secret stores are left out. Families are cargo features of",
        "`targets/gateway`: `api`, `coap`, `configuration`, `cron`, `http`, `localstorage`, `memory`, `secrets`, `sensors`.",
        "",
    ]
    if sizes:
        lines += ["| static binary (`cross/build`) | MB |", "| --- | ---: |", *sizes, ""]
    lines += [
        f"What each crate adds to the {text / 1e6:.2f} MB of code (cargo-bloat; generic code counts where it is defined):",
        "",
        "| crate | kB |",
        "| --- | ---: |",
        *(f"| {name} | {size / 1e3:.0f} |" for name, size in listed),
        f"| {len(by_crate) - len(listed)} others | {rest / 1e3:.0f} |",
        "",
    ]
    (ROOT / "docs" / "footprint.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
