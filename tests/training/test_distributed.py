"""Several processes train what one does: the same losses, the same weights."""

import os
from dataclasses import replace

import pytest
import torch
import toy

from vtc import distributed
from vtc.data.training import Part
from vtc.distributed import gather_with_gradient
from vtc.training.loop import train_stage

STEPS, LR = 6, 0.05
RUNS = {
    "plain": {},
    "answers": {"contrastive": False},
    "accumulated": {"contrastive": False, "accumulate": 2},
    "negatives": {"accumulate": 2},
}


class Silent(toy.Toy):
    """The second half of the rows has no answers, and its process nothing to return."""

    def batch(self, step, part):
        x, answers, odd = super().batch(step, Part())
        answers[toy.ROWS // 2 :] = -100
        rows = part.of(toy.ROWS)
        return x[rows], answers[rows], odd[rows]

    def losses(self, batch):
        return super().losses(batch) if self.weights(batch)["answer"] else {}


def _all(folder):
    """What a process of two does; the main one writes what it ends with."""
    ends = {}
    for name, settings in RUNS.items():
        stage, _ = toy.train(f"{folder}/{name}", STEPS, **settings)
        ends[name] = {n: p.detach().clone() for n, p in stage.named_parameters()}
        assert all(p.grad is None for p in stage.net.frozen.parameters())
    silent = Silent(contrastive=False)
    plan = toy.plan(3, lr=LR, warmup=0.0, decay="constant", log_every=1)
    train_stage(silent, plan, f"{folder}/silent", quiet=True)
    ends["silent"] = {n: p.detach().clone() for n, p in silent.named_parameters()}

    rank = distributed.rank()
    everything = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine = everything[slice(0, 3) if rank == 0 else slice(3, 5)].clone().requires_grad_()
    gathered = gather_with_gradient(mine)
    assert torch.equal(gathered, everything)
    ((rank + 1) * (gathered**3).sum() * gathered[:, 0].prod()).backward()
    ends["gathered"] = {str(r): g for r, g in enumerate(distributed.gather_objects(mine.grad))}
    assert distributed.sum_over_ranks({"a": 1.0, f"only {rank}": 2.0}) == {"a": 2.0, "only 0": 2.0, "only 1": 2.0}
    assert distributed.from_main(rank) == 0
    if distributed.is_main():
        torch.save(ends, f"{folder}/ends.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the logs of two processes, and the weights that they ended with."""
    folder = tmp_path_factory.mktemp("two")
    toy.together(_all, str(folder))
    return folder, torch.load(folder / "ends.pt")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["plain", "answers", "accumulated"])
def test_two_processes_are_one(two, name):
    folder, ends = two
    losses, weights = toy.reference(STEPS, LR, contrastive=name == "plain")
    assert toy.logged(folder / name) == pytest.approx(losses, abs=1e-4)
    assert_same(ends[name], weights)


def test_negatives_are_those_of_one_micro_batch_on_all_processes(two):
    """Two micro-batches on two processes: rows 0-3, then 4-7; the loss is the mean of the two."""
    folder, _ = two
    stage = toy.Toy()
    halves = [stage.losses(stage.batch(0, Part(i, 2)))["contrastive"].item() for i in range(2)]
    answer = toy.Toy(contrastive=False)
    whole = answer.losses(answer.batch(0, Part()))["answer"].item()
    assert toy.logged(folder / "negatives")[0] == pytest.approx(whole + sum(halves) / 2, abs=1e-4)


def test_a_process_may_have_nothing_to_learn_from(two, tmp_path):
    folder, ends = two
    one = Silent(contrastive=False)
    train_stage(one, toy.plan(3, lr=LR, warmup=0.0, decay="constant", log_every=1), tmp_path, quiet=True)
    assert toy.logged(folder / "silent") == pytest.approx(toy.logged(tmp_path), abs=1e-4)
    assert_same(ends["silent"], {n: p.detach() for n, p in one.named_parameters()})


def test_only_one_process_writes_and_speed_is_that_of_all(two):
    folder, _ = two
    assert len(toy.logged(folder / "plain")) == STEPS
    images, tokens = (
        toy.logged(folder / "plain", "images_per_second"),
        toy.logged(folder / "plain", "tokens_per_second"),
    )
    assert tokens == pytest.approx([toy.LENGTH * i for i in images], rel=0.01)


def test_gathered_rows_have_the_gradient_of_the_sum_over_processes(two):
    """Each process's loss is a multiple of one function, 1 and 2; every row gets the gradient of their sum."""
    _, ends = two
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    (3 * (rows**3).sum() * rows[:, 0].prod()).backward()
    torch.testing.assert_close(torch.cat(list(ends["gathered"].values())), rows.grad)


def test_one_process_sets_nothing_up():
    x = torch.ones(2, requires_grad=True)
    assert gather_with_gradient(x) is x
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    assert distributed.sum_over_ranks({"a": 2.0}) == {"a": 2.0}
    distributed.barrier()
    assert not torch.distributed.is_initialized()


def _mistaken(folder):
    """One process's data is bad: both must hear of it."""
    from vtc.errors import UserError

    class Bad(toy.Toy):
        def batch(self, step, part):
            if part.index == 1 and step == 1:
                raise UserError("row 7 is bad")
            return super().batch(step, part)

    with pytest.raises(UserError, match="row 7 is bad"):
        train_stage(Bad(), toy.plan(3, lr=LR), f"{folder}/bad", quiet=True)
    small = toy.Toy()
    small.batch_size = 1
    with pytest.raises(UserError, match="batch_size=1: fewer than the 2 parts"):
        train_stage(small, toy.plan(3, lr=LR), f"{folder}/small", quiet=True)


def test_a_mistake_in_one_process_is_everyone_s(tmp_path):
    toy.together(_mistaken, str(tmp_path))


def _sharded(folder):
    """FSDP2, in two stages on the same modules, the second of which is interrupted."""
    toy.sharded()
    first = toy.Toy()
    first.net.blocks.requires_grad_(False)
    plan = toy.plan(STEPS, lr=LR, warmup=0.0, decay="constant", log_every=1)
    train_stage(first, plan, f"{folder}/first", quiet=True)
    first.net.blocks.requires_grad_(True)
    first.stop_at = 4
    plan, first.contrastive = replace(plan, checkpoint_every=2), False
    with pytest.raises(KeyboardInterrupt):
        train_stage(first, plan, f"{folder}/second", quiet=True, accumulate=2)
    first.stop_at = None
    train_stage(first, plan, f"{folder}/second", quiet=True, accumulate=2)
    assert type(first.net.blocks[0]).__name__ == "FSDPBlock"
    full = {n: distributed.whole(p) for n, p in first.named_parameters()}
    if distributed.is_main():
        torch.save(full, f"{folder}/sharded.pt")


def test_sharded_stages_are_those_of_one_process(tmp_path):
    toy.together(_sharded, str(tmp_path))
    one = toy.Toy()
    one.net.blocks.requires_grad_(False)
    plan = toy.plan(STEPS, lr=LR, warmup=0.0, decay="constant", log_every=1)
    train_stage(one, plan, tmp_path / "one", quiet=True)
    assert toy.logged(tmp_path / "first") == pytest.approx(toy.logged(tmp_path / "one"), abs=1e-4)
    one.net.blocks.requires_grad_(True)
    one.contrastive = False
    train_stage(one, plan, tmp_path / "two", quiet=True)
    assert toy.logged(tmp_path / "second") == pytest.approx(toy.logged(tmp_path / "two"), abs=1e-4)
    assert_same(torch.load(tmp_path / "sharded.pt"), {n: p.detach() for n, p in one.named_parameters()})


def _fwd2bot(folder):
    """Two steps of both losses: answers of unequal length, captions of all rows against each other, two adapters."""
    from test_method_stage import stage_of

    torch.manual_seed(0)
    stage = stage_of("fwd2bot")
    # AdamW's first steps go by the sign of a gradient, which rounding decides where there is hardly any.
    stage.backbone.model.double()
    stage.method.double()
    stage.validate = dict  # 128 scenes
    train_stage(stage, toy.plan(2, lr=1e-3, warmup=0.0, decay="constant", log_every=1), f"{folder}/fwd2bot", quiet=True)
    if distributed.is_main():
        torch.save({n: p.detach() for n, p in stage.named_parameters()}, f"{folder}/fwd2bot.pt")


def test_fwd2bot_on_two_processes_is_fwd2bot(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    _fwd2bot(tmp_path / "one")
    toy.together(_fwd2bot, str(tmp_path / "two"))
    for key in ("loss", "answer", "contrastive"):
        one, two = (toy.logged(tmp_path / folder / "fwd2bot", key) for folder in ("one", "two"))
        assert len(one) == 2 and two == pytest.approx(one, abs=1e-4)
    one, two = (torch.load(tmp_path / folder / "fwd2bot.pt") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    moved = max(float((one[n] - two[n]).abs().max()) for n in one)
    assert moved < 2e-5, "AdamW's steps are of 1e-3"


def test_the_device_of_a_process(monkeypatch):
    monkeypatch.delitem(os.environ, "WORLD_SIZE", raising=False)
    assert distributed.device("cpu") == torch.device("cpu")
    assert distributed.device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
