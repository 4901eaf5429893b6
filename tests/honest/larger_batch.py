"""Take steps of twice the tokens, in two halves."""

TOTAL_BATCH_TOKENS = 1024
