"""A finished run's scores and costs, handed to trackers: through accelerate's, by the process that writes results."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc import results
from vtc.identity import digest, flat

PROJECT = "vtc"
TOLD = "trackers.json"  # beside a result: which trackers know it, and as what


def tell(names: Sequence[str], result: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Hands a result to the trackers that don't know it yet.

    A tracker that fails (no account, no network) costs nothing that is finished: the next run of the same command tries
    again.

    Args:
        names: of trackers; folder: of the run, in which they keep what they keep here.

    Yields:
        A line for each that was told or failed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    figures, known = dict(_figures(result)), _known(folder)
    content, name = digest(figures)[:16], folder.name
    for tracker in names:
        if known.get(tracker) == content:
            continue
        options: dict[str, dict[str, Any]] = {
            "wandb": {"name": name, "dir": str(folder), "id": str(result["run"]["id"]), "resume": "allow"},
            "trackio": {"name": name},
            "tensorboard": {"logging_dir": str(folder / "trackers")},
        }
        logging.getLogger("accelerate.tracking").setLevel(logging.ERROR)
        try:
            run = LOGGER_TYPE_TO_CLASS[tracker](PROJECT, **options[tracker])
            getattr(run, "start", lambda: None)()  # earlier versions of accelerate begin where they are made
            run.store_init_configuration(_plain(result.get("config") or {}))
            run.log(figures, step=0)
            run.finish()
        except Exception as error:  # each service has errors of its own
            yield f"log={tracker}: {' '.join(str(error).split())}; the result stands, the same command tells it again"
            continue
        known[tracker] = content
        results.write_json(folder / TOLD, known)
        yield f"told {tracker}: {name}"


def _known(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / TOLD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Each score with its share of the uncompressed one, and each single number of budget and costs."""
    for row in result["scores"]:
        for key in ("value", "retained", "p_value"):
            if isinstance(row.get(key), (int, float)):
                yield f"{row['task']}/{row['metric'] if key == 'value' else key}", float(row[key])
    for section in ("budget", "efficiency"):
        for key, value in flat(result.get(section) or {}):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f"{section}/{key}", float(value)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as the trackers take it: one level, numbers, texts and truths."""
    return {key: v if isinstance(v, (int, float, str, bool)) else str(v) for key, v in flat(config)}
