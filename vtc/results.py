"""One result file a run: its schema, how it is written and read; and hashes of files.

`result.json` is whole or absent: it is written beside its final name and renamed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from vtc import allowed
from vtc.errors import UserError
from vtc.identity import digest, hash_bytes

SCHEMA = 1
RESULT = "result.json"
SAMPLES = "samples.parquet"
SUMMARY = "summary.md"
SECTIONS = ("run", "config", "backbone", "method", "checkpoint", "budget", "scores", "efficiency")
GROUPS = ("understanding", "discriminative")  # generated answers, and embeddings compared

# What a result file may hold, as far as it is read. A key that an earlier version didn't write may be missing.
LARGEST, DEEPEST = 64 << 20, 40  # bytes of a file, levels of sections in sections
NUMBER, COUNT = allowed.number().or_null(), allowed.number("a number from 0 on", least=0, most=1e30).or_null()
LINE, TEXT, SECTION = allowed.line(), allowed.TEXT, allowed.mapping("a section")
REQUIRED = {"task", "value"}
EMPTY = ("checkpoint", "baseline", "efficiency")  # sections that may be null
MEAN = {
    **dict.fromkeys(("value", "retained", "agreement"), NUMBER),
    **dict.fromkeys(("stderr", "baseline", "blind", "bag"), COUNT),
}
FIELDS: dict[str, Any] = {
    "run": {
        **dict.fromkeys(("id", "created"), LINE),
        **dict.fromkeys(("git_commit", "code", "device", "attention", "dtype"), LINE.or_null()),
        "command": allowed.text(),
        "versions": allowed.mapping("packages with their versions", LINE),
    },
    "config": {
        "backbone": {"name": LINE, "pretrained": TEXT},
        "method": {"name": LINE},
        "benchmark": {
            **dict.fromkeys(("data", "metric", "prompt", "subset", "split"), TEXT),
            "name": LINE,
            "limit": allowed.whole(1).or_null(),
            "columns": allowed.mapping("a section").or_null(),
        },
    },
    "backbone": {"name": LINE},
    "method": {"name": LINE},
    "checkpoint": {"manifest": {"seconds": COUNT}},
    "budget": dict.fromkeys(
        ("visual_tokens_in", "visual_tokens_out", "layer_average_tokens", "compression_ratio", "flops_ratio"), COUNT
    )
    | {"spread": dict.fromkeys(("tokens_sd", "tokens_least", "tokens_most", "flops_ratio"), COUNT)},
    "scores": [
        MEAN
        | {
            "task": LINE,
            "group": allowed.one_of(*GROUPS, None),
            "metric": LINE.or_null(),
            "n": allowed.whole(0, 10**12),
            "p_value": allowed.number("a number from 0 to 1", least=0, most=1).or_null(),
            "scale": allowed.number("a number above 0", above=0),
            "share": NUMBER,
            "version": LINE.or_null(),
            "data": LINE.or_null(),
        }
    ],
    "means": dict.fromkeys(GROUPS, MEAN),
    "baseline": {"id": LINE},
    "efficiency": {
        **dict.fromkeys(("prefill_flops", "flops_ratio", "flops_ratio_with_vision", "ttft_speedup", "speedup"), COUNT),
        **dict.fromkeys(("method_share", "kv_cache_bytes"), COUNT),
        **dict.fromkeys(("ttft_ms", "throughput"), allowed.mapping("numbers by their names", COUNT).or_null()),
    },
}

SIMPLE = frozenset({str, bool, int, type(None)})  # what JSON holds as it is
_WHOLE = 64 << 20  # bytes: up to here a weight file is hashed whole, beyond by its header and samples


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy, tensors and paths become plain; NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        if SIMPLE.issuperset(map(type, value)):  # millions of numbers of visual tokens, one by one, take seconds
            return list(value)
        return [plain(v) for v in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    return str(value)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` at the end: a reader sees the old file, or none, or the new
    one, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a result from the colleagues who share the folder
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> Path:
    """Writes a file whole or not at all, as UTF-8; returns its path."""
    with whole(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # names of files may hold bytes that are no UTF-8
    return path


def write_json(path: Path, value: Any, indent: int | None = 1) -> Path:
    """The same with a value of plain kinds, `plain` of others, as JSON.

    Args:
        indent: None: in one line, which is written ten times as fast.
    """
    return write_text(path, json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write `result.json` into `folder` atomically, with a digest of its content; returns its path.

    Raises:
        ValueError: a section of the schema is missing.
    """
    missing = [s for s in SECTIONS if s not in result]
    if missing:
        raise ValueError(f"result lacks {', '.join(missing)}")
    content = {"schema": SCHEMA, **result}
    return write_json(Path(folder) / RESULT, {**content, "digest": digest_of(content)})


