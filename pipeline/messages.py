"""Kinds of messages between stations; what their slots and numbers mean stands beside each."""

from __future__ import annotations

END = 0  # the sender sends no more on this ring

# ingest
KNOWN = 9  # home → dedupe: slot of pool known; amount: rows (KNOWN); first: chunks (0) or contents (1)
WANTED = 10  # home → dedupe: slot of pool known; amount: ids of chunks that it asks for
FOUND = 11  # dedupe → home: aux: a verdict slot, one byte for each id of the oldest WANTED; amount: ids
PARENT = 12  # home → reader: the file of a ParentTable is complete
ENTRIES = 1  # scanner → reader: slot of pool entries: a batch of OBJECT_DTYPE
DATA = 2  # reader → dedupe: slot of the reader's data pool; amount: chunks; first: the reader
EXTENTS = 3  # reader → dedupe → home: slot of the reader's rows pool; amount: rows; first: the reader
OBJECTS = 4  # the same with a batch of OBJECT_DTYPE; dedupe adds aux: a verdict slot, one byte an object
FRESH = 5  # dedupe → compressor: slot of data, aux: verdict slot; amount: chunks; first: the reader
BLOCKS = 6  # compressor → writer: slot of its blocks pool; amount: blocks; first: compressor; second: chunks
PACK_CHUNKS = 7  # writer → home: slot of its packs pool; amount: chunks of the pack that comes next
PACK = 8  # writer → home: slot of its packs pool; amount: blocks
TROUBLES = 24  # writer → home: slot of its packs pool: backends that failed, and why; amount: bytes
AILING = 25  # worker → home: slot of the worker's reports pool: what ails a backend that it read; amount: bytes

# restore and verify
PLAN = 16  # home → worker: slot of pool plan: a batch of PLAN_DTYPE
ITEMS = 17  # home → worker: slot of pool plan: a batch of ITEM_DTYPE
DONE = 18  # worker → home: slot of the worker's reports pool; amount: records healed so far; second: cells
LINKS = 21  # home → worker: the same for other names of hardlinked objects, when the first ones are made
CONTENTS = 20  # home → worker: slot of pool plan: a batch of PIECE_DTYPE
PIECES = 22  # home → worker: the same, for the hasher `amount` to hash; first: number of the task among that one's
RAW = 23  # worker → hasher: slot of the worker's raw pool; first: number of the task; second: 1 on its last slot
TASK = 19  # home → worker: slot of pool plan: a pack to be checked
HASH = 22  # home → worker: slot of pool plan: a batch of HASH_DTYPE, how far large files are written (prefixes.py)
