"""What each process of `test_processes` runs: the command line, one command after the other, some with a fault.

    launched.py FOLDER '[{"command": ["method=none", …], "fault": "load"}, …]'

Each process leaves `FOLDER/<rank>.json`: of every command its exit code and how many batches the process answered.
"""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

from vtc.cli import command as cli
from vtc.cli.command import main
from vtc.errors import UserError
from vtc.evaluation import run, scorer
from vtc.settings import ProfileSettings

RANK = int(os.environ.get("RANK", "0"))
QUICK = ProfileSettings(batch_size=2, prompt_tokens=24, new_tokens=(2, 4), repeats=1, first_token_repeats=2)


def broken(job):
    raise UserError("weights are broken")


def failing(*_):
    raise RuntimeError("no clock")


def wait(until) -> None:
    deadline = time.monotonic() + 300
    while not until() and time.monotonic() < deadline:
        time.sleep(0.05)


def perform(command: list[str], fault: str | None) -> dict[str, int]:
    from vtc.evaluation.model import VtcModel

    batches = 0
    answer = VtcModel._answer

    def counted(model, questions, requests, *rest):
        nonlocal batches
        batches += 1
        if fault == "answer" and RANK == 1:
            raise UserError("a batch is too hot")
        if fault == "answer":
            wait(lambda: model.crew._marked("stop"))
        if fault == "kill" and RANK == 1 and requests[0].task_name == "pocket_captions":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(model, questions, requests, *rest)

    with mock.patch.object(VtcModel, "_answer", counted), mock.patch.object(cli, "job_of", quick):
        if fault == "load" and RANK == 1:
            with mock.patch.object(scorer, "lent", broken):
                code = main(command)
        elif fault == "measure":
            with mock.patch.object(run, "efficiency_of", failing):
                code = main(command)
        else:
            code = main(command)
    return {"code": code, "batches": batches}


job_of = cli.job_of


def quick(*arguments):
    return dataclasses.replace(job_of(*arguments), profile=QUICK)


if __name__ == "__main__":
    folder, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
    done = [perform(each["command"], each.get("fault")) for each in commands]
    (folder / f"{RANK}.json").write_text(json.dumps(done))
