"""A judge on this machine: speaks OpenAI's protocol, and says that an answer is right where it is the reference."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FENCED = re.compile(r"Ground Truth Answer:\n```\n(.*?)\n```\nModel Prediction:\n```\n(.*?)\n```", re.DOTALL)
COMPARED = re.compile(r"\[(\w+) 1\]\n(.*?)\n\n\[End of \1 1\]\n\n\[\1 2\]\n(.*?)\n\n\[End of \1 2\]", re.DOTALL)


def verdict(prompt: str) -> str:
    """What the prompt's own rules ask for: marks of two answers (LLaVA-W), 1 or 0, or a number from 0 to 1 (MM-Vet)."""
    if found := COMPARED.search(prompt):
        return "10 10" if found[2] == found[3] else "10 0"
    if found := FENCED.search(prompt):
        return "1" if found[1] == found[2] else "0"
    last = [part.strip() for part in prompt.strip().splitlines()[-1].split("|")]
    if len(last) == 4:  # question | reference | answer |
        return "1.0" if last[1] == last[2] else "0.0"
    return "yes"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked["messages"][-1]["content"])  # type: ignore[attr-defined]
        message = {"role": "assistant", "content": verdict(asked["messages"][-1]["content"])}
        body = json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"],
             "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
             "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
        ).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def local_judge() -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment that points lmms-eval at it, and the prompts that it was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        environment = {"API_TYPE": "openai", "OPENAI_API_KEY": "a key", "OPENAI_API_URL": url, "NO_PROXY": "127.0.0.1"}
        yield environment, server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
