"""A compressed model as lmms-eval sees it. The only module that imports lmms-eval at its top; others import it late."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableMessagesTask

from vtc.data.pictures import IN_FLIGHT, whole
from vtc.engine import Complexities
from vtc.errors import MethodFailure, SampleError, UserError
from vtc.evaluation import ahead, controls
from vtc.evaluation.ahead import Ready
from vtc.evaluation.batches import USUAL, is_out_of_memory, rows
from vtc.evaluation.crew import Crew
from vtc.evaluation.kept import Kept, Shown, images_of, kept_of
from vtc.evaluation.prompts import Prompt, Room
from vtc.evaluation.requests import Reader, describe
from vtc.evaluation.towers import TowerCache
from vtc.job import AUTO

log = logging.getLogger(__name__)
MAX_NEW_TOKENS = 1024  # for tasks that set none, as lmms-eval's own LLaVA does
TEMPLATE = 64  # tokens of a prompt around a question; a token is two letters at least, in most scripts
FRAMES = 8  # of a video, as Video-LLaVA reads it
Answers = dict[int, GenerationResult | str]  # by the request's index; a text says why there is none


@dataclass
class BadSample:
    """A sample that could not be answered: it is named and counted, and not scored."""

    task: str
    id: str
    error: str


class VtcModel(lmms):
    """The adapter around a built backbone and method.

    Answers are greedy, so the same command gives the same answers; batches are left-padded and group requests that
    share their generation settings. A request with `vtc_embed: true` is answered by the embeddings of its image and of
    each line of its text, as JSON `{"image": [D numbers], "texts": [[D numbers], …]}`.

    Args:
        backbone, method: as `Job.load` gives them.
        batch_size: requests at a time, or `auto` (`vtc.evaluation.batches`); a batch that fails is split until the one
            that fails is found.
        description: what decides the answers (checkpoint, dtype, …), for `__repr__`, lmms-eval's response-cache key.
        frames: how many of a video the backbone is shown.
        on_start: called with the number of requests when a task begins.
        on_sample: called with the number of requests done after each batch; of several processes each counts for all.
        crew: the processes that share the batches.
        picture: which picture a question is asked about, see `vtc.evaluation.controls`.
        workers: threads that read pictures ahead of the device; 0: none.
        towers: where the tower's outputs are kept; None: nowhere.
        spreads: the method's tokens are a mean over the pictures of a task (`budget=mean`).

    Attributes:
        rows: requests at a time, now: fewer than at first where memory had no room for them.
    """

    is_simple = False

    def __init__(
        self,
        backbone: Any,
        method: Any,
        batch_size: int | str = 32,
        description: str = "",
        frames: int = FRAMES,
        on_start: Callable[[int], None] | None = None,
        on_sample: Callable[[int], None] | None = None,
        crew: Crew | None = None,
        picture: str = controls.OWN,
        workers: int = 0,
        towers: TowerCache | None = None,
        spreads: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.method = backbone, method
        self.batch_size, self.description, self.frames = batch_size, description, int(frames)
        self.rows = USUAL if batch_size == AUTO else max(1, int(batch_size))
        self._most: int | None = None  # of `rows`, once memory has had no room for more
        self.workers, self.towers, self.spreads = workers, towers, spreads
        self._seen: Any = None  # `Complexities` of a task's pictures, while these are only looked at
        self.on_start, self.on_sample = on_start, on_sample
        self.crew = crew or Crew()
        self.bad: list[BadSample] = []
        self.kept: dict[tuple[str, int], Kept] = {}
        self.shown: dict[tuple[str, int], Shown] = {}
        self.together = 1  # questions in a row that their task scores as one
        self._warned: set[str] = set()
        self._reader = Reader(backbone, self.frames, picture)
        self._ready: Ready | None = None  # the batch that is being answered, where it was read ahead

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
            alike = [request.args[2], request.task_name if self.spreads else None]
            groups.setdefault(json.dumps(alike, sort_keys=True, default=str), []).append(i)
        self.rows = self.crew.agreed(self._rows(requests))
        batches: list[list[int]] = []
        for members in groups.values():
            # Questions of about the same length share a batch: less padding. The sort is stable, so it is repeatable.
            members = sorted(members, key=lambda i: len(str(requests[i].args[0])))
            batches += [members[start : start + self.rows] for start in range(0, len(members), self.rows)]
        own = [batch for number, batch in enumerate(batches) if self.crew.owns(number)]
        with self._scales(batches, requests) as scales, self._reading(own, requests) as reading:
            for number, batch in enumerate(batches):
                if self.crew.mine(number):
                    self.method.scale = scales.get(str(requests[batch[0]].task_name))
                    self._answer_batch(batch, next(reading)[1], requests, answers)
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

    def _reading(self, batches: Sequence[list[int]], requests: Sequence[Instance]) -> Any:
        ahead_of = partial(self._reader.ahead, requests=requests, read=self._read)
        return contextlib.closing(ahead.in_order(batches, ahead_of, self.workers))

    @contextlib.contextmanager
    def _scales(self, batches: Sequence[list[int]], requests: Sequence[Instance]) -> Iterator[dict[str, float | None]]:
        """Where the budget is a mean, each task's scale at which its pictures have it; each process looks at all."""
        seen: dict[str, Complexities] = {}
        try:
            with self._reading(batches if self.spreads else [], requests) as reading:
                for batch, ready in reading:
                    self._seen = seen.setdefault(str(requests[batch[0]].task_name), Complexities())
                    self._answer_batch(batch, ready, requests, {})
            self._seen = None
            yield {task: one.scale(self.method.tokens) for task, one in seen.items()}
        finally:
            self.method.scale = self._seen = None

    def _look(self, questions: Sequence[Prompt]) -> list[tuple[str, None]]:
        """How complex the pictures of some questions are, in place of answers; whatever is asked about them."""
        self._seen.add(self.backbone, self.method, self._inputs_of(questions))
        return [("", None)] * len(questions)

    def _rows(self, requests: Sequence[Instance]) -> int:
        """Of the batches of a task."""
        if self.batch_size != AUTO:
            return self.rows
        letters = max((len(str(r.args[0])) for r in requests), default=0)
        answers = max((int(r.args[2].get("max_new_tokens") or MAX_NEW_TOKENS) for r in requests), default=0)
        images = self.frames if getattr(self.backbone, "video_text", None) is not None else 1
        fitting = rows(AUTO, self.backbone, self.method, letters // 2 + TEMPLATE, answers, images)
        return fitting if self._most is None else min(fitting, self._most)

    def _scored_with(self, request: Instance) -> tuple[str, int]:
        """The same for all requests that are scored as one."""
        return str(request.task_name), int(request.doc_id) // self.together

    def _answer_batch(
        self, batch: Sequence[int], ready: Ready | None, requests: Sequence[Instance], answers: Answers
    ) -> None:
        """Answer a batch, which is read first where that wasn't done ahead: then in parts where its pictures have more
        than `IN_FLIGHT` pixels."""
        if ready is not None:
            answers |= ready.failed
            self._ready = ready
            self._answer(ready.prompts, requests, answers)
            self._ready = None
            return
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
                answers[i] = describe(error)
        self._answer(part, requests, answers)

    def _read(self, index: int, request: Instance, room: Room) -> Prompt:
        """See `Reader.read`."""
        return self._reader.read(index, request, self.task_dict, room)

    def _answer(self, questions: Sequence[Prompt], requests: Sequence[Instance], answers: Answers) -> None:
        """Answer a batch; where that fails, its halves, down to the questions that can't be answered alone."""
        if not questions:
            return
        if len(questions) > self.rows:  # a batch before this one was too large for memory
            for start in range(0, len(questions), self.rows):
                self._answer(questions[start : start + self.rows], requests, answers)
            return
        try:
            answered: Any = self._embed if questions[0].options.get("vtc_embed") else self._generate
            with self.towers.sharing(self.backbone, self.method) if self.towers else contextlib.nullcontext():
                pairs = (self._look if self._seen else answered)(questions)
            for question, (answer, kept) in zip(questions, pairs, strict=True):
                answers[question.index] = answer
                request = requests[question.index]
                key = str(request.task_name), int(request.doc_id)
                self.shown[key] = Shown(question.text, question.hashes)
                if kept is not None:
                    self.kept[key] = kept
            return
        except Exception as error:
            if isinstance(error, (UserError, MethodFailure)) and not isinstance(error, SampleError):
                raise  # no sample is to blame
            if len(questions) == 1:
                log.debug("a sample failed", exc_info=True)
                answers[questions[0].index] = describe(error)
                return
            if self.batch_size == AUTO and is_out_of_memory(error):
                self.rows = self._most = max(1, len(questions) // 2)
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
        inputs = self._inputs_of(questions)
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

    def _inputs_of(self, questions: Sequence[Prompt]) -> Any:
        """What was made of them ahead, where that was of these and no others."""
        ready = self._ready
        if ready is not None and ready.inputs is not None and questions is ready.prompts:
            return ready.inputs
        return ahead.inputs_of(self.backbone, questions)

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
            for start in range(0, len(lines), self.rows):
                part = lines[start : start + self.rows]
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


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    """`text` up to the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        if stop:
            text = text.split(stop)[0]
    return text.strip()


def _short(vector: Sequence[float]) -> list[float]:
    """Eight significant digits: float32 needs no more, and JSON half the room."""
    return [float(f"{x:.8g}") for x in vector]


def _padding(request: Instance) -> bool:
    """A copy that lmms-eval adds so that all processes have as many requests."""
    return bool((request.metadata or {}).get("__padding_only__"))
