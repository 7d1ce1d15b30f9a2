"""Small test sets in the layout of the pocket benchmark, and models that know every answer, or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pocket_rows import make_rows, write_rows


@pytest.fixture(scope="session")
def tasks() -> list[str]:
    from vtc.pocket.splits import TASKS

    return list(TASKS)


@pytest.fixture(scope="session")
def data(tmp_path_factory, tasks) -> Path:
    """A folder with a dozen rows of every task."""
    folder = tmp_path_factory.mktemp("pocket-data")
    for task in tasks:
        write_rows(folder / f"{task}.parquet", make_rows(task))
    return folder


@pytest.fixture(scope="session")
def manager(tasks):
    from vtc.evaluation import harness

    return harness.task_manager(tasks)


def vector(text: str) -> list[float]:
    seed = int(hashlib.md5(text.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).standard_normal(8).tolist()


@pytest.fixture
def oracle():
    """`oracle(right=True)`: a VtcModel that answers from the reference, or always wrongly; `break_on` ids raise."""
    from vtc.evaluation.model import GenerationResult, Kept, TokenCounts, VtcModel

    class Oracle(VtcModel):
        def __init__(
            self, right: bool = True, break_on: tuple[str, ...] = (), batch_size: int = 5, picture: str = "own"
        ) -> None:
            shape = SimpleNamespace(depth=2)
            backbone = SimpleNamespace(name="fake", device="cpu", dtype="float32", shape=shape)
            super().__init__(backbone, SimpleNamespace(name="fake", tokens=16), batch_size, picture=picture)
            self.right, self.break_on, self.batches = right, break_on, []

        def generate_until(self, requests):
            self.requests = requests
            return super().generate_until(requests)

        def _docs(self, questions):
            self.batches.append([q.index for q in questions])
            docs = []
            for q in questions:
                request = self.requests[q.index]
                doc = self.task_dict[request.task_name]["test"][request.doc_id]
                if doc["id"] in self.break_on:
                    raise RuntimeError(f"no answer to {doc['id']}")
                docs.append(doc)
            return docs

        def _generate(self, questions):
            answers = [(d.get("references") or [d.get("answer", d.get("target"))])[0] for d in self._docs(questions)]
            counts = TokenCounts(input_tokens=20, output_tokens=1)
            texts = [a if self.right else "zebra" for a in answers]
            return [(GenerationResult(t, counts), Kept(144, 16, [144, 16])) for t in texts]

        def _embed(self, questions):
            out = []
            for question, doc in zip(questions, self._docs(questions), strict=True):
                image = vector(doc["answer"]) if self.right else vector("same")
                texts = [vector(t) if self.right else vector("same") for t in question.text.split("\n")]
                out.append((GenerationResult(json.dumps({"image": image, "texts": texts})), None))
            return out

    return Oracle


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A pocket backbone with fresh weights, saved as any other."""
    from vtc.pocket.model import build_model, build_processor

    folder = tmp_path_factory.mktemp("weights")
    build_model(0).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(weights):
    from vtc.backbones.llava import Llava
    from vtc.configuration.compose import backbone_settings

    return Llava.load(backbone_settings("pocket", pretrained=str(weights), device="cpu"))
