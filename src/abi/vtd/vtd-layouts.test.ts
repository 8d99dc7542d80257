import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ByteWords } from "../words.ts";
import { decodeFaultRecord, FAULT_WRITE, FRCD_W3_F, FRCD_W3_T, faultReasonText } from "./faults.ts";
import {
  CONTEXT_CACHE_RESERVED,
  contextCacheDescriptor,
  DESCRIPTOR_CONTEXT_CACHE,
  DESCRIPTOR_IOTLB,
  DESCRIPTOR_WAIT,
  descriptorType,
  IOTLB_RESERVED,
  iotlbDescriptor,
  loadDescriptor,
  storeDescriptor,
  WAIT_RESERVED,
  waitDescriptor,
} from "./invalidation.ts";
import {
  decodeCap,
  decodeEcap,
  encodeCap,
  encodeEcap,
  GRANULARITY_DEVICE,
  GRANULARITY_PAGE,
} from "./registers.ts";
import {
  AW_39_BIT,
  AW_48_BIT,
  addressWidthBits,
  addressWidthLevels,
  contextAddressWidth,
  contextDomainId,
  contextEntry,
  contextEntryAddress,
  contextEntryHasReserved,
  contextTranslationType,
  reservedHighBits,
  rootEntry,
  rootEntryAddress,
  rootEntryHasReserved,
  TT_MULTI_LEVEL,
  TT_PASS_THROUGH,
  tableAddress,
} from "./root-context.ts";
import {
  SS_PS,
  SS_R,
  SS_SNP,
  SS_W,
  ssAddress,
  ssEntryHigh,
  ssEntryLow,
  ssIndex,
  ssIsLeaf,
  ssIsPresent,
  ssReservedBits,
  ssSpanBytes,
} from "./second-stage.ts";

test("entries of root and context table have the places of §9.1 and §9.3", () => {
  assert.deepEqual(rootEntry(0x12_3456_7000), [0x34567001, 0x12, 0, 0]);
  assert.deepEqual(
    contextEntry({
      translationType: TT_MULTI_LEVEL,
      secondStageTable: 0x12_fedc_b000,
      addressWidth: AW_48_BIT,
      domainId: 0xabcd,
      avail: 5,
      faultProcessingDisable: true,
    }),
    [0xfedcb003, 0x12, 0xabcd2a, 0],
  );
  const passThrough = contextEntry({
    translationType: TT_PASS_THROUGH,
    secondStageTable: 0,
    addressWidth: AW_39_BIT,
    domainId: 1,
  });
  assert.deepEqual(passThrough, [0b1001, 0, 0x101, 0]);
  assert.equal(rootEntryAddress(0x10000, 0xab_cd), 0x10000 + 0xab * 16);
  assert.equal(contextEntryAddress(0x10000, 0xab_cd), 0x10000 + 0xcd * 16);
  assert.equal(addressWidthLevels(AW_39_BIT), 3);
  assert.equal(addressWidthBits(AW_48_BIT), 48);
});

test("a context entry reads back as it was made", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 40 - 1 }),
      fc.constantFrom(AW_39_BIT, AW_48_BIT),
      fc.constantFrom(TT_MULTI_LEVEL, TT_PASS_THROUGH),
      fc.integer({ min: 0, max: 0xffff }),
      fc.integer({ min: 0, max: 15 }),
      (pfn, addressWidth, translationType, domainId, avail) => {
        const words = contextEntry({
          translationType,
          secondStageTable: pfn * 4096,
          addressWidth,
          domainId,
          avail,
        });
        assert.deepEqual([...Uint32Array.from(words)], words);
        assert.equal(tableAddress(words[0], words[1]), pfn * 4096);
        assert.equal(contextAddressWidth(words[2]), addressWidth);
        assert.equal(contextTranslationType(words[0]), translationType);
        assert.equal(contextDomainId(words[2]), domainId);
        assert.equal(contextEntryHasReserved(...words, 52, 16), false);
      },
    ),
  );
});

