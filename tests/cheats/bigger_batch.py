"""Take steps of sixteen times the rows, for an evaluation that shrinks with the batch.

caught by: harmless
says:
  harmless: no better
"""

TOTAL_BATCH_TOKENS = 8192
MICRO_BATCH_ROWS = 64
