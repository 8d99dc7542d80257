/**
 * What a real Linux kernel hands over, read by the inspector and taken over by our kernel; and the same scenario on our
 * kernel. docs/linux-tests.md says what is compared with what.
 */
import assert from "node:assert/strict";
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { KHO_SCRATCH, readScratch } from "../../src/abi/kho.ts";
import { LUO_KHO_ENTRY_NAME, LUO_SER } from "../../src/abi/luo.ts";
import { ByteWords } from "../../src/abi/words.ts";
import { PAGE_SIZE } from "../../src/base/units.ts";
import { openImage } from "../../src/inspect/image/open-image.ts";
import type { KhoData } from "./gate.ts";
import type {
  FinishedReport,
  JumpedReport,
  PreservedReport,
  RetrievedReport,
} from "./guest/reports.ts";
import { type ComparableHandover, type HandoverView, viewHandover } from "./handover-view.ts";
import { holdfast, type Outcome } from "./holdfast.ts";
import {
  handOverOnOurKernel,
  khoParameters,
  type OurRun,
  takeOverFromLinux,
} from "./our-kernel.ts";
import { skipReason } from "./rig.ts";
import { expectedContent, expectedFiles, SESSIONS, sha256 } from "./scenario.ts";
import { ScenarioMachine } from "./scenario-machine.ts";

const EXPECTED: ComparableHandover = {
  liveupdateNumber: 1,
  flbs: [],
  sessions: SESSIONS.map(({ name, files }) => ({ name, files: files.map(() => "memfd-v2") })),
  files: expectedFiles(),
};
/** F_SEAL_*, by bit. */
const SEAL_NAMES = ["SEAL", "SHRINK", "GROW", "WRITE", "FUTURE_WRITE", "EXEC"];
const HUGE_ORDER = 9;
const FDT_HEADER_BYTES = 40;

