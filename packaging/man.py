"""Manual pages: selvedge(1) is written by hand, selvedge.yaml(5) is the book's page on settings in mdoc(7)."""
import datetime
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent


def words(text):
    """Inline Markdown as roff: code and bold by fonts, links by their text."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    pieces = []
    for piece in re.split(r"(`[^`]+`|\*\*[^*]+\*\*)", text):
        plain = piece.strip("`") if piece.startswith("`") else piece.removeprefix("**").removesuffix("**")
        plain = plain.replace("\\|", "|").replace("\\", "\\e").replace("-", "\\-")
        pieces.append(f"\\fB{plain}\\fR" if plain and (piece.startswith(("`", "**"))) else plain)
    text = "".join(pieces)
    # A line that begins with a dot or an apostrophe would be a request.
    return f"\\&{text}" if text.startswith((".", "'")) else text


def cells(line):
    return [c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def body(markdown):
    """Headings, paragraphs, tables, lists and code blocks, which is what the book uses."""
    out, lines, at = [], markdown.splitlines(), 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            out += [".Bd -literal -offset indent", *(code(text) for text in lines[at + 1 : end]), ".Ed"]
            at = end + 1
        elif line.startswith("# "):
            at += 1
        elif line.startswith("##"):
            out.append(f".S{'h' if line.startswith('## ') else 's'} {words(line.lstrip('# ')).replace(chr(96), '')}")
            at += 1
        elif line.startswith("|"):
            table = []
            while at < len(lines) and lines[at].startswith("|"):
                table.append(cells(lines[at]))
                at += 1
            out.append(".Bl -tag -width Ds")
            for first, *rest in table[2:]:
                # What stands between key and meaning is the default, or whatever the head says.
                out.append(f".It {words(first)}")
                told = [f"{head}: {cell}" for head, cell in zip(table[0][1:-1], rest[:-1]) if cell]
                out.append(words("; ".join([*rest[-1:], *told])))
            out.append(".El")
        elif line.startswith("- "):
            out.append(".Bl -bullet -compact")
            while at < len(lines) and (lines[at].startswith("- ") or lines[at].startswith("  ")):
                if lines[at].startswith("- "):
                    out.append(".It")
                out.append(words(lines[at].removeprefix("- ").strip()))
                at += 1
            out.append(".El")
        elif not line.strip():
            if out and not out[-1].startswith((".S", ".Pp")) and at + 1 < len(lines) and lines[at + 1].strip() and lines[at + 1][0] not in "#|":
                out.append(".Pp")
            at += 1
        else:
            out.append(words(line))
            at += 1
    return "\n".join(out)


def code(text):
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def date(epoch):
    day = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    return f"{day:%B} {day.day}, {day.year}"


def command(version, epoch):
    """selvedge(1)."""
    text = (ROOT / "packaging" / "man" / "selvedge.1").read_text(encoding="utf-8")
    return text.replace("$DATE$", date(epoch)).replace("$VERSION$", version)


def settings(version, epoch):
    """selvedge.yaml(5)."""
    head = [
        f".Dd {date(epoch)}",
        ".Dt SELVEDGE.YAML 5",
        f".Os Selvedge {version}",
        ".Sh NAME",
        ".Nm selvedge.yaml",
        ".Nd what a folder of resources may say to selvedge",
        ".Sh DESCRIPTION",
    ]
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    return "\n".join([*head, body(text), ".Sh SEE ALSO", ".Xr selvedge 1", ""])
