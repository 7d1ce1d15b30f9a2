"""From a request of lmms-eval to what the model is shown, in whichever thread reads it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtc.data.pictures import whole
from vtc.errors import UserError
from vtc.evaluation import controls
from vtc.evaluation.ahead import Preprocessor, Ready, TooLarge, share_of_memory
from vtc.evaluation.prompts import Documents, Prompt, Room, decoded

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

    from vtc.backbones.base import Backbone


class Reader:
    """Reads requests: their text, images and frames of videos.

    Args:
        frames: of a video.
        picture: which picture a question is asked about, see `vtc.evaluation.controls`.
    """

    def __init__(self, backbone: Backbone, frames: int, picture: str = controls.OWN) -> None:
        self.backbone, self.frames, self.picture = backbone, frames, picture
        self._documents: tuple[Any, Documents] | None = None  # of the task that is being answered
        self._turn = threading.Lock()  # at what the threads can't share
        self._preprocessor = Preprocessor(backbone)

    def ahead(self, batch: Sequence[int], requests: Sequence[Instance], read: Callable[..., Prompt]) -> Ready:
        """A batch, ready to be answered.

        Args:
            read: as `read`, of an index, a request and room.

        Raises:
            TooLarge: it has too many pixels to be read ahead.
            UserError: as `read`.
        """
        ready, room = Ready(), share_of_memory()
        for i in batch:
            try:
                with whole():
                    ready.prompts.append(read(i, requests[i], room))
            except (UserError, TooLarge):
                raise
            except (Exception, SystemExit) as error:
                ready.failed[i] = describe(error)
        for prompt in ready.prompts:
            prompt.hashes  # noqa: B018  (taken here, while the device works)
        if ready.prompts and not ready.prompts[0].options.get("vtc_embed"):
            ready.inputs = self._preprocessor.inputs(ready.prompts)
        return ready

    def read(self, index: int, request: Instance, tasks: Mapping[str, Any], room: Room) -> Prompt:
        """Decode one request.

        Args:
            index: of the request among those that are answered together.
            tasks: name → splits of its data.
            room: called with the number of pixels before they are decoded.

        Raises:
            UserError: it has what the backbone can't read.
        """
        from lmms_eval.protocol import ChatMessages

        _, doc_to_messages, options, doc_id, task, split = request.args
        rows = tasks[task][split]
        with self._turn:
            if self._documents is None or self._documents[0] is not rows:
                self._documents = rows, Documents(rows)
            documents = self._documents[1]
        document = documents.read(doc_id, room)
        with self._turn:  # tasks weren't written for threads
            messages = ChatMessages(messages=doc_to_messages(document))
        pictures, videos, audios = messages.extract_media()
        if audios:
            raise UserError(f"benchmark.tasks={task}: has audio; backbone={self.backbone.name} hears none")
        if videos and getattr(self.backbone, "video_text", None) is None:
            raise UserError(f"benchmark.tasks={task}: has video; backbone={self.backbone.name} reads images")
        text = "".join(c.text for m in messages.messages for c in m.content if c.type == "text")
        images, clips = decoded(pictures, videos, self.frames, room)

        def pictures_of(number: int) -> controls.Pictures:
            another = documents.read(number, room)
            with self._turn:
                media = ChatMessages(messages=doc_to_messages(another)).extract_media()
            return decoded(media[0], media[1], self.frames, room)

        return controls.shown(self.picture, Prompt(index, text, images, options, clips), doc_id, len(rows), pictures_of)


def describe(error: BaseException) -> str:
    """In one line, the same whichever process says it: without where in its memory an object is."""
    words = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"[:300]
