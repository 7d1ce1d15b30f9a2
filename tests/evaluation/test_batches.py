"""`batch_size=auto`: as many rows as memory has room for, by the tokens that a method leaves; scores stay the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_adapter import adapter, build, requests_of

from vtc import results
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.evaluation import batches, evaluate
from vtc.evaluation.batches import MOST_ON_CPU, USUAL, row_bytes, rows
from vtc.interface import BackboneShape, TowerShape
from vtc.methods import make

pytestmark = pytest.mark.usefixtures("manager")
TOWER = TowerShape(24, 1024, 4096, 16, 336, 14, -2, cls=1, tokens=577)
LLAVA = BackboneShape("llava", 32, 4096, 576, (24, 24), 11008, 32, 32, 32064, TOWER)


class Big:
    """LLaVA-1.5 7B in 16 bit on a GPU, without a weight."""

    shape, dtype, device = LLAVA, torch.float16, torch.device("cuda")


def rows_of(name: str, tokens: int | None, free: float, monkeypatch) -> int:
    monkeypatch.setattr(batches, "free_bytes", lambda device: int(free))
    return rows("auto", Big(), make(name, tokens, LLAVA), 64, 128)


def test_fewer_tokens_leave_room_for_more_rows(monkeypatch) -> None:
    found = [rows_of("divprune", tokens, 40e9, monkeypatch) for tokens in (576, 192, 64, 16)]
    assert found == sorted(found) and found[-1] > found[0] >= 8
    assert all(count & (count - 1) == 0 for count in found)  # so that few sizes of batches occur
    assert rows_of("fastv", 64, 40e9, monkeypatch) <= rows_of("divprune", 64, 40e9, monkeypatch)
    assert rows_of("fwd2bot", 16, 40e9, monkeypatch) <= rows_of("divprune", 16, 40e9, monkeypatch)  # its first pass
    assert rows_of("divprune", 64, 10e9, monkeypatch) < rows_of("divprune", 64, 80e9, monkeypatch)
    assert rows_of("none", None, 1, monkeypatch) == 1


def test_what_a_row_takes_is_at_least_its_cache() -> None:
    for tokens in (16, 576):
        cache = 2 * 2 * 32 * 4096 * (tokens + 64 + 128)
        assert cache < row_bytes(Big(), make("divprune", tokens, LLAVA), 64, 128) < 4 * cache + 5e8


def test_a_number_is_taken_as_it_is_and_what_is_not_known_is_the_usual(monkeypatch) -> None:
    assert rows(7, Big(), make("none", None, LLAVA), 64, 128) == 7
    monkeypatch.setattr(batches, "free_bytes", lambda device: None)
    assert rows("auto", Big(), make("none", None, LLAVA), 64, 128) == USUAL
    assert parse(["batch_size=auto"]).batch_size == "auto" and parse(["batch_size=3"]).batch_size == 3
    for wrong in ("0", "many", "null", "1.5"):
        with pytest.raises(UserError, match="batch_size=.*allowed: a whole number from 1 on, auto"):
            parse([f"batch_size={wrong}"])


def test_a_cpu_says_what_is_free() -> None:
    assert 10**7 < batches.free_bytes(torch.device("cpu")) < 10**14


def test_memory_that_runs_out_halves_this_batch_and_those_that_follow(oracle, manager, data, monkeypatch) -> None:
    monkeypatch.setattr("vtc.evaluation.model.rows", lambda *_: 8)

    class Small(oracle):
        sizes: list[int] = []

        def _generate(self, questions):
            self.sizes.append(len(questions))
            if len(questions) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._generate(questions)

    model = Small(batch_size=4)
    model.batch_size = "auto"
    answers = model.generate_until(requests_of(model, "pocket_choice", manager, data))
    assert not model.bad and all(a.text for a in answers)
    assert model.sizes[:4] == [8, 4, 2, 2] and max(model.sizes[3:]) == 2 and model.rows == 2


def test_answers_do_not_depend_on_it(backbone, manager, data, monkeypatch) -> None:
    method, found = build("fastv", 16, backbone), {}
    for size in (1, 4, "auto"):
        model = adapter(backbone, method, batch_size=size)
        asked = [r for t in ("pocket_choice", "pocket_captions") for r in requests_of(model, t, manager, data)]
        found[size] = [(a.text, a.token_counts) for a in model.generate_until(asked)]
    assert model.rows == MOST_ON_CPU or model.rows >= 16
    assert found[1] == found[4] == found["auto"]


def test_the_result_says_what_it_was(weights, data, tmp_path) -> None:
    words = [f"output_dir={tmp_path}", f"benchmark.data={data}", f"backbone.pretrained={weights}", "costs=none"]
    words += ["benchmark.tasks=[pocket_choice,pocket_retrieval]", "backbone.device=cpu", "tower_cache=0"]
    found = {}
    for size in ("auto", "5"):
        job = dataclasses.replace(parse([*words, "method=none", f"batch_size={size}"]))
        found[size] = results.load(evaluate(job))
    run = found["auto"]["run"]
    assert run["batches"] == {
        "asked": "auto",
        "rows": {"pocket_choice": run["batch_size"], "pocket_retrieval": run["batch_size"]},
    }
    assert found["auto"]["config"]["batch_size"] == "auto"
    assert found["5"]["run"]["batch_size"] == 5 and "batches" not in found["5"]["run"]
    scores = [[(row["task"], row["value"], row["n"]) for row in each["scores"]] for each in found.values()]
    assert scores[0] == scores[1]
