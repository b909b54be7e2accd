"""Files below one location, on a local disk or in an object store. Each is written whole or not at all."""

from sweeper.storage.files import Entry, StorageError
from sweeper.storage.local import replace_file
from sweeper.storage.storage import Storage

__all__ = ["Entry", "Storage", "StorageError", "replace_file"]
