"""One record: what a probe noted down of one call, as values."""

from __future__ import annotations

import struct
from builtins import bytes as Bytes  # noqa: N812  # `Record.bytes` hides the name in its class
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

WORDS: Final = struct.Struct("<8Q")  # struct lab_words_args, struct lab_words_barrier
TASK_SIGNAL: Final = 0x01


class Kind(IntEnum):
    """Where in the hooked function the handler ran."""

    ENTRY = 1
    RETURN = 2
    CALLSITE = 3
    SKIPPED = 4


class Context(IntFlag):
    """What the CPU was doing."""

    SOFTIRQ = 0x01
    BH_OFF = 0x02
    IRQ_OFF = 0x04


class Flag:
    """Which fields of a record mean something: bits of `Record.flags`.

    Plain numbers: each step of the walk asks for one, and an enum's `in` takes ten times as long.
    """

    SRC_USER: Final = 0x01
    DST_USER: Final = 0x02
    SKB: Final = 0x04
    SOCKET: Final = 0x08
    ARGS: Final = 0x10
    BARRIER: Final = 0x20


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket, its file and its sock as a record found them; 0 where there was none."""

    socket: int
    sk: int
    ops: int
    inode: int
    state: int  # enum socket_state
    type: int
    socket_file: int  # socket->file
    file: int  # the file the function was about
    private_data: int  # file->private_data
    sk_socket: int  # sk->sk_socket


@dataclass(frozen=True, slots=True)
class Args:
    """Registers at entry, in the order of arguments, and rax at the return."""

    arg: tuple[int, ...]
    ret: int  # 64 bits, unsigned
    signal_pending: bool


@dataclass(frozen=True, slots=True)
class Barrier:
    """A program's registers at its syscall instruction, and what the CPU made of it."""

    di: int
    si: int
    dx: int
    number: int
    ip: int
    cs_before: int
    cs_after: int
    lstar: int


NAMES: Final = (  # as `Record` takes them
    "id", "number", "module", "tsc", "seq", "cpu", "pid", "tgid", "hook", "kind", "context",
    "comm", "skb", "head", "data", "skb_len", "skb_data_len", "src", "dst", "src_phys",
    "dst_phys", "size", "ret", "user", "sk", "caller", "dev", "aux", "shinfo", "flags",
    "iter_type", "frags", "bytes",
)  # fmt: skip


class Record:
    """One observation; 0, "" and b"" where a field does not apply.

    A plain class, of which `lab.compiled` makes a structure of C: a run has a hundred thousand,
    and each step of the walk asks for a field.  A frozen dataclass takes six times as long to make.
    """

    __slots__ = NAMES

    def __init__(  # noqa: PLR0917 - in the order of NAMES, which decoding keeps
        self,
        id: str,  # noqa: A002 - the evidence id, such as "receiver/trace.bin#41"
        number: int,  # through the file, from 0
        module: str,
        tsc: int,
        seq: int,
        cpu: int,
        pid: int,
        tgid: int,
        hook: str,  # as in the hook table: "_copy_from_iter", "virtio_net:page_to_skb>memcpy"
        kind: Kind,
        context: Context,
        comm: str,
        skb: int,
        head: int,
        data: int,
        skb_len: int,
        skb_data_len: int,
        src: int,
        dst: int,
        src_phys: int,
        dst_phys: int,
        size: int,
        ret: int,
        user: int,
        sk: int,
        caller: int,
        dev: str,
        aux: int,
        shinfo: int,
        flags: int,  # of Flag
        iter_type: int,  # the guest's enum iter_type + 1
        frags: int,
        bytes: Bytes,  # noqa: A002 - in clear
    ) -> None:
        self.id = id
        self.number = number
        self.module = module
        self.tsc = tsc
        self.seq = seq
        self.cpu = cpu
        self.pid = pid
        self.tgid = tgid
        self.hook = hook
        self.kind = kind
        self.context = context
        self.comm = comm
        self.skb = skb
        self.head = head
        self.data = data
        self.skb_len = skb_len
        self.skb_data_len = skb_data_len
        self.src = src
        self.dst = dst
        self.src_phys = src_phys
        self.dst_phys = dst_phys
        self.size = size
        self.ret = ret
        self.user = user
        self.sk = sk
        self.caller = caller
        self.dev = dev
        self.aux = aux
        self.shinfo = shinfo
        self.flags = flags
        self.iter_type = iter_type
        self.frags = frags
        self.bytes = bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and all(
            getattr(self, name) == getattr(other, name) for name in NAMES
        )

    def __hash__(self) -> int:
        return hash((self.id, self.tsc))

    @property
    def guest(self) -> str:
        return self.id.partition("/")[0]

    @property
    def socket(self) -> Socket | None:
        """What lies where other records have an skb (union in struct lab_event)."""
        if not self.flags & Flag.SOCKET:
            return None
        return Socket(
            socket=self.skb,
            sk=self.sk,
            ops=self.head,
            inode=self.data,
            state=self.skb_len,
            type=self.skb_data_len,
            socket_file=self.src,
            file=self.dst,
            private_data=self.src_phys,
            sk_socket=self.dst_phys,
        )

    @property
    def args(self) -> Args | None:
        if not self.flags & Flag.ARGS or len(self.bytes) != WORDS.size:
            return None
        *arg, ret, task = WORDS.unpack(self.bytes)
        return Args(arg=tuple(arg), ret=ret, signal_pending=bool(task & TASK_SIGNAL))

    @property
    def barrier(self) -> Barrier | None:
        if not self.flags & Flag.BARRIER or len(self.bytes) != WORDS.size:
            return None
        return Barrier(*WORDS.unpack(self.bytes))

    @property
    def function(self) -> str:
        """The hook's name without the module it lies in."""
        return self.hook.partition(":")[2] or self.hook

    def of_skb(self, skb: int, frags: int) -> Record:
        """Return the same observation, of an skb that others say it is of."""
        other = Record(*[getattr(self, name) for name in NAMES])
        other.skb = skb
        other.frags = frags
        return other
