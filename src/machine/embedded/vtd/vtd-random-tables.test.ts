/**
 * Random tables, good and broken ones, against a reference walker that shares nothing with the unit: whole
 * 64-bit words, the specification's bit numbers written out, no cache.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CONTEXT_FPD } from "../../../abi/vtd/root-context.ts";
import { Prng } from "../../../base/prng.ts";
import type { Ram } from "../../physical-memory.ts";
import { DEFAULT_VTD_CAPABILITIES, type VtdCapabilities } from "./capabilities.ts";
import { NOT_RAM, VtdRig } from "./test-rig.ts";

interface Model {
  haw: bigint;
  sagaw: number;
  mgaw: number;
  sllps: number;
  sc: boolean;
  pt: boolean;
  didBits: bigint;
}

const RESERVED_ABOVE = (haw: bigint) => (1n << 64n) - (1n << haw);
const bits = (value: bigint, high: bigint, low: bigint) =>
  (value >> low) & ((1n << (high - low + 1n)) - 1n);

function qword(memory: Ram, pa: bigint): bigint | null {
  return memory.contains(Number(pa), 8) ? memory.loadBig64(Number(pa)) : null;
}

/** What an access must give: a physical address, or a negative fault reason. */
function reference(
  memory: Ram,
  model: Model,
  root: bigint,
  sourceId: number,
  iova: bigint,
  isWrite: boolean,
): bigint {
  const rootPa = root + 16n * BigInt(sourceId >> 8);
  const rootLow = qword(memory, rootPa);
  if (rootLow === null) return -8n;
  const rootHigh = memory.loadBig64(Number(rootPa + 8n));
  if ((rootLow & 1n) === 0n) return -1n;
  if ((rootLow & (0xffen | RESERVED_ABOVE(model.haw))) !== 0n || rootHigh !== 0n) return -0xan;

  const contextPa = (rootLow & ~0xfffn) + 16n * BigInt(sourceId & 0xff);
  const low = qword(memory, contextPa);
  if (low === null) return -9n;
  const high = memory.loadBig64(Number(contextPa + 8n));
  if ((low & 1n) === 0n) return -2n;
  if ((low & (0xff0n | RESERVED_ABOVE(model.haw))) !== 0n) return -0xbn;
  if (bits(high, 7n, 7n) !== 0n || bits(high, 63n, 24n) !== 0n) return -0xbn;
  if (bits(high, 23n, 8n) >> model.didBits !== 0n) return -0xbn;
  const aw = Number(bits(high, 2n, 0n));
  if (((model.sagaw >> aw) & 1) === 0) return -3n;
  const width = BigInt(Math.min(model.mgaw, 30 + 9 * aw));
  const type = bits(low, 3n, 2n);
  if (type === 2n) {
    if (!model.pt || model.sagaw >> (aw + 1) !== 0) return -3n;
    return iova >> width === 0n ? iova : -4n;
  }
  if (type !== 0n) return -3n;
  if (iova >> width !== 0n) return -4n;

  let table = low & ~0xfffn;
  let rights = 3n;
  for (let level = aw + 2; ; level--) {
    const shift = 12n + 9n * BigInt(level - 1);
    const entry = qword(memory, table + 8n * bits(iova, shift + 8n, shift));
    if (entry === null) return level === aw + 2 ? -3n : -7n;
    const pageSize = (entry & 0x80n) !== 0n;
    const leaf = level === 1 || (level <= 3 && pageSize);
    if ((entry & 3n) !== 0n) {
      let reserved = (1n << 62n) | (bits(RESERVED_ABOVE(model.haw), 51n, 0n) & ~0xfffn);
      if (!leaf || !model.sc) reserved |= 0x800n;
      if (level === 4) reserved |= 0x80n;
      if (leaf && level > 1) {
        reserved |= (1n << shift) - 0x1000n;
        if (((model.sllps >> (level - 2)) & 1) === 0) reserved |= 0x80n;
      }
      if ((entry & reserved) !== 0n) return -0xcn;
    }
    rights &= entry;
    if ((rights & (isWrite ? 2n : 1n)) === 0n) return isWrite ? -5n : -6n;
    const address = entry & 0x000f_ffff_ffff_f000n;
    if (leaf) {
      const pa = address + (iova & ((1n << shift) - 1n));
      return pa >= 0xfee0_0000n && pa <= 0xfeef_ffffn ? -0xen : pa;
    }
    table = address;
  }
}

const SOURCE_IDS = [0x0000, 0x0001, 0x0108, 0x0109, 0x0202, 0xffff, 0x8000];

