"""A compressed model as lmms-eval sees it. The only module that imports lmms-eval at its top; others import it late."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.protocol import ChatMessages
from PIL import Image

from vtc.data.pictures import IN_FLIGHT, hash_picture, whole
from vtc.errors import MethodFailure, SampleError, UserError
from vtc.evaluation import controls
from vtc.evaluation.crew import Crew
from vtc.evaluation.prompts import Documents, Prompt, Room, decoded

log = logging.getLogger(__name__)
MAX_NEW_TOKENS = 1024  # for tasks that set none, as lmms-eval's own LLaVA does
TRACED = 4096  # visual tokens of a sample, all images together, up to which it is kept what became of each
FRAMES = 8  # of a video, as Video-LLaVA reads it
Answers = dict[int, GenerationResult | str]  # by the request's index; a text says why there is none


@dataclass
class BadSample:
    """A sample that could not be answered: it is named and counted, and not scored."""

    task: str
    id: str
    error: str


@dataclass
class Kept:
    """Visual tokens (and registers) of one sample, per image: at first, at the end, and in each decoder layer."""

    tokens_in: float
    tokens_out: float
    layers: list[float] = field(default_factory=list)
    images: list[dict[str, Any]] | None = None  # see `ScoredSample.images`


@dataclass(frozen=True)
class Shown:
    """What a sample showed the model: the text, and a hash of each picture's pixels."""

    question: str
    pictures: list[str]


