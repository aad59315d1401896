"""Single packs, as the manifests know them."""

from __future__ import annotations

import uuid
from typing import Any

from manifests.catalog import Catalog


def pack_row(catalog: Catalog, pack_id: uuid.UUID) -> dict[str, Any] | None:
    """The row of a pack, or None where no manifest names it."""
    catalog.use("packs")
    return next(catalog.rows("SELECT * FROM packs WHERE pack_id = ? LIMIT 1", [pack_id.bytes]), None)
