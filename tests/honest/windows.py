"""Let the windows grow from block to block, the last one included."""

from core.training.train import SEQUENCE_LEN

SHORT_WINDOW = SEQUENCE_LEN // 8


def layer_window(layer: int) -> int:
    return min(SHORT_WINDOW * 4**layer, SEQUENCE_LEN)
