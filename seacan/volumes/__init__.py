"""Volumes: storage that outlives containers. :class:`seacan.volumes.volumes.Volumes` is all of them."""
