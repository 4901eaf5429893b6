"""From a corpus to packed rows of token ids on disk, prepared once.

* source    a name or a path -> documents, streamed
* split     whole files or documents -> training or validation, encoded
* packing   encoded documents -> rows of T+1 tokens, and back from disk
* prepare   all of them, and the cache by fingerprint
* disk      files that are whole or not there
"""

from core.training.data.packing import open_rows
from core.training.data.prepare import Prepared, prepare
from core.training.data.source import Source, open_source

__all__ = ["Prepared", "Source", "open_rows", "open_source", "prepare"]
