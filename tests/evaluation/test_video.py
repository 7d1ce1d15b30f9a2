"""Questions about videos: which frames are read, how they reach the backbone, and what becomes of broken files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from fabricate_upstream import WORDS, write_video
from specs import spec_of

from vtc import shipped
from vtc.data import video
from vtc.errors import UserError
from vtc.evaluation import harness


def brightness(frames) -> list[int]:
    """Which frame each is: `write_video` makes frame i as bright as 10 i."""
    return [round(float(np.asarray(f).mean()) / 10) for f in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize("count, wanted", [(8, [0, 3, 6, 9, 12, 15, 18, 22]), (2, [0, 22]), (1, [0])])
def test_frames_are_at_equal_distances_from_first_to_last(suffix, count, wanted, tmp_path):
    write_video(tmp_path / f"clip{suffix}", 23)
    frames = video.frames(tmp_path / f"clip{suffix}", count)
    assert brightness(frames) == wanted == np.linspace(0, 22, count).astype(int).tolist()
    assert {f.size for f in frames} == {(32, 32)} and {f.mode for f in frames} == {"RGB"}


def test_a_short_video_shows_some_frames_twice(tmp_path):
    write_video(tmp_path / "clip.mp4", 3)
    assert brightness(video.frames(tmp_path / "clip.mp4", 5)) == [0, 0, 1, 1, 2]


def test_a_header_that_does_not_count_its_frames(tmp_path):
    write_video(tmp_path / "clip.mkv", 12)  # Matroska's doesn't
    frames = video.frames(tmp_path / "clip.mkv", 4)
    assert brightness(frames) == [0, 3, 7, 11]
    assert [round(f.info["seconds"], 1) for f in frames] == [0.0, 0.6, 1.4, 2.2]  # five a second


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_frames_are_upright(turn, tmp_path):
    """A phone's clip: the frames lie as they were filmed, and the track's matrix says by how much they are turned."""
    import av

    filmed = np.zeros((32, 64, 3), dtype=np.uint8)
    filmed[:, :32] = 250  # wide, bright on the left
    file = tmp_path / "clip.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(filmed, format="rgb24")))
        container.mux(stream.encode())
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]  # clockwise, as players turn it
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    content = bytearray(file.read_bytes())
    start = content.index(b"tkhd") + 44  # behind times, numbers and layers of the track's header, ISO 14496-12
    assert content[start : start + 36] == struct.pack(">9i", *(v << 16 for v in (1, 0, 0, 0, 1, 0, 0, 0, 1 << 14)))
    content[start : start + 36] = struct.pack(">9i", *matrix)
    file.write_bytes(content)
    frames = video.frames(file, 2)
    right = np.rot90(filmed, -turn // 90)
    for frame in frames:
        assert frame.size == right.shape[1::-1] and "seconds" in frame.info
        assert np.abs(np.asarray(frame).astype(int) - right).mean() < 12
    assert video.pixels(file, 2) == 2 * 64 * 32


def test_a_turn_by_parts_of_a_degree_is_the_nearest_quarter():
    from types import SimpleNamespace

    from PIL import Image

    picture = Image.new("RGB", (4, 2))
    picture.putpixel((3, 0), (255, 0, 0))  # top right
    for rotation, corner in ((-90, (1, 3)), (-89.6, (1, 3)), (90, (0, 0)), (180, (0, 1)), (0, (3, 0))):
        frame = video.upright(SimpleNamespace(to_image=picture.copy, rotation=rotation, time=None))
        assert frame.getpixel(corner) == (255, 0, 0), rotation


def test_what_is_no_video_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such video: .*gone.mp4"):
        video.frames(tmp_path / "gone.mp4", 8)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="text.mp4 can't be decoded"):
        video.frames(tmp_path / "text.mp4", 8)
    write_video(tmp_path / "clip.avi", 40)
    whole = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half.avi (breaks off: \d+ of 40 frames|can't be decoded)"):
        video.frames(tmp_path / "half.avi", 8)


@pytest.fixture
def msvd(tmp_path) -> Path:
    """Four questions; the second's video is broken, the third's is missing."""
    folder = tmp_path / "MSVD_Zero_Shot_QA"
    (folder / "videos").mkdir(parents=True)
    asked = [{"video_name": f"v{i}", "question": f"what is in {i}", "question_id": i} for i in range(4)]
    (folder / "test_q.json").write_text(json.dumps(asked))
    answers = [{"answer": WORDS[i], "question_id": i} for i in (2, 0, 3, 1)]  # in an order of their own
    (folder / "test_a.json").write_text(json.dumps(answers))
    for i in (0, 3):
        write_video(folder / "videos" / f"v{i}.avi", 10)
    (folder / "videos" / "v1.avi").write_bytes(b"RIFF broken")
    return tmp_path


@pytest.fixture
def videos_only(backbone, monkeypatch):
    """A pocket backbone that takes the frames of a video as that many images."""
    seen = []
    plain = type(backbone).inputs

    def inputs(self, questions, images, videos=None):
        seen.append((list(questions), videos))
        flat = [[frame for v in row for frame in v] for row in videos] if videos else images
        return plain(self, questions, flat)

    monkeypatch.setattr(type(backbone), "video_text", "<video>")
    monkeypatch.setattr(type(backbone), "inputs", inputs)
    return seen


def test_frames_reach_the_backbone_and_broken_videos_are_set_aside(backbone, videos_only, msvd):
    from vtc.evaluation.model import VtcModel
    from vtc.methods import build

    manager = harness.task_manager(["msvd_qa"])
    model = VtcModel(backbone, build("random", 16, backbone.shape).eval(), batch_size=4, frames=3)
    run = harness.run_task(model, spec_of("msvd_qa", data=str(msvd)), manager)
    assert [b["id"] for b in run.bad] == ["1", "2"] and run.n == 2
    assert "v1.avi can't be decoded" in run.bad[0]["error"] and "no such video" in run.bad[1]["error"]
    ((questions, videos),) = videos_only
    assert questions[0] == "What is in 0?\nAnswer the question using a single word or phrase."
    assert [[brightness(v) for v in row] for row in videos] == [[[0, 4, 9]], [[0, 4, 9]]]
    scored = [s for s in run.samples if s.error is None]
    assert [s.target for s in scored] == [WORDS[0], WORDS[3]]
    assert {(s.tokens_in, s.tokens_kept) for s in scored} == {(144, 16)}, "of a frame"


def test_a_backbone_without_videos_is_refused_in_one_line(backbone, msvd):
    from vtc.evaluation.model import VtcModel
    from vtc.methods import build

    model = VtcModel(backbone, build("none", None, backbone.shape))
    with pytest.raises(UserError, match="benchmark.tasks=msvd_qa: has video; backbone=pocket reads images"):
        harness.run_task(model, spec_of("msvd_qa", data=str(msvd)), harness.task_manager(["msvd_qa"]))


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("test_q.json", "{", "test_q.json can't be read"),
        ("test_a.json", "{}", "test_a.json: a list of objects is needed"),
        ("test_a.json", '[{"answer": "a", "question_id": 9}]', "entry 0 has no question or no answer"),
        ("test_q.json", "[" * 100_000, "test_q.json can't be read"),
        (
            "test_q.json",
            '[{"question": "?", "question_id": 1}, {"question": "!", "question_id": "1"}]',
            "entry 1: question_id=1",
        ),
    ],
)
def test_files_that_are_no_questions(file, content, said, oracle, msvd):
    (msvd / "MSVD_Zero_Shot_QA" / file).write_text(content)
    with pytest.raises(UserError, match=f"benchmark.tasks=msvd_qa: .*{said}"):
        harness.run_task(oracle(), spec_of("msvd_qa", data=str(msvd)), harness.task_manager(["msvd_qa"]))


@pytest.mark.parametrize(
    "said, answer, contains, exact",
    [
        ("A blue kite.", "blue kite", 1, 1),
        ("It is a Blue  kite in the sky", "blue kite", 1, 0),
        ("blue or red kite", "blue kite", 0, 0),
        ("two", "2", 1, 1),
        ("kites", "kite", 0, 0),
        ("", "kite", 0, 0),
    ],
)
def test_an_answer_is_in_what_was_said(said, answer, contains, exact, manager):
    import importlib.util

    spec = importlib.util.spec_from_file_location("suite_tasks", shipped.path("benchmarks/tasks/suite_tasks.py"))
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    found = tasks.contains_answer({"answer": answer}, [said])
    assert found == {"contains_answer": float(contains), "exact_match": float(exact)}


def test_backbones_that_read_videos_say_how_many_frames(manager):
    """`backbone.frames=16` is a key of theirs, and of no other's; what was made for videos reads more of them."""
    from vtc.configuration import parse
    from vtc.configuration.choices import configured

    for name in configured("backbone"):
        job = parse([f"backbone={name}"])
        reads = getattr(job.family, "video_text", None) is not None
        frames = 32 if name == "llava_video_7b" else 8
        assert job.backbone.frames == (frames if reads else None), name
