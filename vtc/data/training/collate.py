"""Samples → tokens, pixels and labels, in the words of the backbone's family."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.backbones.base import Backbone
from vtc.data.training.batch import IGNORE, Batch
from vtc.data.training.formats import IMAGE, BadSample
from vtc.data.training.index import TrainingSample, open_image
from vtc.errors import UserError
from vtc.interface import SUMMARY_PROMPT


@dataclass
class Row:
    """One sample, encoded.

    Attributes:
        inputs: the processor's: [1, L] what runs along the sequence, anything else along the images.
        labels: [L].
        caption: for the contrastive loss; None without.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    caption: str | None


class Encoder:
    """What a family's processor, prompt and tokenizer make of samples.

    Args:
        backbone: asked for its processor, prompts and dtype; its model is not kept.
        plain: LLaVA's first stage (its `plain` template): the image, then the answer and a line break, and no question.
        max_length: tokens of a row and of a caption, from which on answers are cut; None: no limit.

    Raises:
        UserError: a backbone without a processor, or whose tokenizer can't say where its tokens are in the text.
    """

    def __init__(self, backbone: Backbone, plain: bool = False, max_length: int | None = None) -> None:
        tokenizer = backbone.tokenizer
        if tokenizer is None or not tokenizer.is_fast or tokenizer.eos_token is None:
            raise UserError(
                f"backbone={backbone.name}: training data needs a processor with a fast tokenizer and an eos"
            )
        self.dtype, self.placeholders = backbone.dtype, torch.tensor(backbone.placeholders)
        self.backbone = copy.copy(backbone)
        self.backbone.model = None  # worker processes get this object
        self.plain, self.max_length = plain, max_length
        pad = tokenizer.pad_token_id
        self.pad = tokenizer.eos_token_id if pad is None else pad

    def row(self, kind: str, sample: TrainingSample) -> Row:
        """A sample as tokens. Visual tokens are never cut.

        Raises:
            BadSample: an image can't be read, as many images are not named, or no answer is left.
        """
        pieces = self._pieces(kind, sample)
        images = [self.backbone.sized(open_image(image)) for image in sample.images]
        text = "".join(piece for piece, _ in pieces)
        encoded = dict(self.backbone.row(text, images, return_offsets_mapping=True))
        offsets = encoded.pop("offset_mapping")[0]
        ids = encoded["input_ids"]
        visual = torch.isin(ids[0], self.placeholders)
        answer = torch.zeros_like(visual)
        if kind != "caption" and self.plain:
            answer[int(visual.nonzero()[-1]) + 1 :] = True
        elif kind != "caption":
            # The text ends with the eos, and images stand before all answers: counted from the end, nothing moved when
            # the processor put visual tokens in their place.
            at = int(offsets[:, 1].max()) - len(text)
            for piece, is_answer in pieces:
                stop = at + len(piece)
                if is_answer:
                    answer |= (offsets[:, 0] >= at) & (offsets[:, 0] < stop) & (offsets[:, 1] > offsets[:, 0])
                at = stop
        labels = torch.where(answer, ids[0], IGNORE)
        if self.max_length and len(labels) > self.max_length:
            if visual[self.max_length :].any():
                raise BadSample(f"its visual tokens don't fit into max_length={self.max_length}")
            length, labels = len(labels), labels[: self.max_length]
            encoded = {
                name: value[:, : self.max_length] if value.shape == (1, length) else value
                for name, value in encoded.items()
            }
        if kind != "caption" and not (labels[1:] != IGNORE).any():
            raise BadSample("no token of an answer" + (" before max_length" if answer.any() else ""))
        return Row(encoded, labels, None if kind == "conversation" else sample.caption)

    def _pieces(self, kind: str, sample: TrainingSample) -> list[tuple[str, bool]]:
        count = len(sample.images)
        if kind == "caption":
            return [(self.backbone.prompt(SUMMARY_PROMPT, count), False)]
        mentions = sum(question.count(IMAGE) for question, _ in sample.turns)
        if mentions not in (0, count):
            raise BadSample(f"{mentions} times {IMAGE}, and {count} images")
        if any(IMAGE in answer for _, answer in sample.turns):
            raise BadSample(f"{IMAGE} in an answer")
        turns = [(question.replace(IMAGE, "").strip(), answer.strip()) for question, answer in sample.turns]
        if not self.plain:
            return self.backbone.conversation(turns, count)
        if len(turns) > 1 or not count:
            raise BadSample("plain=true takes one answer about an image")
        return [(self.backbone.image_text * count, False), (f"{turns[0][1]}\n", True)]

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows of one kind as a batch: right-padded, captions left-padded; images in the order of the rows."""
        length = max(len(row.labels) for row in rows)
        inputs: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for row in rows for name in row.inputs):
            values = [(row.inputs[name], len(row.labels)) for row in rows if name in row.inputs]
            along = all(value.shape == (1, size) for value, size in values)
            fill = self.pad if name == "input_ids" else 0
            padded = [
                torch.nn.functional.pad(value, (0, length - size), value=fill) if along else value
                for value, size in values
            ]
            joined = torch.cat(padded)
            inputs[name] = joined.to(self.dtype) if joined.is_floating_point() else joined
        labels = torch.stack(
            [torch.nn.functional.pad(row.labels, (0, length - len(row.labels)), value=IGNORE) for row in rows]
        )
        captions = [row.caption for row in rows if row.caption is not None]
        return Batch(inputs, labels, captions=self._captions(captions) if captions else None)

    def _captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As `vtc.engine.embed.embed_texts` reads them."""
        batch = self.backbone.tokenizer(
            [caption.strip() for caption in captions],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            truncation=self.max_length is not None,
            max_length=self.max_length,
        )
        return batch["input_ids"], batch["attention_mask"]
