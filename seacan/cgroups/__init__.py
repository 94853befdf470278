"""Control groups, v1, v2 or both: :func:`open` gives the :class:`Cgroup` of a path, whichever this host has.

One package for each version, one module for each controller; :mod:`seacan.cgroups.hierarchies` says what the host has
and :mod:`seacan.cgroups.cgroup` picks. Used by shims, so nothing heavy is imported here.
"""

from __future__ import annotations

from seacan.cgroups.cgroup import Cgroup, OOMWatch, of, open
from seacan.cgroups.files import Refused
from seacan.cgroups.hierarchies import Hierarchies, Hierarchy, discover
from seacan.cgroups.statistics import Statistics

__all__ = ["Cgroup", "Hierarchies", "Hierarchy", "OOMWatch", "Refused", "Statistics", "discover", "of", "open"]
