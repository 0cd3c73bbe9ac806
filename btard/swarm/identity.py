"""`python -m btard.swarm.identity KEY_FILE`: the key of a peer (`btard/swarm/keys.py`).

It creates the key if it is missing, and prints the peer id and the public key.
"""

from __future__ import annotations

import sys
from pathlib import Path

from btard.boundary import program
from btard.extras import need

USAGE = "usage: python -m btard.swarm.identity KEY_FILE"


@program("the same command begins again")
def main(argv: list[str] | None = None) -> int:
    """Print the peer id and the public key of an identity file."""
    words = sys.argv[1:] if argv is None else argv
    if words in (["-h"], ["--help"]):
        print(USAGE, "", __doc__, sep="\n")
        return 0
    if len(words) != 1 or words[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    need("swarm", "hivemind")
    from btard.swarm.keys import load_identity, peer_id_of

    try:
        identity = load_identity(Path(words[0]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(peer_id_of(identity.public_key).to_base58())
    print(f"public key: {identity.public_key.hex()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
