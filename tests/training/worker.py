"""A rank under torchrun: `python -m tests.training.worker FOLDER`. It makes two equal runs, one of them without it.

The rank that leads prints what each has come to.
"""

import json
import os
import sys

import btard
from btard.protocol.hashing import tensor_digest
from btard.training.vector import flatten
from tests.training import model

if __name__ == "__main__":
    for out in (sys.argv[1], None):
        task = model.task()
        run = btard.distributed(task, out=out, **{**model.WITH, **model.EQUAL, **model.TWO})
        if run.leads:
            digest = tensor_digest(flatten(task.model), "parameters").hex()
            said = {"rank": int(os.environ["RANK"]), "digest": digest, "ledger": model.head(run), "losses": run.losses}
            print(json.dumps(said))
