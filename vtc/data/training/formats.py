"""What training files hold, read as streams: JSON arrays, JSON lines and webdataset shards.

One entry, whatever the container, is an object with `image` (or `images`) and one or more of

* `conversations`, LLaVA's schema: [{"from": "human", "value": "<image>\\nWhat…"}, {"from": "gpt", "value": …}];
* `question` and `answer`: one turn of the same;
* `caption` or `blip_caption`: what is said of the image.

In a shard, an entry is the members of one name: `000012.jpg` with `000012.txt`, a caption, or `000012.json`, an object.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vtc.errors import UserError

FORMATS = ("json", "jsonl", "webdataset")
KINDS = ("conversation", "caption", "both")
CHUNK = 1 << 20  # bytes read at once
LONGEST = 64 << 20  # bytes of one entry of a JSON array; what goes on for longer is a damaged file
IMAGE = "<image>"  # where LLaVA's files say that the image goes
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


class BadSample(Exception):
    """A sample that can't be trained on; says why in a few words."""


class Span(NamedTuple):
    """Bytes of a file."""

    start: int
    size: int


@dataclass
class Entry:
    """One entry as it is met.

    Attributes:
        number: counts from 0; in JSON lines, the line, from 1.
        text: where its object or caption is.
        content: the object. Strings of a JSON array may still be bytes read as Latin-1: see `image_key`.
        image: of a shard's entry, where its image is; None without one.
        bare: `text` is a caption, not an object.
    """

    number: int
    text: Span
    content: Mapping[str, Any]
    image: Span | None = None
    bare: bool = False


