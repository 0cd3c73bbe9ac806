"""All rows of the acceptance matrix, in the order of the threat model."""

from tests.protocol.matrix import Row
from tests.protocol.rows import claims, words, work

ROWS: tuple[Row, ...] = (*work.ROWS, *claims.ROWS, *words.ROWS)
