"""The host's network interfaces that a container gets: ``linux.netDevices`` of the runtime specification 1.3.

They are moved with their addresses, get the name they are to have, and are set up. What becomes of them when the
namespace ends is the kernel's: physical ones come back to the host, virtual ones are gone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from seacan.linux import rtnetlink as rt
from seacan.linux import syscalls as k
from seacan.linux.netlink import NETLINK_ROUTE, NetlinkSocket
from seacan.runtime.failure import step
from seacan.runtime.spec import LinuxNetDevice


def move(devices: Mapping[str, LinuxNetDevice], netns: int) -> None:
    """Move interfaces, by their names here, into the network namespace of a descriptor.

    Only for a process with one thread, which is inside for a moment. Raises SetupFailed.
    """
    with NetlinkSocket(NETLINK_ROUTE) as here, _inside(netns) as there:
        for name, device in devices.items():
            inside = device.name or name
            with step(f"move netdevice {name} to {inside}"):
                found = rt.link(here, name)
                if found is None:
                    raise OSError(f"link {name} not found")
                addresses = [address for _, address in rt.addresses(here, found.index) if not address.ip.is_link_local]
                here.request([rt.set_link(found.index, name=inside, netns=netns)])
                moved = rt.link(there, inside)
                if moved is None:
                    raise OSError(f"link {inside} not found")
                there.request(
                    [
                        *(rt.new_address(moved.index, address, replace=True) for address in addresses),
                        rt.set_link(moved.index, up=True),
                    ]
                )


def _inside(netns: int) -> NetlinkSocket:
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with step("failed to enter the network namespace"):
            k.setns(netns, k.CLONE_NEWNET)
        try:
            return NetlinkSocket(NETLINK_ROUTE)
        finally:
            k.setns(own, k.CLONE_NEWNET)
    finally:
        os.close(own)
