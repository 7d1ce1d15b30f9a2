"""Prompts by the chat template that a checkpoint brings with its processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from vtc.backbones.base import Backbone
from vtc.errors import UserError


class Chat(Backbone):
    """A backbone whose prompts a chat template makes: its processor's own, or, where that has none or doesn't show the
    images, the family's.

    Put in front of the family's class.

    Attributes:
        template: the family's; None: without any, prompts are those of the class behind this one.
        template_options: what the checkpoint's template is told beside the messages.
        turn_end: the text that ends a turn of the model in the template; None: the end-of-text token.
    """

    template: ClassVar[str | None] = None
    template_options: ClassVar[dict[str, Any]] = {}
    turn_end: ClassVar[str | None] = None

    def prompt(self, question: str, images: int = 1, videos: int = 0) -> str:
        """The chat template's text for one question: all images, then all videos, then the words."""
        if not self._templates:
            return super().prompt(question, images, videos)
        return self._rendered([_user_turn(question, images, videos)], True)

    def conversation(self, turns: Sequence[tuple[str, str]], images: int = 1) -> list[tuple[str, bool]]:
        """As the base's. The template says what stands around an answer; what the model is to say of it goes up to the
        end of its turn, which is written where the template has none.

        Raises:
            UserError: a template that changes earlier turns.
        """
        if not self._templates:
            return super().conversation(turns, images)
        pieces: list[tuple[str, bool]] = []
        messages: list[dict[str, Any]] = []
        done, end = "", self.turn_end or self.tokenizer.eos_token
        for turn, (question, answer) in enumerate(turns):
            messages.append(_user_turn(question, 0 if turn else images, 0))
            before = self._rendered(messages, True)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            whole = self._rendered(messages, False)
            if not before.startswith(done) or not whole.startswith(before):
                raise UserError(f"backbone={self.name}: its chat template changes earlier turns; it can't be trained")
            reply = whole[len(before) :]
            stop = reply.find(end, reply.find(answer) + len(answer))
            reply = reply[: stop + len(end)] if stop >= 0 else reply.rstrip() + end
            pieces += [(before[len(done) :], False), (reply, True)]
            done = before + reply if whole.startswith(before + reply) else whole
        return pieces

    @property
    def _templates(self) -> list[str]:
        """The templates that there are, the checkpoint's first."""
        return [t for t in (getattr(self.processor, "chat_template", None), self.template) if t is not None]

    def _rendered(self, messages: Sequence[dict[str, Any]], asks: bool) -> str:
        images = [part["type"] for message in messages for part in message["content"]].count("image")
        for template in self._templates:
            text = self.processor.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=asks,
                **self.template_options,
            )  # fmt: skip
            if text.count(self.image_text) >= images:
                break
        start = self.tokenizer.bos_token
        if start and text.startswith(start) and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]:
            return text.removeprefix(start)  # the tokenizer writes it itself
        return text


def chatml(image: str, video: str, system: str = "") -> str:
    """A template in ChatML, with these texts for an image and a video, and before the first turn."""
    return (
        system + "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% elif part['type'] == 'video' %}}{video}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _user_turn(question: str, images: int, videos: int) -> dict[str, Any]:
    media = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*media, {"type": "text", "text": question}]}
