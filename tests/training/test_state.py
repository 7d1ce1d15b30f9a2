"""States: whole or not there, whenever the process is killed; resumed, a run ends bit for bit where it would have."""

import json
import os
import random
import signal
import time

import pytest
import torch
import toy
from safetensors.torch import load_file, save_file

from vtc.errors import UserError
from vtc.settings import TrainingSettings
from vtc.training import state
from vtc.training.loop import train_stage

STEPS = 25
PLAN = {"checkpoint_every": 1, "decay": "cosine", "warmup": 0.2, "dropout": 0.3}


def weights(stage):
    return {n: p.detach().clone() for n, p in stage.named_parameters()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def steps_of(folder):
    return sorted(int(f.name[5:]) for f in (folder / "state").glob("step-*") if f.name[5:].isdigit())


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    return weights(toy.train(tmp_path_factory.mktemp("whole"), STEPS, **PLAN)[0])


def _train(folder):
    toy.train(folder, STEPS, **PLAN)


def _dies(folder, where, count):
    """Trains, and is killed in the middle of the count-th write: of the tensors, or between two renames."""
    left = [count]

    def dying(call, half):
        def run(*args):
            left[0] -= 1
            if left[0] == 0:
                half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return run

    if where == "tensors":
        state.save_file = dying(state.save_file, lambda tensors, path: path.write_bytes(b"half"))
    else:
        os.replace = dying(os.replace, lambda *_: None)
    _train(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: {k: v for k, v in t.items() if "parameter" not in k},
        lambda t: {k: v.flatten() for k, v in t.items()},
        lambda t: {k: v.double() for k, v in t.items()},
        lambda t: {k: v * float("nan") for k, v in t.items()},
        lambda t: t | {"optimizer/0/99/exp_avg": torch.zeros(2)},
        lambda t: t | {"optimizer/0/x/exp_avg": torch.zeros(2)},
    ],
)
def test_a_state_that_was_edited_is_refused_in_a_line(tmp_path, edit):
    """Its checksums were mended too, so that only what it holds tells."""
    with pytest.raises(KeyboardInterrupt):
        train_stage(toy.Toy(stop_at=2), toy.plan(4, checkpoint_every=1), tmp_path, quiet=True)
    newest = tmp_path / "state/step-000002"
    save_file({k: v.contiguous() for k, v in edit(load_file(newest / state.TENSORS)).items()}, newest / state.TENSORS)
    rest = json.loads((newest / state.REST).read_text())
    rest["files"][state.TENSORS] = state._fingerprint(newest / state.TENSORS)
    (newest / state.REST).write_text(json.dumps(rest))
    try:
        train_stage(toy.Toy(), toy.plan(4, checkpoint_every=1), tmp_path, quiet=True)
    except UserError as error:
        assert "step-000002 doesn't fit this training" in str(error) and "\n" not in str(error)
    else:
        raise AssertionError("it was taken")


def test_killed_at_random_moments(tmp_path, never_killed):
    draw = random.Random(0)
    begun, folder = 0, tmp_path / "run"
    for _ in range(5):
        run = toy.process(_train, folder)
        target = begun + draw.randint(1, 4)
        while run.is_alive() and max(steps_of(folder), default=0) < target:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.01)
        os.kill(run.pid, signal.SIGKILL)
        run.join()
        assert run.exitcode == -signal.SIGKILL, "it was to be killed before its end"
        begun = max(steps_of(folder))
    stage, _ = toy.train(folder, STEPS, **PLAN)
    assert 0 < stage.seen[0] < STEPS, "it began anew"
    assert_equal(weights(stage), never_killed)
    assert steps_of(folder) == [STEPS - 1, STEPS]
    assert [e["step"] for e in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in e] == list(
        range(1, STEPS + 1)
    )


