/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The message: derived from the run's seed, recognisable block by block.
 *
 * The same as lab/message.py; a unit test compiles this file and compares.
 * docs/internals.md has the layout.  Message bytes are written straight to
 * where they belong, at most eight at a time and with general registers only,
 * and the registers are zeroed after: an XMM register, a spilled word or a
 * register saved at the next system call would be one more copy of the message
 * for the census to find.
 */
#ifndef LAB_MESSAGE_H
#define LAB_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

#define LAB_TAG_SIZE		5			/* bytes */
#define LAB_BLOCK_SIZE		16			/* bytes */
#define LAB_MESSAGE_SIZE	(65536 * LAB_BLOCK_SIZE)	/* a block number has 16 bits */
#define LAB_MESSAGE_COUNT	(1 << 24)		/* an index has 24 bits */
#define LAB_PAYLOAD_MASK	0x5a

/* Zeroes the registers it used when it returns (gcc 11, clang 15). */
#if defined(__has_attribute)
#if __has_attribute(zero_call_used_regs)
#define LAB_LEAVES_NOTHING __attribute__((noinline, zero_call_used_regs("used-gpr")))
#endif
#endif
#ifndef LAB_LEAVES_NOTHING
#define LAB_LEAVES_NOTHING __attribute__((noinline))
#endif

typedef volatile uint64_t lab_word __attribute__((may_alias, aligned(1)));

static inline uint64_t lab_splitmix64(uint64_t x)
{
	uint64_t z = x + 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static inline uint64_t lab_tag(uint64_t seed)
{
	return lab_splitmix64(seed ^ 0x6c61627461670000ULL) & 0xffffffffffULL;
}

/* Writes message `index` of `size` bytes to `to`. */
static LAB_LEAVES_NOTHING __attribute__((unused)) void
lab_message_derive(uint8_t *to, uint64_t seed, uint32_t index, size_t size)
{
	uint64_t head = lab_tag(seed) | (uint64_t)index << 40;
	uint64_t state = seed + ((uint64_t)index << 20);
	uint64_t block, word;
	size_t at;

	for (at = 0, block = 0; at < size; at += LAB_BLOCK_SIZE, block++) {
		word = (block & 0xffff) | lab_splitmix64(state + block + 1) << 16;
		if (size - at >= LAB_BLOCK_SIZE) {
			*(lab_word *)(to + at) = head;
			*(lab_word *)(to + at + 8) = word;
		} else {
			volatile uint8_t *byte = to + at;
			size_t i;

			for (i = 0; i < size - at; i++)
				byte[i] = (i < 8 ? head : word) >> 8 * (i & 7);
		}
	}
}

static inline int lab_nibble(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	if (digit >= 'a' && digit <= 'f')
		return digit - 'a' + 10;
	if (digit >= 'A' && digit <= 'F')
		return digit - 'A' + 10;
	return -1;
}

/*
 * Writes a user's own payload, given as `length` pairs of hex digits of bytes
 * XORed with the mask, repeated or cut to `size` bytes.
 */
static LAB_LEAVES_NOTHING __attribute__((unused)) void
lab_message_unmask(uint8_t *to, const char *masked, size_t length, size_t size)
{
	volatile uint8_t *byte = to;
	size_t i, from = 0;

	for (i = 0; i < size; i++) {
		byte[i] = (lab_nibble(masked[2 * from]) << 4 | lab_nibble(masked[2 * from + 1])) ^
			  LAB_PAYLOAD_MASK;
		if (++from == length)
			from = 0;
	}
}

#define LAB_DIGEST_START 0xcbf29ce484222325ULL

/* FNV-1a 64; `digest` is LAB_DIGEST_START or what an earlier part gave. */
static LAB_LEAVES_NOTHING __attribute__((unused)) uint64_t
lab_digest(uint64_t digest, const uint8_t *bytes, size_t size)
{
	const volatile uint8_t *byte = bytes;
	size_t i;

	for (i = 0; i < size; i++)
		digest = (digest ^ byte[i]) * 0x100000001b3ULL;
	return digest;
}

#endif
