"""eBPF in a guest: which hooks there are, what its kernel offers of them, and their programs.

::

    guest RAM: symbols, text, BTF -- plan --> ways and call sites --,
                          `-------- build --> vmlinux.h, programs --+- lab.probe_bpf

Everything is by presence: a hook whose function, types or calls a kernel lacks is absent
with its reason, and nothing looks at a version.
"""

from lab.bpf.build import Programs, build, build_loader, require_tools
from lab.bpf.hooks import HOOKS, RECV, SEND, SOCKET, Hook
from lab.bpf.plan import Plan, make

__all__ = [
    "HOOKS",
    "RECV",
    "SEND",
    "SOCKET",
    "Hook",
    "Plan",
    "Programs",
    "build",
    "build_loader",
    "make",
    "require_tools",
]
