/*
 * The yardstick of the page-table benchmarks: the same loops over the same tables, in C.
 *
 * Four-level VT-d second-stage tables in an arena; a leaf run is stored entry by entry with one 64-bit release
 * store each, as a driver has to. Prints one JSON object: operations per second, of the best of many short rounds, so
 * that what else the machine does counts as little as it can.
 * Usage: second-stage MILLISECONDS_PER_CASE
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ENTRIES 512
#define WALKS 16384
#define RW 3ull
#define PS (1ull << 7)
#define ADDRESS 0x000ffffffffff000ull

static uint64_t *arena;
static size_t arena_pages, arena_used;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint64_t alloc_table(int zero)
{
	if (arena_used == arena_pages) {
		fprintf(stderr, "arena full\n");
		exit(1);
	}
	uint64_t at = (uint64_t)arena_used++ * 4096;
	if (zero)
		memset((char *)arena + at, 0, 4096);
	return at;
}

static inline _Atomic uint64_t *table_at(uint64_t pa)
{
	return (_Atomic uint64_t *)((char *)arena + pa);
}

/* Level 0 is the leaf table of 4 KiB pages. */
static inline unsigned index_at(uint64_t iova, int level)
{
	return (iova >> (12 + 9 * level)) & (ENTRIES - 1);
}

/* The table of level `target` around an address. One that will be filled whole needs no zeros first. */
static uint64_t descend(uint64_t root, uint64_t iova, int target, int fills)
{
	uint64_t table = root;
	for (int level = 3; level > target; level--) {
		_Atomic uint64_t *entry = table_at(table) + index_at(iova, level);
		uint64_t value = atomic_load_explicit(entry, memory_order_relaxed);
		if (!(value & RW)) {
			value = alloc_table(!(fills && level == target + 1)) | RW;
			atomic_store_explicit(entry, value, memory_order_release);
		}
		table = value & ADDRESS;
	}
	return table;
}

static void map(uint64_t root, uint64_t iova, uint64_t pa, uint64_t count, int level)
{
	uint64_t size = 1ull << (12 + 9 * level), bits = RW | (level ? PS : 0);
	while (count) {
		unsigned i = index_at(iova, level);
		uint64_t table = descend(root, iova, level, i == 0 && count >= ENTRIES);
		uint64_t run = ENTRIES - i < count ? ENTRIES - i : count;
		_Atomic uint64_t *entry = table_at(table) + i;
		for (uint64_t n = 0; n < run; n++)
			atomic_store_explicit(&entry[n], (pa + n * size) | bits, memory_order_release);
		iova += run * size;
		pa += run * size;
		count -= run;
	}
}

static void unmap(uint64_t root, uint64_t iova, uint64_t count, int level)
{
	uint64_t size = 1ull << (12 + 9 * level);
	while (count) {
		uint64_t table = descend(root, iova, level, 0);
		unsigned i = index_at(iova, level);
		uint64_t run = ENTRIES - i < count ? ENTRIES - i : count;
		_Atomic uint64_t *entry = table_at(table) + i;
		for (uint64_t n = 0; n < run; n++)
			atomic_store_explicit(&entry[n], 0, memory_order_release);
		iova += run * size;
		count -= run;
	}
}

static uint64_t walk(uint64_t root, uint64_t iova)
{
	uint64_t table = root;
	for (int level = 3;; level--) {
		uint64_t value = atomic_load_explicit(table_at(table) + index_at(iova, level),
						      memory_order_acquire);
		if (!(value & RW))
			return UINT64_MAX;
		if (level == 0 || (value & PS)) {
			uint64_t mask = (1ull << (12 + 9 * level)) - 1;
			return (value & ADDRESS & ~mask) | (iova & mask);
		}
		table = value & ADDRESS;
	}
}

static uint64_t iovas[WALKS];
static uint32_t random_state = 1;
static uint32_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 17;
	random_state ^= random_state << 5;
	return random_state;
}

int main(int argc, char **argv)
{
	double budget = argc > 1 ? atof(argv[1]) / 1000 : 0.5;
	static const uint64_t counts[3] = { 262144, 65536, 1024 };
	static const char *names[3] = { "4K", "2M", "1G" };
	arena_pages = 8192;
	arena = aligned_alloc(4096, arena_pages * 4096);
	if (!arena)
		return 1;
	printf("{");
	for (int level = 0; level < 3; level++) {
		double map_s = 1e9, unmap_s = 1e9, start = now();
		do {
			arena_used = 0;
			uint64_t root = alloc_table(1);
			double t0 = now();
			map(root, 0, 0, counts[level], level);
			double t1 = now();
			/* All entries of each table but one, as ours: no table is ever empty. */
			for (uint64_t n = 0; n < counts[level]; n += ENTRIES)
				unmap(root, n << (12 + 9 * level), ENTRIES - 1, level);
			double t2 = now();
			map_s = t1 - t0 < map_s ? t1 - t0 : map_s;
			unmap_s = t2 - t1 < unmap_s ? t2 - t1 : unmap_s;
		} while (now() - start < budget);
		printf("\"map%s\":%.0f,\"unmap%s\":%.0f,", names[level], counts[level] / map_s,
		       names[level],
		       (counts[level] / ENTRIES) * (double)(ENTRIES - 1) / unmap_s);
	}
	for (int level = 0; level < 3; level++) {
		arena_used = 0;
		uint64_t root = alloc_table(1), sum = 0;
		uint64_t pages = counts[level] << (9 * level);
		map(root, 0, 0, counts[level], level);
		for (int i = 0; i < WALKS; i++)
			iovas[i] = (uint64_t)(next_random() % pages) << 12;
		double walk_s = 1e9, start = now();
		do {
			double t0 = now();
			for (int i = 0; i < WALKS; i++)
				sum += walk(root, iovas[i]);
			double t1 = now();
			walk_s = t1 - t0 < walk_s ? t1 - t0 : walk_s;
		} while (now() - start < budget);
		printf("\"walk%s\":%.0f,", names[level], WALKS / walk_s);
		if (sum == 1)
			return 1;
	}
	printf("\"compiler\":\"%s\"}\n", __VERSION__);
	return 0;
}
