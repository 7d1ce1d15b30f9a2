"""Formats and their index: every entry is found again, whatever the file; damage is named; memory stays flat."""

from __future__ import annotations

import json
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import captions, conversations, pictures, said, shard, written
from PIL import Image

from vtc.data.training import formats
from vtc.data.training.formats import BadSample
from vtc.data.training.index import RECORD, DataFile, open_image
from vtc.errors import UserError


def opened(path: Path, **options: Any) -> DataFile:
    return DataFile(path, path.parent / "index", **options)


def numbers(file: DataFile) -> dict[str, int]:
    return {kind: int(count) for kind, count in zip(formats.KINDS, file.counts, strict=True) if count}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_llava_conversations(tmp_path: Path, ending: str) -> None:
    entries = conversations(pictures(tmp_path, 9))
    file = opened(written(tmp_path / f"mix665k.{ending}", entries))
    assert numbers(file) == {"conversation": len(entries)} and file.images == tmp_path
    for n, entry in enumerate(entries):
        sample = file.sample("conversation", n)
        assert sample.images == ([tmp_path / entry["image"]] if "image" in entry else [])
        texts = [message["value"] for message in entry["conversations"]]
        assert sample.turns == list(zip(texts[::2], texts[1::2], strict=True)) and sample.caption is None
        line = f"line {n + 1}" if ending == "jsonl" else f"entry {n}"
        assert file.name("conversation", n) == f"mix665k.{ending}, {line} (id {entry['id']})"


def test_json_arrays_as_they_are_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Non-ASCII text, escapes, nesting, brackets in strings, a byte-order mark, any white space, entries across the
    ends of the buffer."""
    entries = [
        {"caption": 'ein „Ü" ]}, {[ \\ "quoted" 図', "image": "größe/é.png", "extra": {"a": [1, [2, {"b": None}]]}},
        {"caption": "x" * 700, "image": "b.png"},
        {"caption": "\N{GRINNING FACE}\n\t", "image": "c.png"},
    ]
    texts = [
        json.dumps(entries),
        json.dumps(entries, ensure_ascii=False),
        "\ufeff \n" + json.dumps(entries, ensure_ascii=False, indent=3) + "\n\n",
        "[" + " ,\r\n".join(json.dumps(e, ensure_ascii=False) for e in entries) + "]",
    ]
    for chunk in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(formats, "CHUNK", chunk)
        for n, text in enumerate(texts):
            path = tmp_path / f"{n}.json"
            path.write_text(text, encoding="utf-8", newline="")
            raw = path.read_bytes()
            found = list(formats.entries(path, "json"))
            assert [e.number for e in found] == [0, 1, 2]
            assert [json.loads(raw[e.text.start : e.text.start + e.text.size]) for e in found] == entries
            assert formats.image_key(found[0].content) == "größe/é.png"
            if chunk == 64:
                assert opened(path, format="json").sample("caption", 0).caption == entries[0]["caption"]


def test_caption_lists_and_both(tmp_path: Path) -> None:
    """A caption beside a conversation makes it both; blip_caption is a caption; a conversation of one turn is a caption
    where the source says so."""
    a, b, c, d = pictures(tmp_path, 4)
    talk = said(("<image>\nwhat is this ?", "one circle"))
    entries = [
        {"image": a, "caption": "a red square"},
        {"id": "1", "image": b, "conversations": talk, "blip_caption": "a blue square"},
        {"id": "2", "image": c, "conversations": talk},
        {"images": [c, d], "conversations": talk, "caption": "of which ?"},
        {"image": [d], "question": "what ?", "answer": "this", "caption": "a circle"},
    ]
    file = opened(written(tmp_path / "x.json", entries))
    assert numbers(file) == {"conversation": 2, "caption": 1, "both": 2}
    assert file.sample("caption", 0).caption == "a red square" and file.sample("caption", 0).turns == []
    both = [file.sample("both", n) for n in range(2)]
    assert [s.caption for s in both] == ["a blue square", "a circle"] and both[1].turns == [("what ?", "this")]
    assert file.sample("conversation", 1).images == [tmp_path / c, tmp_path / d]

    as_captions = opened(written(tmp_path / "blip_558k.json", entries[1:3]), kind="caption")
    assert numbers(as_captions) == {"caption": 2}
    assert [as_captions.sample("caption", n).caption for n in range(2)] == ["a blue square", "one circle"]
    pairs = written(tmp_path / "pairs.json", captions([a, b]))
    plain_caption = captions([a, b])[1]["caption"]
    plain = opened(pairs, kind="conversation", plain=True)
    assert plain.sample("conversation", 1).turns == [("", plain_caption)]
    with pytest.raises(UserError, match=r"entry 0: no conversation; .*plain=true"):
        opened(pairs, kind="conversation")


def test_captions_from_a_second_file(tmp_path: Path) -> None:
    """Keyed by the image's path; the first one counts where it has several; the index follows either file."""
    paths = pictures(tmp_path, 6)
    talk = [
        {"id": str(n), "image": p, "conversations": said(("<image> what ?", f"answer {n}"))}
        for n, p in enumerate(paths)
    ]
    second = [{"image": p, "caption": f"caption of {p}"} for p in (paths[4], paths[1], "coco/é.png", paths[1])]
    second[-1]["caption"] = "another"
    talk.append({"id": "7", "image": "coco/é.png", "conversations": said(("<image> what ?", "answer"))})
    main, other = written(tmp_path / "talk.json", talk), written(tmp_path / "captions.json", second)
    file = opened(main, captions=opened(other, kind="caption", by_key=True))
    assert numbers(file) == {"conversation": 4, "both": 3}
    assert [file.sample("both", n).caption for n in range(3)] == [
        f"caption of {p}" for p in (paths[1], paths[4], "coco/é.png")
    ]
    assert file.sample("both", 0).turns == [("<image> what ?", "answer 1")]
    written(other, second[:1])
    assert numbers(opened(main, captions=opened(other, kind="caption", by_key=True))) == {"conversation": 6, "both": 1}


