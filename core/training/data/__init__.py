"""From a corpus to packed rows of token ids on disk, prepared once.

* climbmix  a name -> shards of a data set on the hub
* source    a name or a path -> documents, streamed
* hub       shards -> files in the cache
* split     whole files or documents -> training or validation, encoded
* packing   encoded documents -> rows of T+1 tokens, and back from disk
* prepare   all of them, and the cache by fingerprint
* disk      files that are whole or not there
"""

from core.training.data.climbmix import Shards
from core.training.data.packing import open_rows
from core.training.data.prepare import DATA_FOLDER, Prepared, prepare
from core.training.data.source import Source, open_source

__all__ = [
    "DATA_FOLDER",
    "Prepared",
    "Shards",
    "Source",
    "open_rows",
    "open_source",
    "prepare",
]
