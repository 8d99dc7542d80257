/**
 * What a real Linux kernel hands over, read by our decoders and taken over by our kernel; and the same scenario on our kernel.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, readSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { KHO_SCRATCH } from "../../src/abi/kho.ts";
import { LUO_KHO_ENTRY_NAME, LUO_SER } from "../../src/abi/luo.ts";
import { ByteWords } from "../../src/abi/words.ts";
import { PAGE_SIZE } from "../../src/base/units.ts";
import type { KhoData } from "./gate.ts";
import type {
  FinishedReport,
  JumpedReport,
  PreservedReport,
  RetrievedReport,
} from "./guest/reports.ts";
import { type ComparableHandover, type HandoverView, viewHandover } from "./handover-view.ts";
import {
  handOverOnOurKernel,
  khoParameters,
  type OurRun,
  readRam,
  takeOverFromLinux,
} from "./our-kernel.ts";
import { LinuxMachine, skipReason } from "./rig.ts";
import { expectedFiles, SESSIONS, sha256 } from "./scenario.ts";

const EXPECTED: ComparableHandover = {
  liveupdateNumber: 1,
  flbs: [],
  sessions: SESSIONS.map(({ name, files }) => ({ name, files: files.map(() => "memfd-v2") })),
  files: expectedFiles(),
};
const HUGE_ORDER = 9;
const FDT_HEADER_BYTES = 40;

describe("a handover of Linux", { skip: skipReason() }, () => {
  let machine: LinuxMachine;
  let preserved: PreservedReport;
  let kho: KhoData;
  let fdt: Buffer;
  let view: HandoverView;
  let ours: OurRun;
  let jumped: JumpedReport;
  let afterJump: ReadonlyMap<string, Buffer>;
  let fdtAfterJump: Buffer;
  let retrieved: RetrievedReport;
  let finished: FinishedReport;

  // One machine's life: booting takes longer than all that is asked of it.
  before(async () => {
    machine = LinuxMachine.start("handover");
    preserved = await machine.next("preserved");
    machine.goOn();
    kho = await machine.jumped();
    fdt = readAt(machine.ram, kho.fdtAddr, kho.fdtSize);
    view = viewHandover(readRam(machine.ram), khoParameters(kho));
    ours = takeOverFromLinux(machine.ram, kho);
    machine.goOn();
    jumped = await machine.next("jumped");
    afterJump = new Map([...view.frames.keys()].map((token) => [token, fileInRam(token)]));
    fdtAfterJump = readAt(machine.ram, kho.fdtAddr, kho.fdtSize);
    machine.goOn();
    retrieved = await machine.next("retrieved");
    machine.goOn();
    finished = await machine.next("finished");
    machine.goOn();
    await machine.end();
  });
  after(() => machine?.close());

  /** A file's pages, where the handover said that they lie. */
  function fileInRam(token: string): Buffer {
    const frames = view.frames.get(token) ?? [];
    return Buffer.concat(frames.map(({ pfn }) => readAt(machine.ram, pfn * PAGE_SIZE, PAGE_SIZE)));
  }

  test("has every session, file, token, size, seal, position and byte", () => {
    assert.deepEqual(view.comparable, EXPECTED);
  });

  test("lies in the pages that /proc/self/pagemap says its files have, and in no others", () => {
    for (const { token, runs, compound } of preserved.pages) {
      const told = runs.flatMap(([pfn, count]) => Array.from({ length: count }, (_, i) => pfn + i));
      const frames = view.frames.get(token) ?? [];
      assert.deepEqual(
        frames.map(({ pfn }) => pfn),
        told,
        `frames of file ${token}`,
      );
      // Folios of several pages are preserved by one bit of the tree, of their order.
      const large = frames.filter(({ order }) => order > 0).length;
      assert.equal(large, compound, `pages of large folios of file ${token}`);
    }
    const huge = SESSIONS.flatMap(({ files }) => files).find(({ hugePages }) => hugePages);
    const orders = new Set(view.frames.get(huge?.token.toString(16) ?? "")?.map((f) => f.order));
    assert.deepEqual([...orders], [HUGE_ORDER], "a memfd in huge pages was among them");
  });

  test("preserves its files' pages and those of its structures, and nothing else", () => {
    const { pages } = view;
    const told = preserved.pages.reduce(
      (sum, { runs }) => sum + runs.reduce((pages, [, count]) => pages + count, 0),
      0,
    );
    assert.equal(pages.files, told, "pages by pagemap");
    assert.equal(pages.preserved, pages.files + pages.structures, "none is unclaimed");
    assert.equal(pages.unclaimed, 0);
  });

  test("has the FDT, the subtrees and the scratch areas that debugfs shows", () => {
    const { out } = preserved;
    // debugfs goes on showing as many bytes as there were when the file was made: before LUO's subtree.
    const told = Buffer.from(out.fdt ?? "", "base64");
    assert(told.length > FDT_HEADER_BYTES, `debugfs shows ${told.length} bytes of the FDT`);
    assert.deepEqual(fdt.subarray(0, told.length), told);
    // An empty area has an address in debugfs, which means nothing.
    assert.deepEqual(
      view.scratch,
      out.scratch.map(({ addr, size }) => ({ addr: size > 0 ? addr : 0, size })),
    );
    assert.equal(kho.scratchSize, out.scratch.length * KHO_SCRATCH.sizeBytes);
    assert.deepEqual(
      view.subtrees.map(({ name }) => name).sort(),
      Object.keys(out.subtrees).sort(),
    );
    for (const { name, bytes } of view.subtrees) {
      const told = Buffer.from(out.subtrees[name], "base64");
      // Sessions get their address in reboot(2), after debugfs was read.
      const zero = name === LUO_KHO_ENTRY_NAME ? LUO_SER.offset.sessions_pa : -1;
      if (zero >= 0) {
        assert.equal(LUO_SER.read(new ByteWords(told), 0).sessions_pa, 0);
        bytes.fill(0, zero, zero + 8);
      }
      assert.deepEqual(Buffer.from(bytes), told, `subtree ${name}`);
    }
  });

  test("is taken over by our kernel, which gives every file back and leaks nothing", () => {
    assert.deepEqual(ours.files, EXPECTED.files);
    assert.deepEqual(ours.leaks, { pages: 0, pins: 0, domains: 0 });
  });

  test("is in place after the jump: FDT, and every page of every file", () => {
    assert.deepEqual(fdtAfterJump, fdt);
    assert.deepEqual(Buffer.from(jumped.in.fdt ?? "", "base64"), trimmed(fdt));
    for (const { token, sizeBytes, sha256: expected } of EXPECTED.files) {
      const bytes = afterJump.get(token);
      assert(bytes !== undefined);
      assert.equal(sha256(bytes.subarray(0, sizeBytes)), expected, `file ${token}`);
    }
  });

  test("is taken over by Linux itself with what our decoders had seen", () => {
    assert.deepEqual(retrieved.files, view.comparable.files);
  });

  test("leaves nothing to hand over when it is finished", () => {
    assert.deepEqual(finished.out.subtrees, jumped.out.subtrees);
  });
});

describe("the same scenario on our kernel", () => {
  test("hands over the same but for addresses", () => {
    let seen: HandoverView | null = null;
    const run = handOverOnOurKernel((ram, parameters) => {
      seen = viewHandover(ram, parameters);
    });
    assert(seen !== null);
    const { comparable, pages } = seen as HandoverView;
    assert.deepEqual(comparable, EXPECTED);
    assert.equal(pages.unclaimed, 0);
    assert.deepEqual(run.files, EXPECTED.files);
    assert.deepEqual(run.leaks, { pages: 0, pins: 0, domains: 0 });
  });
});

function readAt(ram: string, pa: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  const fd = openSync(ram, "r");
  assert.equal(readSync(fd, bytes, 0, lengthBytes, pa), lengthBytes);
  closeSync(fd);
  return bytes;
}

/** A flattened device tree without what follows it in its page. */
function trimmed(fdt: Buffer): Buffer {
  return fdt.subarray(0, fdt.readUInt32BE(4));
}
