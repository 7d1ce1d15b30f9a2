"""`action=index`, `search` and `ask`: what they print, and every bad input in one line with exit code 2."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vtc.cli import main


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_index_search_and_ask(run, tmp_path, pictures) -> None:
    store = f"store={tmp_path}/photos"
    code, out, _ = run("action=index", store, f"images={pictures}", "method=fwd2bot", "tokens=16")
    assert code == 0 and "12 new, 0 changed, 0 unchanged, 0 returned, 0 gone, 2 broken; 12 images" in out
    assert "empty.png: 0 bytes" in out
    code, out, _ = run("action=index", store, f"images={pictures}", "format=json")
    assert code == 0 and json.loads(out)["unchanged"] == 12
    code, out, _ = run("action=search", store, "query='a red circle left of a blue square'", "top=3", "format=json")
    hits = json.loads(out)
    assert code == 0 and len(hits) == 3 and hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    code, out, _ = run("action=search", store, f"image={hits[0]['path']}", "top=1", f"html={tmp_path}/sheet.html")
    assert code == 0 and "1.000" in out
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1 and "http" not in page
    code, out, _ = run("action=ask", store, "query='a red circle'", "top=2", "question='is there a circle?'")
    assert code == 0 and "answer" in out and ("yes" in out or "no" in out)


def test_what_a_page_shows_is_escaped() -> None:
    from vtc.store.sheet import contact_sheet
    from vtc.store.store import StoredAnswer
    from vtc.store.table import Hit

    hit = Hit("/a/<b>.png", 1, 1, True, b"", 0.5)
    page = contact_sheet("<script>", "s", [StoredAnswer(hit, "<i>x</i>")])
    assert "<script>" not in page and "&lt;i&gt;x" in page and "&lt;b&gt;.png" in page and "file gone" in page


BAD = {
    "no store": (["action=search", "store={tmp}/nothing", "query=a"], "no store; action=index makes one"),
    "not a store": (["action=search", "store={pictures}", "query=a"], "a folder with other things in it"),
    "a file as a store": (["action=search", "store={pictures}/empty.png", "query=a"], "a file; a folder is needed"),
    "no store said": (["action=search", "query=a"], "store"),
    "other model": (["action=search", "store={where}", "query=a", "method=m3", "tokens=16"], "method.name=fwd2bot"),
    "no folder": (["action=index", "store={tmp}/s", "images={tmp}/none"], "no such folder"),
    "no images": (["action=index", "store={tmp}/s", "images={tmp}"], "no pictures in it"),
    "images unsaid": (["action=index", "store={tmp}/s"], "needs a folder of pictures"),
    "unstorable": (
        ["action=index", "store={tmp}/s", "images={pictures}", "method=fastv", "tokens=16"],
        "no images can",
    ),
    "other precision": (["action=index", "store={where}", "images={pictures}", "precision=int8"], "precision=float16"),
    "precision": (["action=index", "store={tmp}/s", "images={pictures}", "precision=int4"], "float16, int8"),
    "example of 0 bytes": (["action=search", "store={where}", "image={pictures}/empty.png"], "no picture"),
    "truncated example": (["action=search", "store={where}", "image={pictures}/cut.png"], "can't be decoded"),
    "huge example": (["action=search", "store={where}", "image={tmp}/huge.png"], "20000 x 20000 pixels"),
    "no example": (["action=search", "store={where}", "image={tmp}/none.png"], "no such picture"),
    "both": (["action=search", "store={where}", "query=a", "image=b"], "takes one of the two"),
    "long query": (["action=search", "store={where}", "query={long}"], "positions"),
    "blank query": (["action=search", "store={where}", "query=' '"], "an empty text"),
    "no question": (["action=ask", "store={where}", "query=a"], "needs one"),
    "unknown image": (["action=ask", "store={where}", "image=x.png", "question=a"], "none of the store's 12 images"),
    "long question": (["action=ask", "store={where}", "image=00003.png", "question={long}"], "positions"),
    "place of a picture": (["action=ask", "store={where}", "image=00003.png", "question='a <image>'"], "the place of"),
    "top": (["action=search", "store={where}", "query=a", "top=0"], "a whole number from 1"),
    "sheet in a folder": (["action=search", "store={where}", "query=a", "html={pictures}"], "a folder; the name"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(run, tmp_path, pictures, where, case: str) -> None:
    words, line = BAD[case]
    if "{tmp}/huge.png" in " ".join(words):
        Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    long = " ".join(["circle"] * 10_000)
    code, out, err = run(*(w.format(tmp=tmp_path, pictures=pictures, where=where, long=f"'{long}'") for w in words))
    lines = [text for text in err.splitlines() if text.startswith("vtc: ")]
    assert code == 2 and len(lines) == 1 and line in lines[0], (out, err)
    assert "Traceback" not in err and not (tmp_path / "s").exists()