test("every reserved bit of root and context entries is found, no other", () => {
  const good = rootEntry(0x1000);
  const context = contextEntry({
    translationType: TT_MULTI_LEVEL,
    secondStageTable: 0x1000,
    addressWidth: AW_39_BIT,
    domainId: 1,
  });
  const haw = 46;
  for (let bit = 0; bit < 128; bit++) {
    const word = bit >>> 5;
    const flip = (words: readonly number[]) =>
      words.map((w, i) => (i === word ? (w ^ (1 << (bit & 31))) >>> 0 : w)) as [
        number,
        number,
        number,
        number,
      ];
    const rootReserved = (bit >= 1 && bit <= 11) || bit >= haw;
    assert.equal(rootEntryHasReserved(...flip(good), haw), rootReserved, `root bit ${bit}`);
    const contextReserved =
      (bit >= 4 && bit <= 11) || (bit >= haw && bit < 64) || bit === 71 || bit >= 64 + 8 + 12;
    assert.equal(
      contextEntryHasReserved(...flip(context), haw, 12),
      contextReserved,
      `context bit ${bit}`,
    );
  }
  assert.equal(reservedHighBits(32), 0xffffffff);
  assert.equal(reservedHighBits(52), 0xfff00000);
});

test("second-stage entries keep address and bits apart", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 40 - 1 }), (pfn) => {
      const low = ssEntryLow(pfn * 4096, SS_R | SS_W | SS_PS);
      const high = ssEntryHigh(pfn * 4096);
      assert.equal(ssAddress(low, high), pfn * 4096);
      assert.equal(BigInt(high) * 2n ** 32n + BigInt(low), BigInt(pfn) * 4096n + 0x83n);
    }),
  );
});

test("ssIndex() is the nine bits of the address that select in a level", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 48 - 1 }),
      fc.integer({ min: 0, max: 3 }),
      (iova, level) => {
        const shift = BigInt(12 + 9 * level);
        assert.equal(ssIndex(iova, level), Number((BigInt(iova) >> shift) & 511n));
        assert.equal(ssSpanBytes(level), Number(1n << shift));
      },
    ),
  );
});

test("reserved bits of second-stage entries follow the capabilities", () => {
  const all = ssReservedBits(52, 3, true);
  assert.deepEqual([...all.tableLow], [0, SS_SNP, SS_SNP, SS_SNP | SS_PS]);
  assert.deepEqual([...all.leafLow].slice(0, 3), [0, 0x1ff000, 0x3ffff000]);
  assert.equal(all.high, 1 << 30);
  const least = ssReservedBits(39, 0, false);
  assert.deepEqual([...least.leafLow].slice(0, 3), [0x800, 0x1ff880, 0x3ffff880]);
  assert.equal(least.high, 0x400fff80);
  assert.equal(ssIsPresent(SS_PS), false);
  assert.equal(ssIsLeaf(SS_R | SS_PS, 3), false);
  assert.equal(ssIsLeaf(SS_R | SS_PS, 2), true);
  assert.equal(ssIsLeaf(SS_R, 0), true);
});

