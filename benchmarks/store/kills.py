"""What becomes of a store whose writers are killed, and of one that two processes fill at once.

    python benchmarks/store/kills.py --images 2000 --tiny --out benchmarks/store/kills.json

Pictures of pocket's scenes are indexed by processes that end at random moments (SIGKILL): a random number of commits
after they began, and a random while into the next one, however fast the machine is. Afterwards the index goes on, and
each picture must be in the store exactly once; embeddings and searches must be those of a store that was made in one
go. Then two processes index the same folder into one store at the same time. `--tiny` takes a LLaVA of four layers and
random weights, from a folder as anyone's: what is tried is the writing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = ["method=fwd2bot", "tokens=16"]
TINY = ["method=avgpool", "tokens=4", "backbone=llava15_7b", "dtype=float32"]
QUERIES = ("a red circle left of a blue square", "a green triangle", "two yellow squares")


def draw(folder: Path, count: int, seed: int) -> None:
    """`count` pictures of pocket's scenes in two folders, and two files that are broken."""
    from PIL import Image

    from vtc.pocket.data import draw_scenes
    from vtc.pocket.scenes import scene_rng

    for start in range(0, count, 100):
        scenes = draw_scenes(scene_rng(seed, "store", start), min(100, count - start), "test", False)
        for number, scene in enumerate(scenes, start):
            place = folder / ("a" if number % 2 else "b") / f"{number:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.render()).save(place)
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "b" / "00000.png").read_bytes()[:200])


def forked(run) -> int:
    """A process that does `run` and ends."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
        os._exit(0)
    except BaseException as error:
        print(f"writer: {type(error).__name__}: {error}", flush=True)
        os._exit(1)


def commits(where: Path) -> set[str]:
    """Names of what LanceDB wrote for each version of a store's table; some of the older ones may be gone."""
    folder = where / "images.lance" / "_versions"
    return set(os.listdir(folder)) if folder.is_dir() else set()


def killed_after(pid: int, where: Path, before: set[str], count: int, rng: random.Random, batch: float) -> int:
    """Kills a process a random while after it committed `count` times to a store; what it ended with, if it did."""
    seen: set[str] = set()
    while len(seen) < count:
        seen |= commits(where) - before
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 0.9) * batch)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def contents(where: Path) -> dict:
    """What a store holds, without what depends on when it was written; read in a process of its own."""
    read, write = os.pipe()

    def tell() -> None:
        from vtc.store.table import Table

        table = Table(str(where))
        every = table._table.search().select(["path", "hash", "vector"]).limit(None).to_arrow()
        rows = [row.values.to_numpy() for row in every.column("vector")]
        vectors = np.array(rows, dtype=np.float32).reshape(len(rows), table.width)
        paths = every.column("path").to_pylist()
        order = np.argsort(paths)
        found = []
        for query in np.random.default_rng(0).standard_normal((20, vectors.shape[1])):
            found.append([hit.path for hit in table.nearest(query, 10)])
        facts = {
            "paths": [paths[i] for i in order],
            "hashes": [every.column("hash")[int(i)].as_py() for i in order],
            "vectors": vectors[order].round(3).tolist(),
            "found": found,
        }
        with os.fdopen(write, "w") as pipe:
            json.dump(facts, pipe)

    pid = forked(tell)
    os.close(write)
    with os.fdopen(read) as pipe:
        facts = json.load(pipe)
    os.waitpid(pid, 0)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--pictures", type=Path, help="where they are drawn, or have been")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = run(Path(place), arguments)
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def tiny(folder: Path) -> list[str]:
    """The words of a small model of random weights, written there."""
    from vtc.testing import tiny_backbone

    backbone = tiny_backbone()
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return [*TINY, f"pretrained={folder}"]


def run(place: Path, arguments: argparse.Namespace) -> dict:
    from vtc.configuration import parse
    from vtc.evaluation.record import git_commit
    from vtc.store import store as stores

    stores.COMMITTED = max(8, arguments.images // 20)  # so that a kill meets a store with something in it
    words = tiny(place / "model") if arguments.tiny else WORDS
    model = parse(words).load()

    def index(where: Path, folder: Path) -> None:
        store = stores.Store.open(where, words, batch_size=min(32, stores.COMMITTED))
        store.__dict__["model"] = model  # loaded once, before the processes part
        store.add(folder)

    folder = arguments.pictures or place / "pictures"
    if not (folder / "cut.png").is_file():
        draw(folder, arguments.images, arguments.seed)
    began, batches = time.monotonic(), max(1, arguments.images // stores.COMMITTED)
    os.waitpid(forked(lambda: index(Path(place, "whole"), folder)), 0)
    batch = (time.monotonic() - began) / batches  # seconds
    whole = contents(Path(place, "whole"))
    killed, rng, kills = Path(place, "killed"), random.Random(arguments.seed), []
    for number in range(arguments.kills):
        before = commits(killed)
        pid = forked(lambda: index(killed, folder))
        status = killed_after(pid, killed, before, rng.randint(1, max(1, batches // (arguments.kills + 1))), rng, batch)
        there = len(contents(killed)["paths"]) if (killed / "images.lance").is_dir() else 0
        kills.append({"was_running": os.WIFSIGNALED(status), "images": there})
        print(f"kill {number + 1}: {there} images in the store", flush=True)
    os.waitpid(forked(lambda: index(killed, folder)), 0)
    after = contents(killed)
    writers = [forked(lambda: index(Path(place, "two"), folder)) for _ in range(2)]
    ends = [os.waitpid(pid, 0)[1] for pid in writers]
    two = contents(Path(place, "two"))
    return {
        "command": f"python benchmarks/store/kills.py --images {arguments.images}{' --tiny' * arguments.tiny}",
        "commit": git_commit(),
        "method": " ".join(words[:2]),
        "model": "a LLaVA of four layers" if arguments.tiny else "pocket",
        "images": arguments.images,
        "broken": 2,
        "seed": arguments.seed,
        "kills": kills,
        "whole": len(whole["paths"]),
        "each_once_after_kills": len(set(after["paths"])) == len(after["paths"]) == arguments.images,
        "same_after_kills": {key: after[key] == whole[key] for key in ("paths", "hashes", "vectors", "found")},
        "two_writers_ended_well": ends == [0, 0],
        "each_once_of_two_writers": len(set(two["paths"])) == len(two["paths"]) == arguments.images,
        "same_of_two_writers": {key: two[key] == whole[key] for key in ("paths", "hashes", "vectors", "found")},
    }


if __name__ == "__main__":
    main()
