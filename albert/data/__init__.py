"""Segment pairs on disk, prepared from text, and the public batches drawn from them.

Making a folder needs `datasets`, `tokenizers` and `transformers`; using one needs only pyarrow and torch.
"""

from btard.extras import need

need("experiments", "pyarrow", "transformers")
