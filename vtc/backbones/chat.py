"""Prompts by the chat template that a checkpoint brings with its processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtc.backbones.base import Backbone


class Chat(Backbone):
    """A backbone whose prompts its processor's chat template makes; where there is none, the family's own `prompt`.

    Put in front of the family's class, whose `prompt` it goes back to.
    """

    def prompt(self, question: str, images: int = 1, videos: int = 0) -> str:
        """The chat template's text for one question: all images, then all videos, then the words."""
        if not self._has_template:
            return self.plain_prompt(question, images, videos)
        return self._rendered([_asked(question, images, videos)], True)

    def plain_prompt(self, question: str, images: int, videos: int) -> str:
        """The prompt where the processor brings no chat template."""
        raise NotImplementedError

    def conversation(self, turns: Sequence[tuple[str, str]], images: int = 1) -> list[tuple[str, bool]]:
        """As the base's. The template says what stands around an answer; what the model is to say of it ends with the
        end-of-text token.
        """
        if not self._has_template:
            return super().conversation(turns, images)
        pieces: list[tuple[str, bool]] = []
        messages: list[dict[str, Any]] = []
        done, end = "", self.tokenizer.eos_token
        for turn, (question, answer) in enumerate(turns):
            messages.append(_asked(question, 0 if turn else images, 0))
            asked = self._rendered(messages, True)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            whole = self._rendered(messages, False)
            said = whole[len(asked) :]
            stop = said.find(end, said.find(answer) + len(answer))  # some templates have no end of their own
            said = said[: stop + len(end)] if stop >= 0 else said.rstrip() + end
            pieces += [(asked[len(done) :], False), (said, True)]
            done = asked + said if whole.startswith(asked + said) else whole
        return pieces

    @property
    def _has_template(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def _rendered(self, messages: Sequence[dict[str, Any]], asks: bool) -> str:
        text = self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
        start = self.tokenizer.bos_token
        if start and text.startswith(start) and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]:
            return text.removeprefix(start)  # the tokenizer writes it itself
        return text


def _asked(question: str, images: int, videos: int) -> dict[str, Any]:
    media = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*media, {"type": "text", "text": question}]}