def digest_of(content: Mapping[str, Any]) -> str:
    """What a run states of a file that it writes, beside the file's content: whether another hand changed it since."""
    return digest({key: value for key, value in plain(content).items() if key != "digest"})


def check_intact(folder: Path, name: str) -> None:
    """That a run's result and samples are as it wrote them.

    Args:
        name: the id of the run.

    Raises:
        FileNotFoundError: there is no result.
        ValueError: something is missing, cut, changed, or of another run; in words.
    """
    result = load(folder)
    if result.get("digest") != digest_of(result) or result["run"]["id"] != name:
        raise ValueError(f"{RESULT} is not as this run wrote it")
    path = folder / SAMPLES
    if not path.is_file() or hash_file(path) != result["run"].get("samples"):
        raise ValueError(f"{SAMPLES} is not as this run wrote it" if path.is_file() else f"{SAMPLES} is missing")


def load(path: str | Path) -> dict[str, Any]:
    """A result by its file or its folder. Whatever is in it is of the kind that `FIELDS` says.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not a result file of this schema, or a damaged one.
    """
    path = Path(path)
    path = path / RESULT if path.is_dir() and path.name != RESULT else path
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path}: not a result file (it is no regular file)")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path}: not a result file ({size >> 20} MiB; one has less than {LARGEST >> 20})")
    try:
        result = json.loads(path.read_bytes())
        _refuse_deep(result)
        json.dumps(result, allow_nan=False)
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of NaN
        raise ValueError(f"{path}: not a result file ({allowed.brief(error, 100)})") from error
    if not isinstance(result, dict) or any(s not in result for s in SECTIONS):
        raise ValueError(f"{path}: not a result file (sections missing)")
    if result.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {allowed.brief(result.get('schema'), 20)}, this version reads {SCHEMA}")
    try:
        _check(result, FIELDS)
    except UserError as error:
        raise ValueError(f"{path}: {allowed.brief(error, 200)}") from error
    return result


def _check(section: Mapping[str, Any], fields: Mapping[str, Any], where: str = "") -> None:
    """Refuses, as a UserError, what is of another kind than `fields` says."""
    for key in REQUIRED & fields.keys() - section.keys():
        raise UserError(f"{where}{key}: missing")
    for key in fields.keys() & section.keys():
        value, inside, name = section[key], fields[key], where + key
        if isinstance(inside, allowed.Allowed):
            inside.check(name, value)
        elif isinstance(inside, list):
            allowed.several("a list of sections", SECTION).check(name, value)
            for at, row in enumerate(value):
                _check(row, inside[0], f"{name}[{at}].")
        elif value is not None or key not in EMPTY:
            SECTION.check(name, value)
            _check(value, inside, f"{name}.")


def _refuse_deep(value: Any) -> None:
    """Whoever walks through a result does it by recursion."""
    level = [value]
    for _ in range(DEEPEST):
        level = [i for v in level for i in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} levels")


def share(row: Mapping[str, Any], key: str = "value") -> float | None:
    """A number of a row of `scores` (value, stderr, baseline, blind, bag) as a share of the full score: what averages
    are made of, so that MME's 2,000 points and percentages stand beside accuracies. The suite says what is full
    (`benchmark.about.<task>.scale`); the row of an earlier version says nothing, and is a share."""
    value = row.get(key)
    return None if value is None else float(value) / float(row.get("scale") or 1.0)


def find(roots: Iterable[str | Path], unreadable: Callable[[OSError], Any] | None = None) -> Iterator[Path]:
    """Every `result.json` under `roots` (folders or files), sorted, each once.

    Args:
        unreadable: is told of each folder that can't be read.
    """
    paths: set[str] = set()
    for root in map(Path, roots):
        if not root.is_dir():
            paths.add(os.path.realpath(root))
        for folder, folders, files in os.walk(root, onerror=unreadable):
            paths |= {os.path.realpath(os.path.join(folder, RESULT))} if RESULT in (*folders, *files) else set()
    yield from map(Path, sorted(paths))