class VtcModel(lmms):
    """The adapter around a built backbone and method.

    Answers are greedy, so the same command gives the same answers; batches are left-padded and group requests that
    share their generation settings. A request with `vtc_embed: true` is answered by the embeddings of its image and of
    each line of its text, as JSON `{"image": [D numbers], "texts": [[D numbers], …]}`.

    Args:
        backbone, method: as `Job.load` gives them.
        batch_size: requests at a time; a batch that fails is split until the one that fails is found.
        description: what decides the answers (checkpoint, dtype, …), for `__repr__`, lmms-eval's response-cache key.
        frames: how many of a video the backbone is shown.
        on_start: called with the number of requests when a task begins.
        on_sample: called with the number of requests done after each batch; of several processes each counts for all.
        crew: the processes that share the batches.
        picture: which picture a question is asked about, see `vtc.evaluation.controls`.
    """

    is_simple = False

    def __init__(
        self,
        backbone: Any,
        method: Any,
        batch_size: int = 32,
        description: str = "",
        frames: int = FRAMES,
        on_start: Callable[[int], None] | None = None,
        on_sample: Callable[[int], None] | None = None,
        crew: Crew | None = None,
        picture: str = controls.OWN,
    ) -> None:
        super().__init__()
        self.picture = picture
        self.backbone, self.method = backbone, method
        self.batch_size, self.description, self.frames = max(1, int(batch_size)), description, int(frames)
        self.on_start, self.on_sample = on_start, on_sample
        self.crew = crew or Crew()
        self.bad: list[BadSample] = []
        self.kept: dict[tuple[str, int], Kept] = {}
        self.shown: dict[tuple[str, int], Shown] = {}
        self.together = 1  # questions in a row that their task scores as one
        self._warned: set[str] = set()
        self._documents: tuple[Any, Documents] | None = None  # of the task that is being answered

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def __repr__(self) -> str:
        tokens = getattr(self.method, "tokens", None)
        parts = [f"backbone={self.backbone.name}", f"method={getattr(self.method, 'name', type(self.method).__name__)}"]
        parts += [f"tokens={tokens}", f"dtype={self.backbone.dtype}", self.description]
        return f"vtc({', '.join(p for p in parts if p)})"

    def clean(self) -> None:
        """Nothing: the base class would delete the model, which goes on to the next task."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise UserError(
            f"benchmark.tasks={self._names(requests)}: scored by log-likelihood, which lmms-eval 0.7.3 can't do; "
            "allowed: tasks of output_type generate_until"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError(
            f"benchmark.tasks={self._names(requests)}: asks over several rounds; allowed: generate_until tasks"
        )

    @staticmethod
    def _names(requests: list[Instance]) -> str:
        return ",".join(dict.fromkeys(str(r.task_name) for r in requests))

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers to `requests`, in their order, exactly as many.

        A sample that can't be answered is added to `bad` and taken out of its task, so that it isn't scored.
        """
        answers: Answers = {}
        groups: dict[str, list[int]] = {}
        if self.on_start:
            self.on_start(sum(not _padding(r) for r in requests))
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(i)
        batches: list[list[int]] = []
        for members in groups.values():
            # Questions of about the same length share a batch: less padding. The sort is stable, so it is repeatable.
            members = sorted(members, key=lambda i: len(str(requests[i].args[0])))
            batches += [members[start : start + self.batch_size] for start in range(0, len(members), self.batch_size)]
        for number, batch in enumerate(batches):
            if self.crew.mine(number):
                self._answer_batch(batch, requests, answers)
            if self.on_sample:
                self.on_sample(sum(not _padding(requests[i]) for i in batch))
        for share, kept, shown in self.crew.collect((answers, self.kept, self.shown)):
            answers |= share
            self.kept |= kept
            self.shown |= shown
        order = [(str(requests[i].task_name), int(requests[i].doc_id)) for batch in batches for i in batch]
        # A mean depends on the order, in its last digit.
        self.kept = {key: self.kept[key] for key in order if key in self.kept}
        broken = {self._scored_with(requests[i]) for i, answer in answers.items() if isinstance(answer, str)}
        for i, request in enumerate(requests):
            if self._scored_with(request) in broken:
                reason = answers[i] if isinstance(answers[i], str) else "scored as one with a sample that failed"
                answers[i] = GenerationResult("", TokenCounts(input_tokens=0, output_tokens=0))
                if not _padding(request):
                    self._set_aside(request, str(reason))
        return [answers[i] for i in range(len(requests))]  # type: ignore[misc]

    def _scored_with(self, request: Instance) -> tuple[str, int]:
        """The same for all requests that are scored as one."""
        return str(request.task_name), int(request.doc_id) // self.together

    def _answer_batch(self, batch: Sequence[int], requests: Sequence[Instance], answers: Answers) -> None:
        """Decode a batch and answer it: in parts where its pictures have more than `IN_FLIGHT` pixels."""
        part: list[Prompt] = []

        def room(pixels: int) -> None:
            if pixels > IN_FLIGHT:
                raise ValueError(f"its pictures have {pixels / 1e6:.0f} million pixels; allowed: {IN_FLIGHT // 10**6}")
            if sum(prompt.pixels for prompt in part) + pixels > IN_FLIGHT:
                self._answer(part, requests, answers)
                part.clear()

        for i in batch:
            try:
                with whole():  # for tasks that open pictures themselves
                    part.append(self._read(i, requests[i], room))
            except UserError:
                raise
            except (Exception, SystemExit) as error:  # some of lmms-eval's tasks exit where a video is missing
                answers[i] = _describe(error)
        self._answer(part, requests, answers)

    def _read(self, index: int, request: Instance, room: Room) -> Prompt:
        """Decode one request: its text, images and frames of videos.

        Args:
            room: called with the number of pixels before they are decoded.

        Raises:
            UserError: it has what the backbone can't read.
        """
        _, doc_to_messages, options, doc_id, task, split = request.args
        rows = self.task_dict[task][split]
        if self._documents is None or self._documents[0] is not rows:
            self._documents = rows, Documents(rows)
        messages = ChatMessages(messages=doc_to_messages(self._documents[1].read(doc_id, room)))
        pictures, videos, audios = messages.extract_media()
        if audios:
            raise UserError(f"benchmark.tasks={task}: has audio; backbone={self.backbone.name} hears none")
        if videos and getattr(self.backbone, "video_text", None) is None:
            raise UserError(f"benchmark.tasks={task}: has video; backbone={self.backbone.name} reads images")
        text = "".join(c.text for m in messages.messages for c in m.content if c.type == "text")
        images, clips = decoded(pictures, videos, self.frames, room)
        prompt = Prompt(index, text, images, options, clips)
        if self.picture == controls.GREY:
            return controls.without_content(prompt)
        if self.picture == controls.OTHER and prompt.shown:

            def shown_at(number: int) -> Prompt:
                others = ChatMessages(messages=doc_to_messages(self._documents[1].read(number, room)))  # type: ignore[index]
                pictures, videos, _ = others.extract_media()
                images, clips = decoded(pictures, videos, self.frames, room)
                return Prompt(index, text, images, options, clips)

            return controls.of_another(prompt, doc_id, len(rows), shown_at)
        return prompt

    def _answer(self, questions: Sequence[Prompt], requests: Sequence[Instance], answers: Answers) -> None:
        """Answer a batch; where that fails, its halves, down to the questions that can't be answered alone."""
        if not questions:
            return
        try:
            run = self._embed if questions[0].options.get("vtc_embed") else self._generate
            for question, (answer, kept) in zip(questions, run(questions), strict=True):
                answers[question.index] = answer
                request = requests[question.index]
                key = str(request.task_name), int(request.doc_id)
                self.shown[key] = Shown(question.text, [hash_picture(picture) for picture in question.images])
                if kept is not None:
                    self.kept[key] = kept
        except Exception as error:
            if isinstance(error, (UserError, MethodFailure)) and not isinstance(error, SampleError):
                raise  # no sample is to blame
            if len(questions) == 1:
                log.debug("a sample failed", exc_info=True)
                answers[questions[0].index] = _describe(error)
                return
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # where the reason was memory, the halves need what the whole had taken
            middle = len(questions) // 2
            self._answer(questions[:middle], requests, answers)
            self._answer(questions[middle:], requests, answers)

    def _generate(self, questions: Sequence[Prompt]) -> list[tuple[GenerationResult, Kept | None]]:
        from vtc.engine import compressing

        options = questions[0].options
        if options.get("do_sample") and float(options.get("temperature") or 0) > 0 and "sampling" not in self._warned:
            self._warned.add("sampling")
            log.warning("a task asks for sampling; vtc answers greedily, so that runs can be repeated and compared")
        videos = [q.videos for q in questions] if any(q.videos for q in questions) else None
        inputs = self.backbone.inputs([q.text for q in questions], [q.images for q in questions], videos)
        tokenizer = self.backbone.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        with torch.inference_mode(), compressing(self.backbone, self.method) as engine:
            ids = self.backbone.model.generate(
                **inputs,
                max_new_tokens=int(options.get("max_new_tokens") or MAX_NEW_TOKENS),
                num_beams=int(options.get("num_beams") or 1),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
            )
            report = engine.report
        visual = self.backbone.visual(inputs["input_ids"]).sum(1).tolist()
        kept = kept_of(report, visual, [len(q.shown) for q in questions], self.backbone.shape.depth)
        for row, (k, question) in enumerate(zip(kept, questions, strict=True)):
            if k is not None and report is not None:
                k.images = images_of(self.backbone, report, row, question.shown)
        new = ids[:, inputs["input_ids"].shape[1] :]
        lengths = inputs["attention_mask"].sum(1).tolist()
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        out = []
        for row, (text, k) in enumerate(zip(texts, kept, strict=True)):
            # What the decoder reads in the end: the prompt with its visual tokens replaced by those that are left.
            dropped = (k.tokens_in - k.tokens_out) * len(questions[row].shown) if k else 0
            counts = TokenCounts(int(lengths[row]) - round(dropped), int((new[row] != pad).sum()))
            out.append((GenerationResult(_until(text, options.get("until")), counts), k))
        return out

    def _embed(self, questions: Sequence[Prompt]) -> list[tuple[GenerationResult, Kept | None]]:
        """Embeddings of each question's one image and of every line of its text."""
        from vtc.engine import embed_images, embed_texts

        for q in questions:
            if len(q.images) != 1:
                raise ValueError(f"an embedding request needs one image, this one has {len(q.images)}")
        with torch.inference_mode():
            images = embed_images(self.backbone, self.method, [q.images[0] for q in questions]).float().cpu().tolist()
            lines = [line for q in questions for line in q.text.split("\n")]
            vectors: list[list[float]] = []
            for start in range(0, len(lines), self.batch_size):
                part = lines[start : start + self.batch_size]
                vectors += embed_texts(self.backbone, self.method, part).float().cpu().tolist()
        out: list[tuple[GenerationResult, Kept | None]] = []
        following = iter(vectors)
        for question, image in zip(questions, images, strict=True):
            texts = [_short(next(following)) for _ in question.text.split("\n")]
            answer = json.dumps({"image": _short(image), "texts": texts})
            out.append((GenerationResult(answer, TokenCounts(input_tokens=None, output_tokens=0)), None))
        return out

    def _set_aside(self, request: Instance, error: str) -> None:
        """Record a bad sample and take its request out of its task: lmms-eval scores documents that have requests."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        owner: Any = getattr(doc_to_messages, "__self__", None)
        instances = getattr(owner, "_instances", None)
        if isinstance(instances, list):
            owner._instances = [i for i in instances if i is not request]
        else:
            log.warning("%s: sample %s could not be taken out and is scored as an empty answer", task, doc_id)
        name = str(doc_id)
        try:
            rows = getattr(owner, "dataset_no_image", self.task_dict[task])[split]
            if "id" in rows.column_names:
                name = str(rows[int(doc_id)]["id"])
        except Exception:  # only a nicer name
            log.debug("no id for sample %s of %s", doc_id, task, exc_info=True)
        self.bad.append(BadSample(str(task), name, error))
        log.info("%s: sample %s set aside: %s", task, name, error)


class LocalTask(ConfigurableMessagesTask):
    """A task with a `download` of its own, which a YAML names with `class:`; that key is none of lmms-eval's."""

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
        model_name: str | None = None,
    ) -> None:
        config = {k: v for k, v in (config or {}).items() if k != "class"}
        super().__init__(data_dir, cache_dir, download_mode, config, model_name)