# ---------------------------------------------------------------------------------------------------- containers
def format_of(path: Path) -> str:
    """One of FORMATS, by the file's ending or its first character.

    Raises:
        UserError: it is none of them.
    """
    if path.suffix == ".tar":
        return "webdataset"
    with path.open("rb") as stream:
        start = stream.read(CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start in (b"[", b"{"):
        return "json" if start == b"[" else "jsonl"
    raise UserError(
        f"training.data.path={path}: neither a JSON array, nor JSON lines, nor a .tar; set training.data.format"
    )


def entries(path: Path, format: str) -> Iterator[Entry]:
    """The entries of a file, in order; what is in memory at a time is one of them and a buffer.

    Raises:
        UserError: a damaged file, with the entry or line where it goes wrong.
    """
    return {"json": _array, "jsonl": _lines, "webdataset": _shard}[format](path)


def wrong(path: Path, where: str, what: str) -> UserError:
    """The error for an entry that can't be used."""
    return UserError(f"training.data.path={path}: {where}: {what}")


def place(format: str, number: int) -> str:
    """How messages call an entry."""
    return f"line {number}" if format == "jsonl" else f"entry {number}"


def _array(path: Path) -> Iterator[Entry]:
    # JSON's grammar is ASCII, and in Latin-1 a character is a byte: so offsets in the text are offsets in the file.
    decoder = json.JSONDecoder()
    with path.open("rb") as stream:
        mark = 3 if stream.read(3) == b"\xef\xbb\xbf" else 0
        stream.seek(mark)
        text, base, at, number = "", mark, 0, 0

        def more() -> bool:
            nonlocal text, base, at
            chunk = stream.read(max(CHUNK, len(text) - at))
            text, base, at = text[at:] + chunk.decode("latin-1"), base + at, 0
            return bool(chunk)

        def peek() -> str:
            nonlocal at
            while True:
                at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
                if at < len(text) or not more():
                    return text[at : at + 1]

        def here(what: str) -> UserError:
            return wrong(path, f"entry {number} (byte {base + at})", what)

        if peek() != "[":
            raise here("no JSON array begins here")
        at += 1
        if peek() == "]":
            return
        while True:
            peek()
            while True:
                try:
                    content, end = decoder.raw_decode(text, at)
                    break
                except (ValueError, RecursionError) as error:
                    if len(text) - at > LONGEST or not more():
                        raise here(f"not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(content, dict):
                raise here("not an object")
            try:
                text[at:end].encode("latin-1").decode()
            except UnicodeDecodeError as error:
                raise here(f"not UTF-8 ({error.reason})") from None
            yield Entry(number, Span(base + at, end - at), content)
            at = end
            separator = peek()
            if separator == "]":
                return
            if separator != ",":
                raise here(f"followed by {separator or 'the end of the file'!r} where a comma or ] should be")
            at += 1
            number += 1


_SPACE = re.compile(r"[ \t\r\n]*")


def _object(path: Path, where: str, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise wrong(path, where, f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise wrong(path, where, "not an object")
    return content


def _lines(path: Path) -> Iterator[Entry]:
    start = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                content = _object(path, f"line {number}", line.removeprefix(b"\xef\xbb\xbf"))
                yield Entry(number, Span(start, len(line)), content)
            start += len(line)


def _shard(path: Path) -> Iterator[Entry]:
    number, key = 0, None
    members: dict[str, tuple[Span, bytes]] = {}
    size, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
                end = tar.offset
                folder, _, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                if not member.isfile() or not stem or not dot or name.startswith("__"):
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                if key is not None and key != (folder, stem):
                    yield _grouped(path, number, members)
                    number, members = number + 1, {}
                key, ending = (folder, stem), ending.lower()
                ending = "image" if ending in PICTURES else ending
                if ending in ("image", "txt", "json"):
                    stream = tar.extractfile(member) if ending != "image" else None
                    content = stream.read() if stream else b""
                    members[ending] = Span(member.offset_data, member.size), content
        with path.open("rb") as raw:
            raw.seek(end)
            if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends without the mark of an end, as if cut short")
    except tarfile.TarError as error:
        raise wrong(path, f"entry {number}", f"not a readable tar ({error})") from None
    if key is not None:
        yield _grouped(path, number, members)


def _grouped(path: Path, number: int, members: Mapping[str, tuple[Span, bytes]]) -> Entry:
    image = members["image"][0] if "image" in members else None
    if "json" in members:
        span, raw = members["json"]
        content = _object(path, f"entry {number}", raw)
        if "txt" not in members or "conversations" in content or "question" in content:
            return Entry(number, span, content, image)
    span, raw = members.get("txt", (Span(0, 0), b""))
    return Entry(number, span, {"caption": raw.decode("utf-8", "replace")}, image, bare=True)


# ------------------------------------------------------------------------------------------------------- entries
def pictures(content: Mapping[str, Any]) -> list[str]:
    """Paths of the images an entry names.

    Raises:
        BadSample: they are no paths.
    """
    value = content.get("images") or content.get("image") or []
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise BadSample("image is neither a path nor a list of paths")
    return paths


def image_key(content: Mapping[str, Any]) -> str | None:
    """The path of an entry's one image, by which a second file knows it; None without one."""
    paths = pictures(content)
    if len(paths) != 1:
        return None
    try:
        return paths[0].encode("latin-1").decode()  # of an array, see `_array`
    except UnicodeError:
        return paths[0]


def talks(content: Mapping[str, Any]) -> bool:
    return "conversations" in content or "question" in content


def caption(content: Mapping[str, Any]) -> str | None:
    """The caption field of an entry, or None."""
    text = content.get("caption", content.get("blip_caption"))
    if text is not None and not isinstance(text, str):
        raise BadSample("caption is not a text")
    return text


def turns(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(question, answer) of each turn, as written. What is said before the first question is left out, as LLaVA does;
    so is a question at the end that nobody answers.

    Raises:
        BadSample: not LLaVA's schema, nobody answers, or the two sides don't take turns.
    """
    if "conversations" not in content:
        messages = [("human", content.get("question")), ("gpt", content.get("answer"))]
    elif not isinstance(content["conversations"], list):
        raise BadSample("conversations is not a list")
    else:
        objects = [message if isinstance(message, Mapping) else {} for message in content["conversations"]]
        messages = [(ROLES.get(str(message.get("from")), ""), message.get("value")) for message in objects]
    if not all(who and isinstance(what, str) for who, what in messages):
        raise BadSample("a message without text, or from neither human nor gpt")
    while messages and messages[0][0] == "gpt":
        messages = messages[1:]
    if len(messages) % 2:
        messages = messages[:-1]
    if not messages:
        raise BadSample("nothing is answered")
    if any(who != ("human", "gpt")[n % 2] for n, (who, _) in enumerate(messages)):
        raise BadSample("human and gpt don't take turns")
    return [(whole(str(q)), whole(str(a))) for (_, q), (_, a) in zip(messages[::2], messages[1::2], strict=True)]


def whole(text: str) -> str:
    """A text of whole characters, which tokenizers need.

    Raises:
        BadSample: it holds half of a surrogate pair, as JSON's escapes can.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadSample("text with half of a surrogate pair") from None
    return text


def kind_of(content: Mapping[str, Any], images: int, kind: str | None, captioned: bool, plain: bool) -> str:
    """What an entry is used for: by its fields, or as `kind` says.

    Args:
        images: how many it has.
        kind: conversation, caption, both, or None.
        captioned: a second file has a caption of its image.
        plain: a caption alone may be answered: LLaVA's first stage.

    Raises:
        BadSample: it can't be used so.
    """
    described = captioned or caption(content) is not None
    if kind is None:
        if talks(content):
            return "both" if described and images == 1 else "conversation"
        kind = "caption"
        if not described:
            raise BadSample("neither conversations, nor question and answer, nor a caption")
    if kind == "conversation":
        if not (talks(content) or (plain and described and images)):
            raise BadSample("no conversation; a caption alone is one with training.data.plain=true")
        return kind
    if images != 1:
        raise BadSample(f"{images} images, and a caption is of one")
    if kind == "both" and not talks(content):
        raise BadSample("no conversation, as kind=both needs")
    if not described and (not talks(content) or len(turns(content)) > 1):
        raise BadSample(f"no caption, as kind={kind} needs (an answer is one where there is a single turn)")
    return kind
