"""A rank under torchrun: `python -m tests.training.worker FOLDER`. The one that leads prints what it has come to."""

import json
import os
import sys

import btard
from btard.protocol.hashing import tensor_digest
from btard.training.vector import flatten
from tests.training import model

if __name__ == "__main__":
    task = model.task()
    run = btard.distributed(task, out=sys.argv[1], **{**model.WITH, **model.EQUAL, **model.TWO})
    if run.leads:
        digest = tensor_digest(flatten(task.model), "parameters").hex()
        said = {"rank": int(os.environ["RANK"]), "digest": digest, "ledger": model.head(run), "losses": run.losses}
        print(json.dumps(said))