@pytest.mark.parametrize("where, count", [("tensors", 1), ("tensors", 4), ("rename", 3)])
def test_killed_while_writing(tmp_path, never_killed, where, count):
    run = toy.process(_dies, tmp_path, where, count)
    run.join(120)
    assert run.exitcode == -signal.SIGKILL
    assert max(steps_of(tmp_path), default=0) == count - 1
    stage, _ = toy.train(tmp_path, STEPS, **PLAN)
    assert stage.seen[0] == count - 1
    assert_equal(weights(stage), never_killed)
    assert not [f for f in (tmp_path / "state").iterdir() if f.suffix]


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "no json", "half a json", "list", "nested", "no step", "folder"]
)
def test_a_damaged_state_is_passed_over(tmp_path, never_killed, damage, capfd):
    stop = toy.Toy(dropout=0.3, stop_at=7)
    plan = {k: v for k, v in PLAN.items() if k != "dropout"} | {"lr": 0.05, "log_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train_stage(stop, toy.plan(STEPS, **plan), tmp_path, quiet=True)
    newest = tmp_path / "state" / "step-000007"
    tensors, rest = newest / state.TENSORS, newest / state.REST
    content = tensors.read_bytes()
    if damage == "truncated":
        tensors.write_bytes(content[:-8])
    elif damage == "flipped":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no json":
        rest.unlink()
    elif damage == "half a json":
        rest.write_text(rest.read_text()[:100])
    elif damage == "folder":
        tensors.unlink()
        tensors.mkdir()
    else:
        edited = json.loads(rest.read_text()) | {"step": "7"}
        rest.write_text({"list": "[]", "nested": "[" * 100_000}.get(damage, json.dumps(edited)))
    stage, _ = toy.train(tmp_path, STEPS, **PLAN)
    assert stage.seen[0] == 6
    said = capfd.readouterr().err
    assert "step-000007 is damaged" in said and said.count("\n") == 1
    assert_equal(weights(stage), never_killed)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_few_are_kept(tmp_path, keep):
    toy.train(tmp_path, 6, checkpoint_every=1, keep=keep)
    assert steps_of(tmp_path) == list(range(7 - keep, 7))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"lr": 0.06}, r"plan\.lr=0\.05, not plan\.lr=0\.06"),
        ({"steps": 9}, r"plan\.steps=6, not plan\.steps=9"),
        ({"seed": 1}, "seed=0, not seed=1"),
        ({"config": {"data": {"path": "b.json"}}}, r"data\.path=a\.json, not data\.path=b\.json"),
        ({"config": {}}, r"data\.path=a\.json, not data\.path=None"),
    ],
)
def test_another_training_s_state_is_refused(tmp_path, change, named):
    given = {"lr": 0.05, "steps": 6, "seed": 0, "config": {"data": {"path": "a.json"}}}

    def run(lr, steps, seed, config, resume=True, log_every=20, **launch):
        plan = toy.plan(steps, lr, log_every=log_every)
        return train_stage(stage, plan, tmp_path, resume=resume, quiet=True, seed=seed, config=config, **launch)

    stage = toy.Toy()
    run(**given)
    stage = toy.Toy()
    with pytest.raises(UserError, match=named) as refused:
        run(**given | change)
    assert "resume=false" in str(refused.value) and "\n" not in str(refused.value) and not stage.seen
    run(**given, keep=5, log_every=3, accumulate=2)  # what the weights don't depend on
    assert not stage.seen
    run(**given | change, resume=False)
    assert stage.seen == list(range((given | change)["steps"]))


def test_a_finished_stage_is_read_not_run(tmp_path):
    first, report = toy.train(tmp_path, 6)
    second, again = toy.train(tmp_path, 6)
    assert second.seen == [] and again == report | {"seconds": again["seconds"]}
    assert again["validation"] == first.validate()
    assert_equal(weights(second), weights(first))


def test_a_step_s_randomness_is_its_own(tmp_path):
    """Dropout differs from step to step, from seed to seed, and does not depend on what was drawn before."""
    ends = []
    for seed, drawn in ((0, 0), (0, 3), (1, 0)):
        stage = toy.Toy(dropout=0.3)
        torch.rand(drawn)
        train_stage(stage, toy.plan(3), tmp_path / f"{seed}{drawn}", quiet=True, seed=seed)
        ends.append(weights(stage)["net.read.weight"])
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_frozen_stays_and_trained_moves(tmp_path):
    fresh, (stage, _) = toy.Toy(), toy.train(tmp_path, 2)
    before, after = dict(fresh.net.named_parameters()), dict(stage.net.named_parameters())
    for name in before:
        assert torch.equal(before[name], after[name]) == ("frozen" in name), name
    assert stage.net.frozen.weight.grad is None


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_are_the_batch(tmp_path, accumulate):
    losses, ends = toy.reference(6, 0.05, contrastive=False)
    stage, _ = toy.train(tmp_path, 6, contrastive=False, accumulate=accumulate)
    assert toy.logged(tmp_path) == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(weights(stage), ends, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"accumulate": 0}, "accumulate=0"),
        ({"keep": 0}, "keep=0"),
        ({"steps": 0}, "steps=0"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"optimizer": "sgd"}, "optimizer=sgd"),
    ],
)
def test_plans_that_can_t_be(wrong, said):
    with pytest.raises(UserError, match=said):
        TrainingSettings.of({"stages": [{"name": "toy", "steps": 1, "lr": 1.0} | wrong]})
