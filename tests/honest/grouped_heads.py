"""Cut the channels into twice the heads, all of which share one key and value head."""

HEAD_DIM = 16
N_KV_HEAD = 1
VALUE_GATE_CHANNELS = 16
