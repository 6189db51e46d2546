"""Archives whose bytes depend on their content alone: tar, Debian package, OCI image. Names sorted, owners root, one time for everything."""
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import tarfile


@dataclasses.dataclass
class Entry:
    """One file (`data`), symbolic link (`link`) or folder (neither) of an archive."""

    data: bytes | None = None
    mode: int = 0o644
    link: str | None = None
    owner: int = 0


def with_folders(entries):
    """The entries, and every folder above them that is not named."""
    result = dict(entries)
    for name in entries:
        while "/" in name:
            name = name.rsplit("/", 1)[0]
            result.setdefault(name, Entry(mode=0o755))
    return result


def tar(entries, epoch, prefix=""):
    """An uncompressed tar; `prefix` goes before every name ("./" in Debian packages)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, entry in sorted(with_folders(entries).items()):
            info = tarfile.TarInfo(prefix + name)
            info.mtime, info.mode = epoch, entry.mode
            info.uid = info.gid = entry.owner
            info.uname = info.gname = "root" if entry.owner == 0 else ""
            if entry.link is not None:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
            elif entry.data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(entry.data)
            archive.addfile(info, io.BytesIO(entry.data or b""))
    return buffer.getvalue()


def gz(data):
    """Compressed by gzip, without a name or a time of its own (and so as Debian wants manual pages)."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0, filename="") as file:
        file.write(data)
    return buffer.getvalue()


def deb(control, files, epoch):
    """A Debian package (deb(5)): an ar archive of a version, the control tar, the data tar. `control` maps names to entries."""
    sums = "".join(f"{hashlib.md5(e.data).hexdigest()}  {name}\n" for name, e in sorted(files.items()) if e.data is not None)
    control = dict(control, md5sums=Entry(sums.encode()))
    root = {".": Entry(mode=0o755)}
    members = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", lzma.compress(tar(root | {f"./{n}": e for n, e in control.items()}, epoch))),
        ("data.tar.xz", lzma.compress(tar(root | {f"./{n}": e for n, e in with_folders(files).items()}, epoch), preset=9)),
    ]
    package = io.BytesIO()
    package.write(b"!<arch>\n")
    for name, data in members:
        package.write(f"{name:<16}{epoch:<12}{0:<6}{0:<6}{0o100644:<8o}{len(data):<10}`\n".encode())
        package.write(data + b"\n" * (len(data) % 2))
    return package.getvalue()


def oci(images, epoch, created):
    """An OCI image layout (opencontainers/image-spec, version 1.0.0 of the layout) as entries. `images` is a list of
    (platform, layer entries, config): one manifest each under one index, one layer each."""
    entries, manifests = {}, []

    def blob(data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        entries[f"blobs/sha256/{digest}"] = Entry(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def as_json(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    for platform, files, config in images:
        layer = tar(files, epoch)
        layer_blob = blob(gz(layer), "application/vnd.oci.image.layer.v1.tar+gzip")
        image = {
            **platform,
            "created": created,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created": created, "created_by": "packaging/build --oci"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(as_json(image), "application/vnd.oci.image.config.v1+json"),
            "layers": [layer_blob],
        }
        described = blob(as_json(manifest), "application/vnd.oci.image.manifest.v1+json")
        manifests.append(described | {"platform": platform, "annotations": {"org.opencontainers.image.ref.name": "latest"}})
    if len(manifests) > 1:
        # A name stands for one thing: for several machines it is an index, which stands for the image of each.
        for manifest in manifests:
            del manifest["annotations"]
        index = blob(
            as_json({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}),
            "application/vnd.oci.image.index.v1+json",
        )
        manifests = [index | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}]
    entries["index.json"] = Entry(as_json({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}))
    entries["oci-layout"] = Entry(as_json({"imageLayoutVersion": "1.0.0"}))
    return entries