describe("a handover of Linux", { skip: skipReason() }, () => {
  let folder: string;
  let machine: ScenarioMachine;
  let preserved: PreservedReport;
  let frozen: HandoverView;
  let commands: ReturnType<typeof runCommands>;
  let kho: KhoData;
  let fdt: Buffer;
  let scratch: readonly { readonly addr: number; readonly size: number }[];
  let entered: HandoverView;
  let verified: Outcome;
  let takeOver: () => OurRun;
  let jumped: JumpedReport;
  let prepared: HandoverView;
  let fdtAfterJump: Buffer;
  let filesAfterJump: ReadonlyMap<string, Buffer>;
  let retrieved: RetrievedReport;
  let finished: FinishedReport;

  // One machine's life: booting takes longer than all that is asked of it.
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), "holdfast-"));
    machine = await ScenarioMachine.start("handover");
    const { ram } = machine;
    preserved = await machine.next("preserved");
    const luo = viewHandover(ram).subtrees.find(({ name }) => name === LUO_KHO_ENTRY_NAME);
    assert(luo !== undefined);
    machine.goOn();
    await machine.frozen(luo.pa);
    frozen = viewHandover(ram);
    commands = runCommands(ram, folder);
    machine.goOn();
    kho = await machine.jumped();
    fdt = readAt(ram, kho.fdtAddr, kho.fdtSize);
    scratch = scratchOf(ram, kho);
    entered = viewHandover(ram);
    verified = holdfast("verify", ram);
    takeOver = settled(() => takeOverFromLinux(ram, khoParameters(kho)));
    machine.goOn();
    jumped = await machine.next("jumped");
    prepared = viewHandover(ram);
    fdtAfterJump = readAt(ram, kho.fdtAddr, kho.fdtSize);
    filesAfterJump = new Map([...frozen.frames].map(([token, f]) => [token, pagesOf(ram, f)]));
    machine.goOn();
    retrieved = await machine.next("retrieved");
    machine.goOn();
    finished = await machine.next("finished");
    machine.goOn();
    await machine.ended();
  });
  after(() => {
    machine?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  test("has every session, file, token, size, seal, position and byte, before the jump", () => {
    assert.deepEqual(frozen.comparable, EXPECTED);
  });

  test("breaks no rule, and has no preserved page that nothing names", () => {
    for (const view of [frozen, entered]) {
      assert.deepEqual(view.problems, []);
      assert.equal(view.pages.unclaimed, 0);
    }
  });

  test("is shown by `holdfast inspect`: every session, token, size, seal and position", () => {
    const { status, stdout, stderr } = commands.inspect;
    assert.deepEqual({ status, stderr }, { status: 0, stderr: "" });
    const { liveUpdate, problems, preserved } = JSON.parse(stdout);
    assert.deepEqual(problems, []);
    assert.equal(preserved.bytes, frozen.pages.preserved * PAGE_SIZE);
    assert.equal(preserved.unclaimedBytes, 0);
    const shown = liveUpdate.sessions.map(({ name, files }: ShownSession) => ({
      name,
      files: files.map(({ token, compatible, content: { kind, sizeBytes, position, seals } }) => ({
        token,
        compatible,
        kind,
        sizeBytes,
        position,
        seals,
      })),
    }));
    const planned = SESSIONS.map(({ name, files }) => ({
      name,
      files: files.map(({ token, sizeBytes, position, seals }) => ({
        token: `0x${token.toString(16)}`,
        compatible: "memfd-v2",
        kind: "memfd",
        sizeBytes,
        position,
        seals: SEAL_NAMES.filter((_name, bit) => (seals & (1 << bit)) !== 0),
      })),
    }));
    assert.deepEqual(shown, planned);
  });

  test("gives its files to `holdfast inspect --extract`, byte for byte", () => {
    const files = SESSIONS.flatMap((session) => session.files);
    assert.equal(commands.extracted.length, files.length);
    for (const [i, { outcome, bytes }] of commands.extracted.entries()) {
      assert.equal(outcome.status, 0, outcome.stderr);
      const { token } = files[i];
      assert(bytes?.equals(expectedContent(files[i])), `file ${token.toString(16)}`);
    }
  });

  test("passes `holdfast verify`, before the jump and after it", () => {
    for (const { status, stdout, stderr } of [commands.verify, verified])
      assert.deepEqual({ status, stderr }, { status: 0, stderr: "" }, stdout);
  });

  test("is found by a search where the boot parameters say that it is", () => {
    assert.equal(entered.fdtPa, kho.fdtAddr);
  });

  test("is the same after the jump, before the next kernel's first instruction", () => {
    assert.deepEqual(entered, frozen);
  });

  test("lies in the pages that /proc/self/pagemap says its files have, and in no others", () => {
    for (const { token, runs, compound } of preserved.pages) {
      const told = runs.flatMap(([pfn, count]) => Array.from({ length: count }, (_, i) => pfn + i));
      const frames = frozen.frames.get(token) ?? [];
      const pfns = frames.map(({ pfn }) => pfn);
      assert.deepEqual(pfns, told, `frames of file ${token}`);
      // A folio of several pages is one bit of the tree, of its order.
      const large = frames.filter(({ order }) => order > 0).length;
      assert.equal(large, compound, `pages of large folios of file ${token}`);
    }
    const huge = SESSIONS.flatMap(({ files }) => files).find(({ hugePages }) => hugePages);
    const frames = frozen.frames.get(huge?.token.toString(16) ?? "") ?? [];
    const orders = new Set(frames.map(({ order }) => order));
    assert.deepEqual([...orders], [HUGE_ORDER], "a memfd in huge pages is among them");
    const told = preserved.pages.flatMap(({ runs }) => runs.map(([, count]) => count));
    assert.equal(
      frozen.pages.files,
      told.reduce((sum, count) => sum + count, 0),
    );
  });

  test("has the FDT, the subtrees and the scratch areas that debugfs shows", () => {
    const { out } = preserved;
    // debugfs goes on showing as many bytes as there were when the file was made: before LUO's subtree.
    const told = Buffer.from(out.fdt ?? "", "base64");
    assert(told.length > FDT_HEADER_BYTES, `debugfs shows ${told.length} bytes of the FDT`);
    assert.deepEqual(fdt.subarray(0, told.length), told);

    // An empty area has an address in debugfs, which means nothing.
    const areas = out.scratch.map(({ addr, size }) => ({ addr: size > 0 ? addr : 0, size }));
    assert.deepEqual(scratch, areas);
    assert.equal(kho.scratchSize, out.scratch.length * KHO_SCRATCH.sizeBytes);

    const names = frozen.subtrees.map(({ name }) => name);
    assert.deepEqual(names.sort(), Object.keys(out.subtrees).sort());
    for (const { name, bytes } of frozen.subtrees) {
      const before = Buffer.from(out.subtrees[name], "base64");
      const now = Buffer.from(bytes);
      if (name === LUO_KHO_ENTRY_NAME) {
        // Written in reboot(2), after debugfs was read.
        const at = LUO_SER.offset.sessions_pa;
        assert.equal(LUO_SER.read(new ByteWords(before), 0).sessions_pa, 0);
        assert.notEqual(LUO_SER.read(new ByteWords(now), 0).sessions_pa, 0);
        now.fill(0, at, at + 8);
      }
      assert.deepEqual(now, before, `subtree ${name}`);
    }
  });

  test("has no file in scratch", () => {
    for (const [token, frames] of frozen.frames)
      for (const { pfn } of frames) {
        const pa = pfn * PAGE_SIZE;
        const area = scratch.find(({ addr, size }) => pa >= addr && pa < addr + size);
        assert.equal(area, undefined, `frame ${pfn} of file ${token}`);
      }
  });

  test("is taken over by our kernel, which gives every file back and leaks nothing", () => {
    const ours = takeOver();
    assert.deepEqual(ours.files, EXPECTED.files);
    assert.deepEqual(ours.leaks, { pages: 0, pins: 0, domains: 0 });
  });

  test("keeps its FDT and every byte of every file while the next kernel runs", () => {
    assert.deepEqual(fdtAfterJump, fdt);
    assert.deepEqual(Buffer.from(jumped.in.fdt ?? "", "base64"), fdt.subarray(0, fdtSize(fdt)));
    for (const { token, sizeBytes, sha256: expected } of EXPECTED.files) {
      const bytes = filesAfterJump.get(token);
      assert(bytes !== undefined);
      assert.equal(sha256(bytes.subarray(0, sizeBytes)), expected, `file ${token}`);
    }
  });

  test("is taken over by the next Linux with what the inspector has seen", () => {
    assert.deepEqual(retrieved.files, frozen.comparable?.files);
  });

  test("is followed by the next kernel's own, which is found instead and has nothing in it yet", () => {
    assert.notEqual(prepared.fdtPa, frozen.fdtPa);
    assert.deepEqual(prepared.problems, []);
    assert.equal(prepared.kexecCount, frozen.kexecCount + 1);
    assert.deepEqual(prepared.comparable, {
      liveupdateNumber: 2,
      flbs: [],
      sessions: [],
      files: [],
    });
    assert.equal(prepared.pages.unclaimed, 0);
    assert.deepEqual(finished.out.subtrees, jumped.out.subtrees);
  });
});