@pytest.mark.parametrize("objects", [False, True])
def test_shards(tmp_path: Path, objects: bool) -> None:
    path = shard(tmp_path / "cc3m-00000.tar", 0, 7, objects, leave_out=["000003.jpg", "000005.txt"])
    file = opened(path)
    assert numbers(file) == {"caption": 7}
    for n in range(7):
        if n == 3 or (n == 5 and not objects):
            with pytest.raises(BadSample, match="no image beside it" if n == 3 else "an empty caption"):
                file.sample("caption", n)
            continue
        sample = file.sample("caption", n)
        with tarfile.open(path) as tar:
            text = tar.extractfile(f"{n:06d}.{'json' if objects else 'txt'}").read().decode()  # type: ignore[union-attr]
            assert sample.images == [tar.extractfile(f"{n:06d}.jpg").read()]  # type: ignore[union-attr]
        assert sample.caption == (json.loads(text)["caption"] if objects else text)
        assert open_image(sample.images[0]).size == (9 + n % 3, 9)
    assert file.name("caption", 2) == "cc3m-00000.tar, entry 2 (000002.jpg)"


def test_a_shard_that_is_cut_short(tmp_path: Path) -> None:
    path = shard(tmp_path / "cc3m-00000.tar", 0, 30)
    whole = path.read_bytes()
    boundary = 512 * (len(whole) // 1024)
    for size in (boundary, boundary + 512, boundary + 700, boundary + 1024):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cc3m-00000.tar: entry \d+: not a readable tar"):
            opened(path)


def test_pictures_are_opened_as_they_are_everywhere(tmp_path: Path) -> None:
    strokes, deep = Image.new("RGBA", (8, 8)), Image.new("I;16", (8, 8), 65_535 // 2)
    strokes.putpixel((0, 0), (0, 0, 0, 255))
    strokes.save(tmp_path / "strokes.png")
    deep.save(tmp_path / "deep.png")
    image = open_image(tmp_path / "strokes.png")
    assert (image.mode, image.getpixel((0, 0)), image.getpixel((4, 4))) == ("RGB", (0, 0, 0), (255, 255, 255))
    assert open_image((tmp_path / "deep.png").read_bytes()).getpixel((4, 4)) == (127, 127, 127)
    (tmp_path / "cut.png").write_bytes((tmp_path / "strokes.png").read_bytes()[:50])
    for name, says in (("cut.png", "can't be read"), ("none.png", "is missing")):
        with pytest.raises(BadSample, match=f"{name} {says}"):
            open_image(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"caption": "a", "image": "b"}, {"caption": "a", "image": }]', r"x.json: entry 1 \(byte 33\): not JSON"),
        ('[{"caption": "a", "image": "b"} {"caption": "a"}]', r"entry 0 .*followed by '\{' where a comma"),
        ('[{"caption": "a", "image": "b"}', r"entry 0 .*followed by 'the end of the file'"),
        ('[{"caption": "a", "image": "b"}, {"cap', r"entry 1 \(byte 33\): not JSON"),
        ('[{"caption": "a", "image": "b"}, 3]', r"entry 1 \(byte 33\): not an object"),
        ('[{"caption": "a", "image": "b"}, {"image": "b"}]', "entry 1: neither conversations, nor"),
        ('[{"caption": "a"}]', "entry 0: 0 images, and a caption is of one"),
        ('[{"caption": 3, "image": "b"}]', "entry 0: caption is not a text"),
        ('[{"caption": "a", "image": 3}]', "entry 0: image is neither a path"),
        ("hello", "neither a JSON array, nor JSON lines, nor a .tar; set training.data.format"),
        ('{"caption": "a", "image": "b"}\n\n{"caption"}\n', "line 3: not JSON"),
        ('{"caption": "a", "image": "b"}\n[]\n', "line 2: not an object"),
        ('[{"caption": "a", "image": "b"}, {"caption": "caf\xe9", "image": "b"}]', r"entry 1 \(byte 33\): not UTF-8"),
        ('{"caption": "a", "image": "b"}\n{"caption": "caf\xe9"}', "line 2: not JSON .'utf-8' codec"),
        ('[{"caption": ' + "[" * 100_000, r"entry 0 \(byte 1\): not JSON"),
        ('{"caption": "a", "image": "b"}\n' + '{"a":' * 100_000, "line 2: not JSON .maximum recursion"),
        ('[{"caption": "a", "image": "b", "id": ' + "9" * 5000 + "}]", "entry 0 .*: not JSON .Exceeds the limit"),
        ('{"caption": "a", "image": "b", "id": ' + "9" * 5000 + "}", "line 1: not JSON .Exceeds the limit"),
        ("\xff\xfe[\0{\0", "neither a JSON array"),
        ("PAR1\x15\0PAR1", "neither a JSON array"),
        ("", "neither a JSON array"),
        ('[{"caption": "a", "images": ["b", 3]}]', "entry 0: image is neither a path"),
        ('[{"caption": NaN, "image": "b"}]', "entry 0: caption is not a text"),
        ("[null]", r"entry 0 \(byte 1\): not an object"),
    ],
)
def test_a_damaged_file_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=says) as error:
        opened(path)
    assert "\n" not in str(error.value)
    assert not list(path.parent.glob("index/*.index")), "no half of an index"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"from": "human", "value": "a"}], "nothing is answered"),
        ([{"from": "gpt", "value": "a"}], "nothing is answered"),
        ([{"from": "human", "value": "a"}, {"from": "human", "value": "b"}], "don't take turns"),
        ([{"from": "human", "value": "a"}, {"from": "system", "value": "b"}], "neither human nor gpt"),
        ([{"from": "human", "value": "a"}, {"from": "gpt"}], "without text"),
        ("a", "not a list"),
    ],
)
def test_a_conversation_that_is_none(messages: Any, says: str) -> None:
    with pytest.raises(BadSample, match=says):
        formats.turns({"conversations": messages})


