#!/usr/bin/env python3
"""The bill of materials of a binary, as CycloneDX 1.5 JSON on standard output: every crate that is linked into it for a target, with version,
licence, checksum and what it depends on, and the C code that is built along. `cross/sbom.py TARGET BINARY`.

Read from `cargo metadata` and Cargo.lock; the same input gives the same bytes (the time is the commit's, the serial number comes from the content).
"""
import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import uuid

# C sources inside crates: crate -> name, licence, file that states the version, and how.
BUNDLED = {
    "libsqlite3-sys": ("sqlite", "blessing", "sqlite3/sqlite3.h", re.compile(r'#define SQLITE_VERSION\s+"([^"]+)"')),
}


def checksums():
    """Checksum by (name, version), as Cargo.lock has it."""
    found = {}
    for block in pathlib.Path("Cargo.lock").read_text().split("[[package]]")[1:]:
        entry = dict(re.findall(r'^(name|version|checksum) = "([^"]*)"', block, re.M))
        if "checksum" in entry:
            found[entry["name"], entry["version"]] = entry["checksum"]
    return found


def licence(expression):
    return (expression or "").replace("/", " OR ")


def linked(metadata, root):
    """Ids of the packages that are linked in: what normal dependencies reach, procedural macros and their own dependencies left out."""
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    packages = {p["id"]: p for p in metadata["packages"]}
    seen, todo = {}, [root]
    while todo:
        node = nodes[todo.pop()]
        if node["id"] in seen:
            continue
        below = []
        for dependency in node["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            macro = any("proc-macro" in target["kind"] for target in packages[dependency["pkg"]]["targets"])
            if normal and not macro:
                below.append(dependency["pkg"])
        seen[node["id"]] = below
        todo += below
    return seen


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, sums):
    entry = {"type": "library", "bom-ref": reference(package), "name": package["name"], "version": package["version"], "purl": reference(package)}
    if package.get("license"):
        entry["licenses"] = [{"expression": licence(package["license"])}]
    if (package["name"], package["version"]) in sums:
        entry["hashes"] = [{"alg": "SHA-256", "content": sums[package["name"], package["version"]]}]
    if package.get("repository"):
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


def main():
    target, binary = sys.argv[1], pathlib.Path(sys.argv[2])
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    packages = {p["id"]: p for p in metadata["packages"]}
    root = next(p["id"] for p in metadata["packages"] if p["name"] == "selvedge-gateway")
    tree, sums = linked(metadata, root), checksums()
    components, graph = [], []
    for identity in sorted(tree, key=lambda i: reference(packages[i])):
        package = packages[identity]
        below = sorted(reference(packages[b]) for b in tree[identity])
        if package["name"] in BUNDLED:
            name, terms, file, pattern = BUNDLED[package["name"]]
            version = pattern.search(pathlib.Path(package["manifest_path"]).parent.joinpath(file).read_text(errors="replace")).group(1)
            purl = f"pkg:generic/{name}@{version}"
            components.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "licenses": [{"expression": terms}]})
            graph.append({"ref": purl, "dependsOn": []})
            below.append(purl)
        if identity != root:
            components.append(component(package, sums))
        graph.append({"ref": reference(package), "dependsOn": below})
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    main_component = component(packages[root], sums) | {
        "type": "application",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "properties": [{"name": "selvedge:target", "value": target}],
    }
    when = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.timezone.utc)
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": main_component},
        "components": components,
        "dependencies": graph,
    }
    content = json.dumps(bom, sort_keys=True)
    bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(content.encode()).hexdigest())}"
    json.dump(bom, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main()
