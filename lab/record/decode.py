"""Records of a trace file, made of its bytes."""

from __future__ import annotations

from lab.record import BYTES_LEN, CONTEXTS, KINDS, LAYOUT, TEXTS, Record, Section, text


def decode(source: str, section: Section, events: memoryview, first: int) -> list[Record]:
    """Return the events of a section, torn ones left out, numbered from `first`.

    All in one loop, with what is alike in many records looked up: the names, the bytes shown
    (a message is shown by each hook it passes).
    """
    module = section.header.name
    hooks = [hook.name for hook in section.header.hooks]
    mask = int.from_bytes(section.header.nonce * 4, "little")
    torn = frozenset(section.torn)
    texts: dict[bytes, str] = {}
    clear: dict[tuple[bytes, int], bytes] = {(bytes(BYTES_LEN), 0): b""}
    out: list[Record] = []
    for number, fields in enumerate(LAYOUT.iter_unpack(events), first):
        if number in torn:
            continue
        (_, tsc, seq, cpu, pid, tgid, hook, kind, context, comm, skb, head, data, skb_len,
         skb_data_len, src, dst, src_phys, dst_phys, size, ret, user, sk, caller, dev, aux,
         shinfo, bytes_len, flags, iter_type, frags, masked) = fields  # fmt: skip
        # Asked for, not tried: in a function this long an exception takes as long as two records.
        shown = clear.get((masked, bytes_len))
        if shown is None:
            if len(clear) > TEXTS:
                clear.clear()
            plain = (int.from_bytes(masked, "little") ^ mask).to_bytes(BYTES_LEN, "little")
            shown = clear[masked, bytes_len] = plain[:bytes_len]
        try:
            comm, dev = texts[comm], texts[dev]
        except KeyError:
            if len(texts) > TEXTS:
                texts.clear()
            texts[comm], texts[dev] = text(comm), text(dev)
            comm, dev = texts[comm], texts[dev]
        out.append(Record(
            f"{source}#{number}", number, module, tsc, seq, cpu, pid, tgid, hooks[hook],
            KINDS[kind], CONTEXTS[context], comm, skb, head, data, skb_len, skb_data_len,
            src, dst, src_phys, dst_phys, size, ret, user, sk, caller, dev, aux, shinfo,
            flags, iter_type, frags, shown,
        ))  # fmt: skip
    return out