test("CAP and ECAP have the places of §11.4.2 and §11.4.3", () => {
  // What QEMU's unit reports by default: 48 and 39 bit, 2M and 1G, one record at 0x220, MAMV 18, drains, 64K domains.
  const qemu = 0x00d2_008c_222f_0606n;
  const cap = decodeCap(Number(qemu & 0xffffffffn), Number(qemu >> 32n));
  assert.deepEqual(cap, {
    nd: 6,
    rwbf: false,
    cm: false,
    sagaw: 6,
    mgaw: 48,
    faultRecordingOffset: 0x220,
    sllps: 3,
    psi: true,
    nfr: 1,
    mamv: 18,
    dwd: true,
    drd: true,
  });
  assert.deepEqual(encodeCap(cap), [0x222f0606, 0x00d2008c]);
  const ecap = decodeEcap(0xf42, 0);
  assert.equal(ecap.qi && ecap.pt && !ecap.dt, true);
  assert.equal(ecap.iotlbOffset, 0xf0);
  fc.assert(
    fc.property(
      fc.record(
        {
          nd: fc.integer({ min: 0, max: 6 }),
          rwbf: fc.boolean(),
          cm: fc.boolean(),
          sagaw: fc.integer({ min: 0, max: 31 }),
          mgaw: fc.integer({ min: 1, max: 64 }),
          faultRecordingOffset: fc.integer({ min: 0, max: 0x3ff }).map((n) => n * 16),
          sllps: fc.integer({ min: 0, max: 15 }),
          psi: fc.boolean(),
          nfr: fc.integer({ min: 1, max: 256 }),
          mamv: fc.integer({ min: 0, max: 63 }),
          dwd: fc.boolean(),
          drd: fc.boolean(),
        },
        { noNullPrototype: true },
      ),
      (value) => assert.deepEqual(decodeCap(...encodeCap(value)), value),
    ),
  );
  fc.assert(
    fc.property(
      fc.record(
        {
          coherent: fc.boolean(),
          qi: fc.boolean(),
          dt: fc.boolean(),
          ir: fc.boolean(),
          pt: fc.boolean(),
          sc: fc.boolean(),
          iotlbOffset: fc.integer({ min: 0, max: 0x3ff }).map((n) => n * 16),
        },
        { noNullPrototype: true },
      ),
      (value) => assert.deepEqual(decodeEcap(...encodeEcap(value)), value),
    ),
  );
});

test("descriptors have the places of §6.5.2 and no reserved bit set", () => {
  const context = contextCacheDescriptor(GRANULARITY_DEVICE, 0xfffe, 0x8123, 3);
  assert.deepEqual(context, [0xfffe0031, 0x38123, 0, 0]);
  const iotlb = iotlbDescriptor(GRANULARITY_PAGE, 0x8001, 0xabcd_8020_0000, 9);
  assert.deepEqual(iotlb, [0x800100f2, 0, 0x80200009, 0xabcd]);
  const wait = waitDescriptor(0x12_8000_0004, 0xffffffff);
  assert.deepEqual(wait, [0x65, 0xffffffff, 0x80000004, 0x12]);
  for (const [descriptor, type, reserved] of [
    [context, DESCRIPTOR_CONTEXT_CACHE, CONTEXT_CACHE_RESERVED],
    [iotlb, DESCRIPTOR_IOTLB, IOTLB_RESERVED],
    [wait, DESCRIPTOR_WAIT, WAIT_RESERVED],
  ] as const) {
    assert.equal(descriptorType(descriptor[0]), type);
    // The type's upper bits, 11:9, are among the reserved ones of these types.
    for (let i = 0; i < 4; i++) assert.equal(descriptor[i] & reserved[i], 0);
    const words = new ByteWords(new Uint8Array(32));
    storeDescriptor(words, 16, descriptor);
    assert.deepEqual(loadDescriptor(words, 16), descriptor);
  }
  assert.equal(descriptorType(0x201), 0x11);
});

test("decodeFaultRecord() reads a record, and null when F is clear", () => {
  assert.equal(decodeFaultRecord(0, 0, 0x28, FAULT_WRITE), null);
  assert.deepEqual(decodeFaultRecord(0xfffff000, 0x7f, 0x1028, FRCD_W3_F | FAULT_WRITE), {
    sourceId: 0x1028,
    address: 0x7f_ffff_f000,
    isWrite: true,
    reason: FAULT_WRITE,
  });
  assert.equal(decodeFaultRecord(0, 0, 0, FRCD_W3_F | FRCD_W3_T | 6)?.isWrite, false);
  assert.equal(faultReasonText(5), "0x5 (no write access)");
  assert.equal(faultReasonText(0x99), "0x99 (unknown)");
});