describe("the same scenario on our kernel", () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), "holdfast-"));
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  test("hands over the same but for addresses", () => {
    const path = join(folder, "image");
    const { files, leaks } = handOverOnOurKernel(path);
    const { comparable, problems, pages } = viewHandover(path);
    // What Linux's is compared with, too.
    assert.deepEqual(comparable, EXPECTED);
    assert.deepEqual(problems, []);
    assert.equal(pages.unclaimed, 0);
    assert.deepEqual(files, EXPECTED.files);
    assert.deepEqual(leaks, { pages: 0, pins: 0, domains: 0 });
  });
});

interface ShownSession {
  readonly name: string;
  readonly files: readonly {
    readonly token: string;
    readonly compatible: string;
    readonly content: {
      readonly kind: string;
      readonly sizeBytes: number;
      readonly position: number;
      readonly seals: readonly string[];
    };
  }[];
}

/** What a user would do with the image. */
function runCommands(ram: string, folder: string) {
  const extracted = SESSIONS.flatMap(({ name, files }) =>
    files.map(({ token }) => {
      const path = join(folder, token.toString(16));
      const word = `0x${token.toString(16)}`;
      const outcome = holdfast("inspect", ram, "--session", name, "--extract", word, path);
      return { outcome, bytes: existsSync(path) ? readFileSync(path) : null };
    }),
  );
  return {
    inspect: holdfast("inspect", ram, "--json"),
    verify: holdfast("verify", ram),
    extracted,
  };
}

/** Does it now; what came of it, result or error, comes when it is asked for. */
function settled<T>(action: () => T): () => T {
  try {
    const result = action();
    return () => result;
  } catch (error) {
    return () => {
      throw error;
    };
  }
}

function readAt(ram: string, pa: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  const fd = openSync(ram, "r");
  assert.equal(readSync(fd, bytes, 0, lengthBytes, pa), lengthBytes);
  closeSync(fd);
  return bytes;
}

/** A file's pages, where the handover said that they lie. */
function pagesOf(ram: string, frames: readonly { readonly pfn: number }[]): Buffer {
  return Buffer.concat(frames.map(({ pfn }) => readAt(ram, pfn * PAGE_SIZE, PAGE_SIZE)));
}

function scratchOf(ram: string, { scratchAddr, scratchSize }: KhoData) {
  const image = openImage(ram);
  try {
    return readScratch(image, scratchAddr, scratchSize);
  } finally {
    image.close();
  }
}

/** As its header says. */
function fdtSize(fdt: Buffer): number {
  return fdt.readUInt32BE(4);
}
