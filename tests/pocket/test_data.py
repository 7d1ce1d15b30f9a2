"""Packed batches and test sets."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vtc.data.training.batch import IGNORE
from vtc.errors import UserError
from vtc.pocket import splits
from vtc.pocket.data import attention, draw_questions, draw_scenes, image_prefix, pack, render
from vtc.pocket.model import build_model, build_processor, build_tokenizer, encode
from vtc.pocket.questions import KINDS
from vtc.pocket.scenes import draw_scene, scene_rng
from vtc.pocket.source import PocketSource
from vtc.settings import DataSettings

WEIGHTS = {kind: 1.0 for kind in KINDS if kind != "captions"}


@pytest.fixture(scope="module")
def batch():
    rng = scene_rng(0, "test", 0)
    scenes = draw_scenes(rng, 3, "train")
    questions = [draw_questions(rng, s, n, WEIGHTS, caption=True) for s, n in zip(scenes, (4, 6, 5), strict=True)]
    return questions, pack(image_prefix(), questions, render(scenes))


def test_fast_encoding_is_the_tokenizers(batch):
    tokenizer = build_tokenizer()
    texts = {q.text for row in batch[0] for q in row} | {q.answer for row in batch[0] for q in row}
    texts |= {"USER: <image>\nwhat color is the 2? A cyan B purple C blue D red ASSISTANT:"}
    for text in sorted(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert list(encode(text)) == ids, text
        assert tokenizer.unk_token_id not in ids


def test_rendered_pixels_are_the_processors():
    (scene,) = draw_scenes(scene_rng(0, "pixels", 0), 1, "train")
    processed = build_processor().image_processor(scene.image(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processed, render([scene]), atol=1e-6, rtol=0)


def test_a_packed_question_gets_the_logits_it_gets_alone(batch):
    """The whole point of packing: nothing leaks from one block to another, and positions are those of a single one."""
    questions, packed = batch
    model = build_model(0).double().eval()
    embed = model.get_input_embeddings()(packed.input_ids)
    visual = model.model.get_image_features(packed.inputs["pixel_values"].double()).pooler_output
    with torch.no_grad():
        start = 2
        embed = torch.cat([embed[:, :start], torch.stack(list(visual)), embed[:, start + 144 :]], 1)
        together = model.model.language_model(
            inputs_embeds=embed, attention_mask=attention(packed), position_ids=packed.inputs["position_ids"]
        ).last_hidden_state
        for row, block in ((0, 1), (1, 4), (2, 6)):
            question = questions[row][block - 1]
            ids = torch.tensor([[*image_prefix(), *encode(question.text), *encode("ASSISTANT:" + question.answer)]])
            alone = model(
                input_ids=ids,
                pixel_values=packed.inputs["pixel_values"][row : row + 1].double(),
                output_hidden_states=True,
            ).hidden_states[-1]
            inside = (packed.blocks[row] == block) & (packed.attention_mask[row] == 1)
            mine = together[row][inside][:-1]  # without </s>
            torch.testing.assert_close(mine, alone[0, len(image_prefix()) :], atol=1e-9, rtol=1e-7)


def test_labels_are_the_answers_and_nothing_else(batch):
    questions, packed = batch
    for row, asked in enumerate(questions):
        for block, question in enumerate(asked, 1):
            labels = packed.labels[row][(packed.blocks[row] == block) & (packed.labels[row] != IGNORE)]
            assert labels.tolist() == [*encode(question.answer), *encode("</s>")]
    assert (packed.labels[packed.attention_mask == 0] == IGNORE).all()


def test_a_scene_that_has_no_answer_is_asked_another_kind():
    """Reading alone, of a scene without digits: not an endless search."""
    scene = draw_scene(np.random.default_rng(0), "train", things=3, digits=0)
    questions = draw_questions(np.random.default_rng(0), scene, 2, {"reading": 1.0}, caption=False)
    assert [question.text.split()[:2] for question in questions] == [["is", "there"]] * 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"weights": {}}, "leaves no kind"),
        ({"weights": {"reading": 0}}, "leaves no kind"),
        ({"weights": {"readin": 1}}, "did you mean 'reading'"),
        ({"weights": {"reading": 1}, "first_kinds": ["choice"], "first_share": 0.5}, "leaves no kind"),
        ({"weights": {"reading": 1}, "first_kinds": ["chois"]}, "training.data.first_kinds=chois"),
    ],
)
def test_weights_that_leave_no_question(data, says):
    with pytest.raises(UserError, match=says):
        PocketSource.check(DataSettings(**data))


def test_batches_are_a_function_of_seed_and_step():
    def make(step, seed=0):
        rng = scene_rng(seed, "stream", step)
        scenes = draw_scenes(rng, 2, "train")
        return scenes, [draw_questions(rng, s, 3, WEIGHTS, caption=False) for s in scenes]

    assert make(5) == make(5)
    assert make(5) != make(6) and make(5) != make(5, seed=1)


def test_test_sets_are_whole_and_far_from_their_floors(tmp_path):
    first = splits.rows("pocket_retrieval")
    assert [r["id"] for r in first] == [f"retrieval-{i}" for i in range(200)]
    assert len({r["answer"] for r in first}) == 200
    for group in range(50):
        captions = [r["answer"] for r in first if r["group"] == group]
        words = [sorted(w.strip(".,") for w in c.split()) for c in captions]
        assert len(set(captions)) == 4
        colors = [[w for w in ws if w not in ("a", "small", "large")] for ws in words]
        assert all(c == colors[0] for c in colors)
    reading = splits.rows("reading")
    assert len(reading) >= 200 and np.mean([r["bag"] for r in reading]) < 0.5
    image = Image.open(io.BytesIO(reading[0]["image"]["bytes"]))
    assert image.size == (96, 96)
    assert splits.rows("reading")[7] == reading[7]
    with pytest.raises(KeyError, match="pocket_existence"):
        splits.rows("nothing")
