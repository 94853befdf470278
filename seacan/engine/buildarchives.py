"""Archives of a build's layers, in the form that an output or a cache asks for.

What is there already is taken, as BuildKit has it: an archive in which a base image or an imported layer came stays as
it is unless ``force-compression`` asks for another form. What this engine has made itself is always in the form asked,
and so is a base image's layer that is not compressed: an archive of ``docker save`` says nothing of how to push it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from seacan.build.cache import Layer
from seacan.errors import System
from seacan.images.commit import convert_layer, pack_layer
from seacan.images.manifest import layer_compression
from seacan.images.store import LayerBlob, Lease
from seacan.storage.compression import Compression, Encoding

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


def known(engine: Engine, layer: Layer, encoding: Encoding) -> LayerBlob | None:
    """The archive of a layer of the cache's that fits, as far as is remembered; its blob may be gone."""
    cache = engine.builds.cache
    came = cache.archive(layer)
    if came is not None and not encoding.force:
        return came
    return cache.archive(layer, encoding.name)


async def archive(
    engine: Engine, layer: Layer, lease: Lease, encoding: Encoding, stored: LayerBlob | None = None
) -> LayerBlob:
    """The archive of a layer that is here and whose digest is known; made if need be, and kept while ``lease`` is.

    ``stored`` is one that an image has of it.

    :raises System: its files have changed.
    """
    images, cache = engine.images, engine.builds.cache
    remembered = None if layer.base else known(engine, layer, encoding)
    source: LayerBlob | None = None
    for blob in (remembered, stored, None if layer.base else cache.archive(layer)):
        if blob is None:
            continue
        lease.add(blob.digest)
        if not images.blobs.contains(blob.digest):
            continue
        same = encoding.level is None and layer_compression(blob.media_type) == encoding.kind.value
        plain = layer_compression(blob.media_type) == Compression.NONE.value
        if blob is remembered or same or (layer.base and not encoding.force and not plain):
            return blob
        source = source or blob
    if source is not None:
        made = await convert_layer(images, source, lease, encoding)
    else:
        made, diff_id = await pack_layer(images, os.path.realpath(layer.path), lease, encoding)
        if diff_id != layer.diff_id:
            raise System(f"layer {layer.id} has changed on disk: its digest is {diff_id} now")
    if not layer.base:
        cache.set_archive(layer, made, encoding.name)
    return made
