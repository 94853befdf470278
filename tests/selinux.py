"""A small SELinux policy in CIL: engine and host in ``kernel_t``, containers in ``container_t`` and apart by category.

It has what a test needs and nothing more: whatever it does not name is allowed.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests import vm

COMPILER = vm.TREE / vm.POLICIES / "usr/bin/secilc"
_CATEGORIES = 1024
# As in the kernel's security/selinux/include/initial_sid_to_string.h, in that order.
_SIDS = (
    "kernel", "security", "unlabeled", "fs", "file", "file_labels", "init", "any_socket", "port", "netif", "netmsg",
    "node", "igmp_packet", "icmp_socket", "tcp_socket", "sysctl_modprobe", "sysctl", "sysctl_fs", "sysctl_kernel",
    "sysctl_net", "sysctl_net_unix", "sysctl_vm", "sysctl_dev", "kmod", "policy", "scmp_packet", "devnull",
)  # fmt: skip
_FILE = "read write create getattr setattr append open execute entrypoint relabelfrom relabelto unlink mounton"
_DIRECTORY = "read getattr search open write add_name remove_name relabelfrom relabelto mounton"

_POLICY = """
(handleunknown allow)
(mls true)
(policycap open_perms)
(class file ({file}))
(class dir ({directory}))
(class lnk_file (read getattr relabelfrom relabelto))
(class process (transition dyntransition))
(classorder (file dir lnk_file process))
{sids}
(sidorder ({order}))
(sensitivity s0)
(sensitivityorder (s0))
{categories}
(categoryorder ({category_order}))
(sensitivitycategory s0 (range c0 c1023))
(level low (s0))
(level high (s0 (range c0 c1023)))
(levelrange all (low high))
(user system_u)
(role system_r)
(role object_r)
(userrole system_u system_r)
(userrole system_u object_r)
(userlevel system_u low)
(userrange system_u all)
(type kernel_t)
(type host_t)
(type proc_t)
(type container_t)
(type other_t)
(type container_file_t)
(type other_file_t)
(type container_ro_file_t)
(typeattribute domains)
(typeattributeset domains (kernel_t container_t other_t))
(typeattribute confined)
(typeattributeset confined (container_t other_t))
(typeattribute labelled)
(typeattributeset labelled (container_file_t other_file_t))
(typeattribute every)
(typeattributeset every (all))
(roletype system_r domains)
(roletype object_r every)
(context engine (system_u system_r kernel_t all))
(context host (system_u object_r host_t (low low)))
(context proc (system_u object_r proc_t (low low)))
{contexts}
(allow kernel_t every (file ({file})))
(allow kernel_t every (dir ({directory})))
(allow kernel_t every (lnk_file (read getattr relabelfrom relabelto)))
(allow kernel_t domains (process (transition)))
(allow confined labelled (file ({file})))
(allow confined labelled (dir ({directory})))
(allow confined every (lnk_file (read getattr)))
(allow confined container_ro_file_t (file (read getattr open execute)))
(allow confined container_ro_file_t (dir (read getattr open search)))
(allow confined self (file ({file})))
(allow confined self (dir ({directory})))
(allow confined proc_t (file (read getattr open)))
(allow confined proc_t (dir (read getattr open search)))
(mlsconstrain (file (read write open)) (or (dom h1 h2) (eq t1 kernel_t)))
(mlsconstrain (dir (read write search open)) (or (dom h1 h2) (eq t1 kernel_t)))
(fsuse xattr ext4 host)
(fsuse xattr overlay host)
(fsuse task pipefs engine)
(fsuse task sockfs engine)
(fsuse trans tmpfs host)
(fsuse trans devtmpfs host)
(fsuse trans devpts host)
(fsuse trans mqueue host)
(fsuse trans shm host)
{general}
"""


def compile_policy(folder: Path) -> Path:
    """The policy in the kernel's form. Raises CalledProcessError with the compiler's words on stderr."""
    names = [f"c{number}" for number in range(_CATEGORIES)]
    general = [f"(genfscon {name} / host)" for name in ("9p", "rootfs", "cgroup2", "securityfs", "selinuxfs", "bpf")]
    source = _POLICY.format(
        file=_FILE,
        directory=_DIRECTORY,
        sids="\n".join(f"(sid {name})" for name in _SIDS),
        order=" ".join(_SIDS),
        categories="\n".join(f"(category {name})" for name in names),
        category_order=" ".join(names),
        contexts="\n".join(f"(sidcontext {name} {'engine' if name == 'kernel' else 'host'})" for name in _SIDS),
        general="\n".join([*general, *(f"(genfscon {name} / proc)" for name in ("proc", "sysfs", "nsfs"))]),
    )
    text, binary = folder / "policy.cil", folder / "policy.33"
    text.write_text(source)
    libraries = next((vm.TREE / vm.POLICIES / "lib").glob("*-linux-gnu"))
    subprocess.run(
        [COMPILER, "-c", "33", "-o", binary, "-f", os.devnull, text],
        check=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
        timeout=60,
    )
    return binary