def samples(path: str | Path, columns: Iterable[str] | None = None) -> Any:
    """The samples beside a result, as a pandas DataFrame: task, id, prediction, target, score, cluster, stratum,
    tokens_in, tokens_kept, error, question, document, pictures, images (`vtc.evaluation.spec.ScoredSample`). `score` is
    NaN for a bad sample. Results of earlier versions lack the last four and `cluster`.

    Args:
        columns: those of these to read, as far as the file has them; None: all but `images`, which take most room.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    path = Path(path)
    file = (path if path.is_dir() else path.parent) / SAMPLES
    there = pq.read_schema(file).names
    shown = [name for name in there if (name != "images" if columns is None else name in columns)]
    return pd.read_parquet(file, columns=shown)


def write_samples(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `samples.parquet` atomically; the columns have the same types whatever the rows hold."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    region = pa.struct(
        [("rows", pa.int32()), ("columns", pa.int32()), ("box", pa.list_(pa.float64())), ("newline", pa.bool_())]
    )
    image = pa.struct([("holders", pa.list_(pa.int32())), ("made", pa.int32()), ("regions", pa.list_(region))])
    schema = pa.schema(
        [("task", pa.string()), ("id", pa.string()), ("prediction", pa.string()), ("target", pa.string()),
         ("score", pa.float64()), ("cluster", pa.string()), ("stratum", pa.string()),
         ("tokens_in", pa.float64()), ("tokens_kept", pa.float64()), ("error", pa.string()), ("question", pa.string()),
         ("document", pa.string()), ("pictures", pa.list_(pa.string())), ("images", pa.list_(image))]
    )  # fmt: skip
    table = pa.Table.from_pylist([{n: row.get(n) for n in schema.names} for row in rows], schema=schema)
    with whole(Path(folder) / SAMPLES) as file:
        pq.write_table(table, file)
    return Path(folder) / SAMPLES


def hash_file(path: Path) -> str:
    """Contents of a file. Of one beyond 64 MiB: its size, its head and tail and 256 evenly spaced blocks, since reading
    a 7B model takes longer than noticing another one needs."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hash_bytes([file.read()])
        block = 1 << 16
        parts: list[bytes | str] = [str(size)]
        for i in range(257):
            file.seek((size - block) * i // 256)
            parts.append(file.read(block))
    return hash_bytes(parts)


_HASHES: dict[tuple[str, int, int], str] = {}  # path, size and time of change → hash: a file is read once


def hash_files(paths: Iterable[str | Path]) -> dict[str, str | None]:
    """Hashes of many files, as pictures beside questions are; None for those that are not there.

    A file that this process has hashed is not read again until its size or its time of change is another.
    """

    def one(path: str) -> str | None:
        try:
            status = os.stat(path)
            key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
            if key not in _HASHES:
                _HASHES[key] = hash_file(Path(path))
            return _HASHES[key]
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return None

    names = list(dict.fromkeys(map(str, paths)))
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def hash_weights(sources: Iterable[str | Path | None]) -> str:
    """Hash of the weights and configs in these folders; of a hub id, of what its cached snapshot holds.

    A hub id that isn't cached counts by its name.
    """
    parts: list[bytes | str] = []
    for source in sources:
        folder = _local_folder(source)
        if folder is None:
            parts.append(str(source))
            continue
        files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json", ".model") and p.is_file())
        parts += [f"{p.relative_to(folder)}:{hash_file(p)}" for p in files]
    return hash_bytes(parts)


def _local_folder(source: str | Path | None) -> Path | None:
    if source is None:
        return None
    if Path(source).is_dir():
        return Path(source)
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(str(source), "config.json")
    except Exception:  # not a hub id either: it counts by its name
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def hash_code(extra: Iterable[str | Path] = ()) -> str:
    """Hash of vtc's code, its task files and `extra` files (those of plug-ins): provenance, which names no run."""
    from vtc import shipped

    package, tasks = Path(__file__).parent, shipped.root() / "benchmarks/tasks"
    files = [(str(p.relative_to(package)), p) for p in package.rglob("*.py")]
    files += [(f"tasks/{p.name}", p) for p in (tasks.iterdir() if tasks.is_dir() else ()) if p.is_file()]
    files += [(Path(p).name, Path(p)) for p in extra if Path(p).is_file()]
    return hash_bytes([f"{name}:{hash_bytes([path.read_bytes()])}" for name, path in sorted(files)])