def kept_of(report: Any, visual: Sequence[int], images: Sequence[int], depth: int) -> list[Kept | None]:
    """What became of each row's visual tokens; None for rows without images.

    Args:
        report: the engine's; None where the method does nothing, so that every layer sees everything.
        visual: visual tokens of each row as the user gave it.
        images: images of each row.
        depth: decoder layers.
    """
    out: list[Kept | None] = []
    for row, (tokens, count) in enumerate(zip(visual, images, strict=True)):
        at_first, at_last, layers = tokens, tokens, [tokens] * depth
        if report is not None:
            count = report.images[row]  # the frames of a video are images
            at_first, at_last, layers = report.tokens_in[row], report.tokens_out[row], [n[row] for n in report.layers]
        out.append(Kept(at_first / count, at_last / count, [n / count for n in layers]) if count else None)
    return out


def images_of(backbone: Any, report: Any, row: int, pictures: Sequence[Image.Image]) -> list[dict[str, Any]] | None:
    """What became of each visual token of a row's images; see `ScoredSample.images`."""
    holders = report.holders[row]
    if sum(map(len, holders)) > TRACED:
        return None
    out = []
    for at, (held, made, grid) in enumerate(zip(holders, report.made[row], report.grids[row], strict=True)):
        # Frames that a tower reads in pairs are fewer than the pictures.
        size = (pictures[at].height, pictures[at].width) if len(pictures) == len(holders) else None
        regions = [] if size is None else backbone.regions(size, len(held), grid)
        boxes = [{**asdict(region), "box": list(region.box)} for region in regions]
        out.append({"holders": held, "made": made, "regions": boxes})
    return out


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    """`text` up to the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        if stop:
            text = text.split(stop)[0]
    return text.strip()


def _short(vector: Sequence[float]) -> list[float]:
    """Eight significant digits: float32 needs no more, and JSON half the room."""
    return [float(f"{x:.8g}") for x in vector]


def _describe(error: BaseException) -> str:
    """In one line, the same whichever process says it: without where in its memory an object is."""
    words = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"[:300]


def _padding(request: Instance) -> bool:
    """A copy that lmms-eval adds so that all processes have as many requests."""
    return bool((request.metadata or {}).get("__padding_only__"))