/** A unit that lacks this or that. */
function capabilitiesOf(prng: Prng): VtdCapabilities {
  const { cap, ecap } = DEFAULT_VTD_CAPABILITIES;
  const sagaw = [2, 4, 6][prng.below(3)];
  return {
    ...DEFAULT_VTD_CAPABILITIES,
    cap: {
      ...cap,
      sagaw,
      mgaw: sagaw === 2 ? 39 : [42, 48][prng.below(2)],
      sllps: [0, 1, 3, 3][prng.below(4)],
      nd: [0, 2, 6][prng.below(3)],
    },
    ecap: { ...ecap, sc: prng.oneIn(2), pt: prng.oneIn(2) },
    hostAddressWidth: [39, 46, 52][prng.below(3)],
    iotlbEntries: 16,
    contextCacheEntries: 8,
  };
}

/** Tables over few pages, so that walks share and cross them; one word in some is broken. */
function build(rig: VtdRig, prng: Prng, sourceIds: readonly number[]): void {
  const { memory } = rig;
  const pages = Array.from({ length: 12 }, () => rig.page());
  const anyPage = () => pages[prng.below(pages.length)];
  const put = (pa: number, low: number, high: number) => {
    memory.store32(pa, low >>> 0);
    memory.store32(pa + 4, high >>> 0);
  };
  const target = () => (prng.oneIn(12) ? NOT_RAM : anyPage());
  const flip = (at: number, oneIn: number, sparedLow = 0) => {
    if (!prng.oneIn(oneIn)) return;
    const word = prng.below(2);
    const bit = (1 << prng.below(32)) & ~(word === 0 ? sparedLow : 0);
    memory.store32(at + 4 * word, (memory.load32(at + 4 * word) ^ bit) >>> 0);
  };
  for (const page of pages) {
    for (const index of [0, 1, 2, 3, 511]) {
      const at = page + 8 * index;
      const rights = [3, 3, 3, 3, 1, 2, 0][prng.below(7)];
      const kind = prng.below(6);
      if (kind === 0) put(at, 0x80 | rights | (prng.below(3) << 30), prng.below(0x80));
      else if (kind === 1) put(at, 0x80 | rights | (prng.below(0x200) << 21), 0);
      else {
        const pa = target();
        put(at, (pa % 2 ** 32) + rights, Math.floor(pa / 2 ** 32));
      }
      flip(at, 8);
    }
  }
  for (const sourceId of sourceIds) {
    if (prng.oneIn(8)) continue;
    // Contexts with one domain-id must have one table (§6.2.3), so flips spare DID and CTP; with FPD no reason would be told.
    const at = rig.setContext(sourceId, {
      secondStageTable: target(),
      addressWidth: prng.oneIn(2) ? 1 : 2,
      translationType: prng.oneIn(6) ? 2 : 0,
      domainId: 1 + SOURCE_IDS.indexOf(sourceId),
    });
    flip(at, 5, CONTEXT_FPD);
    flip(at + 8, 5, 0x7fff00);
    flip(rig.rootTable + 16 * (sourceId >> 8), 8, 0xfffff000);
  }
}

test("translate() agrees with a reference walker on random tables", () => {
  let translated = 0;
  const reasons = new Set<number>();
  fc.assert(
    fc.property(fc.integer(), (seed) => {
      const prng = new Prng(seed);
      const capabilities = capabilitiesOf(prng);
      const rig = new VtdRig(capabilities);
      build(rig, prng, SOURCE_IDS);
      rig.enable();
      const root = BigInt(rig.rootTable);
      const { cap, ecap } = capabilities;
      const model: Model = {
        haw: BigInt(capabilities.hostAddressWidth),
        sagaw: cap.sagaw,
        mgaw: cap.mgaw,
        sllps: cap.sllps,
        sc: ecap.sc,
        pt: ecap.pt,
        didBits: BigInt(4 + 2 * cap.nd),
      };
      for (let i = 0; i < 60; i++) {
        const sourceId = SOURCE_IDS[prng.below(SOURCE_IDS.length)];
        const index = () => [0, 0, 1, 2, 3, 511, 4][prng.below(7)];
        let iova = prng.below(4096);
        for (let level = 0; level < 4; level++)
          iova += (level === 3 && prng.oneIn(2) ? 0 : index()) * 2 ** (12 + 9 * level);
        if (prng.oneIn(20)) iova += 2 ** 48;
        const isWrite = prng.oneIn(2);
        const expected = reference(rig.memory, model, root, sourceId, BigInt(iova), isWrite);
        const got = rig.signedOutcome(sourceId, iova, isWrite);
        assert.equal(got, Number(expected), `${sourceId.toString(16)} ${iova.toString(16)}`);
        if (expected < 0n) reasons.add(-Number(expected));
        else translated++;
        // Some runs change tables under the caches; with a flush the walker must agree all the same.
        if (prng.oneIn(10)) {
          build(rig, prng, [sourceId]);
          rig.flushContexts(1);
          rig.flushIotlb(1);
        }
      }
    }),
    { numRuns: 250, includeErrorInReport: true },
  );
  // The generator reaches what it is for.
  assert.ok(translated > 500, `${translated} translations`);
  for (const reason of [1, 2, 3, 4, 5, 6, 7, 9, 0xa, 0xb, 0xc])
    assert.ok(reasons.has(reason), `reason ${reason} was never reached`);
});
