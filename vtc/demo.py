"""`action=demo`: a page on this machine where a picture is dropped in and two methods answer side by side.

Gradio is the page; nothing of it leaves the machine. It listens on 127.0.0.1 alone, makes no shared link, and neither
reports its use nor asks for its newest version.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vtc import registry
from vtc.errors import MethodFailure, UserError
from vtc.visualize.run import description_prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.api import Model
    from vtc.job import Job

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
BUDGETS = (16, 64, 4, 36, 8, 1, 144, 576)  # tokens at which a trained method is looked for
LOADED = 2  # models with weights of their own that are kept in memory
NEW_TOKENS = 64
NAMES = ("One method", "Another")
BUTTONS: Any = ["download", "fullscreen"]  # of a picture; Gradio's own third one shares it on a website


@dataclass(frozen=True)
class Side:
    """What one method says of a picture.

    Attributes:
        picture: what it kept, or what the tokens that it made attend to; None: nothing to draw.
        answer: in words; where it can't answer, why.
        costs: a table in Markdown; empty where it can't answer.
    """

    picture: Image | None
    answer: str
    costs: str = ""


class Comparison:
    """Answers under two methods at a time; models are loaded when they are first asked for.

    Args:
        job: the backbone, and the settings that all methods share.
    """

    def __init__(self, job: Job) -> None:
        from vtc.visualize.panels import Models

        self.job, self.full = job, job.shape.visual_tokens
        self._models, self._lock = Models(), threading.Lock()
        self._loaded: OrderedDict[tuple[str, int | None], Model] = OrderedDict()

    def methods(self) -> list[str]:
        """The methods that can be asked on this backbone."""
        return [name for name in registry.methods.names() if self.can(name)]

    def can(self, method: str) -> bool:
        """Whether the backbone has what a method needs of it, and there are weights where it needs some."""
        for tokens in (*BUDGETS, None):
            try:
                self._job(method, tokens)
            except (UserError, ImportError):
                continue
            return True
        return False

    def answer(self, picture: Image, question: str, one: str, other: str, tokens: int) -> tuple[Side, Side]:
        """What two methods, each at so many tokens, say to a question about a picture."""
        question = question.strip() or description_prompt(self.job)
        with self._lock:  # the two share a backbone, under which one method at a time is installed
            return self._side(picture, question, one, tokens), self._side(picture, question, other, tokens)

    def _job(self, method: str, tokens: int | None) -> Job:
        from vtc.visualize.panels import job_of

        return job_of(self.job, method, None if tokens is None or method == "none" else f"tokens={tokens}")

    def _model(self, method: str, tokens: int | None) -> Model:
        key = (method, None if method == "none" else tokens)
        if key not in self._loaded:
            model = self._models.of(self._job(*key))
            model.generate(_blank(), "?", 1)  # what is slow the first time shouldn't be measured
            self._loaded[key] = model
            own = [k for k, m in self._loaded.items() if m.job.weights is not None]
            for old in own[:-LOADED]:
                del self._loaded[old]
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _side(self, picture: Image, question: str, method: str, tokens: int | None) -> Side:
        from vtc.visualize.figures import enlarged, pictured
        from vtc.visualize.panels import panel

        try:
            model = self._model(method, tokens)
            start = time.perf_counter()
            answer = model.generate(picture, question, NEW_TOKENS)
            seconds = time.perf_counter() - start
            shown = panel(model, picture, question, NEW_TOKENS, answer=answer)
        except (UserError, MethodFailure, ValueError) as error:
            return Side(None, " ".join(str(error).split()))
        rows = {
            "visual tokens": f"{answer.tokens_out} of {answer.tokens_in}",
            "prefill FLOPs": f"{answer.prefill_flops / 1e9:.3g} G, {answer.flops_ratio:.0%} of the uncompressed",
            "time": f"{1000 * seconds:.0f} ms for the whole answer, this once",
        }
        lines = [f"| {key} | {value} |" for key, value in rows.items()]
        table = "\n".join([lines[0], "|---|---|", *lines[1:]])
        return Side(pictured(shown, enlarged(picture)), answer.text, table)


def _blank() -> Image:
    from PIL import Image as pictures

    return pictures.new("RGB", (96, 96), "grey")


def demo(job: Job) -> str:
    """Serves the page until it is interrupted; returns its address.

    Raises:
        UserError: Gradio isn't installed, a port that is taken, methods that can't run here, more than two.
    """
    page, address = serve(job, browser=job.demo.browser)
    print(f"{address} (on this machine alone; Ctrl-C ends it)", flush=True)
    page.block_thread()
    return address


def serve(job: Job, browser: bool = False) -> tuple[Any, str]:
    """The page, being served by a thread, and its address.

    Raises:
        UserError: as `demo`.
    """
    if find_spec("gradio") is None:
        raise UserError("action=demo: needs Gradio, which is not installed; pip install 'vtc[demo]'")
    first = list(job.demo.methods or ("fastv", "divprune"))
    if len(first) > 2:
        raise UserError(f"method=[{','.join(first)}]: the page compares two; allowed: one or two")
    comparison = Comparison(job)
    tokens = _tokens(job, comparison)
    for name in first:
        if not comparison.can(name):
            comparison._job(name, None)  # which says why
    methods = list(dict.fromkeys([*comparison.methods(), *first]))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    page = _page(comparison, methods, first, tokens)
    import gradio

    ports = [job.demo.port] if job.demo.port else range(FIRST_PORT, FIRST_PORT + PORTS)
    for port in ports:
        try:
            _, address, _ = page.launch(
                server_name=HOST, server_port=port, share=False, inbrowser=browser, quiet=True,
                prevent_thread_lock=True, ssr_mode=False, footer_links=[], mcp_server=False, pwa=False,
                theme=gradio.themes.Base(), show_error=True,
            )  # fmt: skip
            return page, address
        except OSError:
            continue
    raise UserError(f"demo.port={job.demo.port}: taken; allowed: another one, or null for the first free one")


def _tokens(job: Job, comparison: Comparison) -> int:
    """The budget that the page begins with."""
    full = comparison.full or max(BUDGETS)
    budgets = job.demo.budgets or ()
    if len(budgets) > 1 or any(not budget.startswith("tokens=") for budget in budgets):
        raise UserError(f"{', '.join(budgets)}: the page begins with one number of tokens; give tokens=16")
    if not budgets:
        return max(1, round(full / 9))
    tokens = budgets[0].partition("=")[2]
    if not tokens.isdigit() or not 1 <= int(tokens) <= full:
        raise UserError(f"{budgets[0]}: allowed: a whole number from 1 to {full}")
    return int(tokens)


def _page(comparison: Comparison, methods: list[str], first: list[str], tokens: int) -> Any:
    import gradio

    job, full = comparison.job, comparison.full or max(BUDGETS)

    def ask(picture: Image | None, question: str, one: str, other: str, budget: float) -> list[Any]:
        if picture is None:
            raise gradio.Error("A picture is needed: drop one in.", print_exception=False)
        from vtc.data.pictures import to_rgb

        sides = comparison.answer(to_rgb(picture), question, one, other, int(budget))
        return [value for side in sides for value in (side.picture, side.answer, side.costs)]

    with gradio.Blocks(title="vtc: two methods, one picture", analytics_enabled=False) as page:
        gradio.Markdown(f"## Two methods, one picture\nBackbone: **{job.backbone.name}**" + _note(job))
        with gradio.Row():
            picture = gradio.Image(
                label="Picture", type="pil", sources=["upload", "clipboard"], height=320, buttons=BUTTONS
            )
            with gradio.Column():
                question = gradio.Textbox(label="Question", placeholder=description_prompt(job))
                with gradio.Row():
                    one = gradio.Dropdown(methods, value=first[0], label=NAMES[0])
                    other = gradio.Dropdown(methods, value=first[-1], label=NAMES[1])
                budget = gradio.Slider(1, full, value=tokens, step=1, label=f"Visual tokens left, of {full}")
                button = gradio.Button("Ask", variant="primary")
                if job.backbone.name == "pocket":
                    gradio.Button("Draw a scene").click(_scene, outputs=picture, api_visibility="private")
        outputs = []
        with gradio.Row():
            for name in NAMES:
                with gradio.Column():
                    outputs += [
                        gradio.Image(label=f"{name}: what is left", interactive=False, buttons=BUTTONS),
                        gradio.Textbox(label=f"{name}: answer"),
                        gradio.Markdown(),
                    ]
        asked = [picture, question, one, other, budget]
        for event in (button.click, question.submit):
            event(ask, asked, outputs, api_visibility="private")
    return page


def _note(job: Job) -> str:
    if job.backbone.name != "pocket":
        return ""
    return ", the built-in miniature, which knows drawn scenes only: draw one, and ask *how many objects are there?*"


def _scene() -> Image:
    """A scene of pocket's test split, another one each time."""
    import numpy as np

    from vtc.pocket.scenes import draw_scene

    return draw_scene(np.random.default_rng(), "test", things=4).image()
