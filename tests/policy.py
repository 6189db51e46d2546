#!/usr/bin/env python3
"""Dependency policy: directions between our crates, logic free of IO and clocks, licences, no duplicate major versions, no OpenSSL or aws-lc.

Reads `cargo metadata`; needs nothing but Python and cargo. Each exception stands here with its reason.
"""
import json
import re
import subprocess
import sys

LICENCES = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unicode-3.0", "Unlicense",
    "0BSD", "CC0-1.0", "BSL-1.0",
}
FORBIDDEN = {"openssl", "openssl-sys", "aws-lc-rs", "aws-lc-sys", "native-tls"}
# Crates that may stand in the tree in two major versions: name -> why.
DUPLICATES = {
    "getrandom": "ring 0.17 still needs 0.2; ours is 0.4",
    "hashbrown": "indexmap and hashlink follow at their own pace; both are small",
    "syn": "procedural macros: in the build only, not in the binary",
    "windows-sys": "not built on the platforms we ship for",
    "windows-targets": "not built on the platforms we ship for",
    "wasi": "not built on the platforms we ship for",
    "wit-bindgen": "not built on the platforms we ship for",
    "r-efi": "not built on the platforms we ship for",
    "thiserror": "a dependency follows; a few kilobytes",
    "thiserror-impl": "a dependency follows; in the build only",
    "bitflags": "a dependency follows; no code of its own",
    "rand": "tests only (proptest)",
    "rand_core": "tests only (proptest)",
    "rand_chacha": "tests only (proptest)",
    "itertools": "procedural macros: in the build only",
    "cpufeatures": "a few hundred bytes",
    "foldhash": "follows hashbrown",
    "coap-message": "coap-lite implements the traits of both; they have no code of their own",
}


def licence_ok(expression):
    """An SPDX expression is fine when every AND part has an accepted OR alternative."""
    expression = expression.replace("/", " OR ")
    for part in re.split(r"\s+AND\s+", expression.replace("(", " ").replace(")", " ")):
        if not any(option.strip() in LICENCES for option in re.split(r"\s+OR\s+", part)):
            return False
    return True


def direction_problems(packages, members):
    """targets -> components -> core: components never know each other, the core knows neither."""
    by_name = {p["name"]: p for p in packages if p["id"] in members}

    def room(package):
        path = package["manifest_path"]
        for name in ("components", "targets", "tests", "proto"):
            if f"/{name}/" in path:
                return name
        return "core"

    allowed = {"core": {"proto"}, "proto": set(), "components": {"core"}, "targets": {"core", "components", "proto"}, "tests": {"core", "components", "proto"}}
    for package in by_name.values():
        here = room(package)
        for dependency in package["dependencies"]:
            other = by_name.get(dependency["name"])
            if other is None or other is package:
                continue
            # The shared suites are test support: components may use them for their tests only.
            if other["name"] == "selvedge-conformance" and dependency["kind"] == "dev":
                continue
            if package["name"] == "selvedge-conformance":
                continue
            if room(other) not in allowed[here] and dependency["kind"] != "dev":
                yield f"{package['name']} ({here}) depends on {other['name']} ({room(other)})"
            if here == "components" and room(other) == "components":
                yield f"{package['name']} knows another component, {other['name']}"


# Decisions: no clock is read, no file or socket touched, no task started here (decision record 0003). Loops around them act.
DECISIONS = [
    "src/topic.rs", "src/units.rs", "src/message.rs", "src/outbox/codec.rs", "src/outbox/cursor.rs", "src/outbox/lane.rs", "src/outbox/files.rs",
    "src/outbox/config.rs", "src/outbox/hold.rs", "src/outbox/merge.rs", "src/outbox/aggregate.rs", "src/outbox/compact/choose.rs",
    "src/escape/link.rs", "src/escape/backoff.rs", "src/escape/mode.rs", "src/escape/handover.rs", "src/escape/budget.rs", "src/outlook.rs",
    "src/forward/pace.rs", "src/forward/throttle.rs", "src/forward/window.rs", "src/forward/mapping.rs", "src/hub/routing.rs", "src/hub/shard.rs", "src/hub/when.rs",
    "components/mqtt/src/session.rs", "components/mqtt-listener/src/session.rs", "components/mqtt-listener/src/wire/decode.rs", "components/coap/src/endpoint/mod.rs", "components/coap/src/endpoint/outgoing.rs", "components/coap/src/endpoint/peers.rs", "components/coap/src/endpoint/request.rs", "components/coap/src/endpoint/respond.rs", "components/coap/src/endpoint/timers.rs",
]
ACTS = re.compile(r"Instant::now|SystemTime|std::fs|std::net::(Tcp|Udp)|tokio::(net|spawn|time|task|fs)|thread::")


def decision_problems():
    """Logic that acts."""
    for name in DECISIONS:
        try:
            with open(name, encoding="utf-8") as file:
                text = file.read().split("#[cfg(test)]")[0]
        except FileNotFoundError:
            yield f"{name} is on the list of decisions and not there: keep the list true"
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if ACTS.search(line) and not line.lstrip().startswith("//"):
                yield f"{name}:{number} acts where it should only decide: {line.strip()}"


def main():
    metadata = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], check=True, capture_output=True).stdout)
    packages, members = metadata["packages"], set(metadata["workspace_members"])
    problems = list(direction_problems(packages, members)) + list(decision_problems())
    versions = {}
    for package in packages:
        if package["id"] in members:
            continue
        name, version = package["name"], package["version"]
        if name in FORBIDDEN:
            problems.append(f"{name} {version} must not be used: ring is the only crypto provider")
        licence = package.get("license") or ""
        if not licence_ok(licence):
            problems.append(f"{name} {version} has licence {licence!r}, which is not on the list")
        major = version.split(".")[0] if not version.startswith("0.") else ".".join(version.split(".")[:2])
        versions.setdefault(name, set()).add(major)
    for name, majors in sorted(versions.items()):
        if len(majors) > 1 and name not in DUPLICATES:
            problems.append(f"{name} stands in the tree in versions {', '.join(sorted(majors))}; make them one, or write the reason into tests/policy.py")
    for problem in problems:
        print(problem)
    print(f"{len(packages) - len(members)} dependencies checked: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