@pytest.mark.parametrize("text", ["\ud800", "half \udc00 of one"])
def test_half_a_character_is_no_text(tmp_path: Path, text: str) -> None:
    """JSON can write it, and tokenizers end with it; also as a path, of a picture that can't be there."""
    entries = [
        {"caption": text, "image": "a.png"},
        {"conversations": said((text, "a"))},
        {"caption": "a", "image": text},
    ]
    path = written(tmp_path / "x.jsonl", entries)
    file = opened(path, captions=opened(path, kind=None, by_key=True))
    for kind, number in (("caption", 0), ("conversation", 0)):
        with pytest.raises(BadSample, match="half of a surrogate pair"):
            file.sample(kind, number)
    with pytest.raises(BadSample, match="is missing"):
        open_image(file.sample("caption", 1).images[0])


def test_what_is_said_before_the_first_question_is_left_out() -> None:
    turns = [*said(("q", "a")), {"from": "human", "value": "and ?"}]
    assert formats.turns({"conversations": [{"from": "gpt", "value": "hi"}, *turns]}) == [("q", "a")]


def test_the_index_is_kept_and_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.json", captions(pictures(tmp_path, 3)))
    index = opened(path).index
    built: list[Path] = []
    entries = formats.entries
    monkeypatch.setattr(formats, "entries", lambda path, format: built.append(path) or entries(path, format))
    assert opened(path).index == index and not built
    index.write_bytes(index.read_bytes()[:-5])
    assert numbers(opened(path)) == {"caption": 3} and len(built) == 1, "a damaged index is made anew"
    written(path, captions(pictures(tmp_path, 4)))
    assert numbers(opened(path)) == {"caption": 4} and not index.exists(), "the old one is gone"
    os.utime(path, ns=(1, 1))
    opened(path)
    assert len(built) == 3
    opened(path, kind="caption")
    assert len(built) == 4 and len(list(index.parent.glob("*.index"))) == 2, "one for each way to read it"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", captions(["a.png"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="training.data.cache"):
        DataFile(path, tmp_path / "file" / "index")


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, ending: str) -> None:
    """The buffer and a few entries: 60 MB of conversations need what 18 MB of them need."""
    entry = json.dumps({"id": "0", "image": "a.png", "conversations": said(("<image>\nwhat ?", "word " * 3000))})
    between, start, end = (",\n", "[", "]") if ending == "json" else ("\n", "", "\n")
    peaks = []
    for count in (1_200, 4_000):
        path = tmp_path / f"{count}.{ending}"
        path.write_text(start + between.join([entry] * count) + end)
        tracemalloc.start()
        file = opened(path)
        assert numbers(file) == {"conversation": count}
        assert file.sample("conversation", count - 1).turns == [("<image>\nwhat ?", "word " * 3000)]
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
        assert file.index.stat().st_size == 24 + count * RECORD.itemsize
    assert path.stat().st_size > 57e6
    assert peaks[1] < peaks[0] + 0.5 < 8, "MB"


def test_records_are_on_disk(tmp_path: Path) -> None:
    file = opened(written(tmp_path / "x.json", captions(["a.png", "b.png"])))
    assert isinstance(file.records, np.memmap)
