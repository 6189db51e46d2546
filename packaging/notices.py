"""Licence notices of everything in the binary: the crates that are linked, from their own files, and what comes with the compiler."""
import collections
import json
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = re.compile(r"^(licen[cs]e|copying|notice|copyright|unlicense)", re.I)
# Linked and in no crate; their texts stand in packaging/notices/.
BESIDE = {
    "musl": "the C library of static binaries",
    "rust-std": "Rust's standard library",
    "sqlite": "compiled into the binary by libsqlite3-sys",
}


def linked(target):
    """Packages that `selvedge` is made of on this target: what a build script or a macro needs for itself is not in the binary."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    start = next(p["id"] for p in packages.values() if p["name"] == "selvedge-gateway")
    seen, waiting = set(), [start]
    while waiting:
        here = waiting.pop()
        if here in seen or any("proc-macro" in t["kind"] for t in packages[here]["targets"]):
            continue
        seen.add(here)
        waiting += [d["pkg"] for d in nodes[here]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
    members = set(metadata["workspace_members"])
    return sorted((packages[i] for i in seen - members), key=lambda p: (p["name"], p["version"]))


def texts(package):
    """Licence files of a crate, by name."""
    folder = pathlib.Path(package["manifest_path"]).parent
    files = [f for f in folder.iterdir() if f.is_file() and NAMES.match(f.name)]
    files += [f for f in folder.glob("LICENSES/*") if f.is_file()]
    return {f.name: f.read_text(encoding="utf-8", errors="replace").strip() for f in sorted(files)}


def collect(target):
    """The text of NOTICES. Same texts are shown once, under all crates that have them.

    Raises `RuntimeError` for a crate that brings no text under a licence of which nobody brings one."""
    packages = linked(target)
    by_text, bare = collections.defaultdict(list), []
    for package in packages:
        title = f"{package['name']} {package['version']}"
        found = texts(package)
        if not found:
            bare.append((title, package))
        for text in found.values():
            by_text[" ".join(text.split())].append((title, text))
    lines = [
        "Selvedge contains the following software. Each part is under its own licence; the texts follow.",
        "",
    ]
    for package in packages:
        lines.append(f"{package['name']} {package['version']}: {package['license'] or 'see its text'}{by(package)}")
    for name, what in BESIDE.items():
        lines.append(f"{name}: {what}")
    if bare:
        lines += ["", "Published without a file of its licence; the text of the licence named above is that of the others: "]
        lines.append(", ".join(title for title, _ in bare))
        # MIT and Apache-2.0 texts stand below with certainty; anything else must bring its own.
        for title, package in bare:
            if not re.search(r"\b(MIT|Apache-2\.0)\b", package["license"] or ""):
                raise RuntimeError(f"{title} has licence {package['license']!r} and no text of it: add one to packaging/notices")
    for group in sorted(by_text.values(), key=lambda g: g[0][0]):
        titles = sorted({title for title, _ in group})
        lines += ["", "-" * 100, ", ".join(titles), "", group[0][1]]
    for name in BESIDE:
        lines += ["", "-" * 100, name, "", (ROOT / "packaging" / "notices" / f"{name}.txt").read_text(encoding="utf-8").strip()]
    return "\n".join(lines) + "\n"


def by(package):
    authors = [re.sub(r"\s*<[^>]*>", "", a) for a in package.get("authors") or []]
    return f" ({', '.join(authors)})" if authors else ""
