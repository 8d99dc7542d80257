/**
 * What a real Linux has left, kept as a file: read, taken over, and damaged byte by byte, on any machine.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { gunzipSync } from "node:zlib";
import { repositoryRoot } from "../../scripts/linux/kernel-cache.ts";
import { KHO_SCRATCH } from "../../src/abi/kho.ts";
import {
  KHO_VMALLOC,
  KHO_VMALLOC_ALLOC,
  KHO_VMALLOC_HUGE_VMAP,
} from "../../src/abi/kho-vmalloc.ts";
import { MEMFD_LUO_FOLIO_SER_BYTES, MEMFD_LUO_SER } from "../../src/abi/memfd.ts";
import { Prng } from "../../src/base/prng.ts";
import { hex, PAGE_SIZE } from "../../src/base/units.ts";
import { type FileData, type Handover, readHandover } from "../../src/inspect/handover.ts";
import { openImage } from "../../src/inspect/image/open-image.ts";
import type { RamImage } from "../../src/inspect/image/ram-image.ts";
import { WatchedImage } from "./golden/watched-image.ts";
import { viewHandover } from "./handover-view.ts";
import { holdfast } from "./holdfast.ts";
import { handOverOnOurKernel, takeOverFromLinux } from "./our-kernel.ts";
import { expectedFiles, type ObservedFile } from "./scenario.ts";

const FOLDER = join(repositoryRoot(), "tests", "linux", "golden");
const GOLDEN = readdirSync(FOLDER).filter((name) => name.endsWith(".core.gz"));
const SEED = 1;
/** Bytes damaged in each page. */
const FLIPS_PER_PAGE = 24;
const VMALLOC_FLAGS = KHO_VMALLOC_ALLOC | KHO_VMALLOC_HUGE_VMAP;

for (const name of GOLDEN)
  describe(`golden handover ${name}`, () => {
    let folder: string;
    let path: string;
    let image: RamImage;

    before(() => {
      folder = mkdtempSync(join(tmpdir(), "holdfast-"));
      path = join(folder, "image");
      writeFileSync(path, gunzipSync(readFileSync(join(FOLDER, name))));
      image = openImage(path);
    });
    after(() => {
      image.close();
      rmSync(folder, { recursive: true, force: true });
    });

    test("is read, without a problem", () => {
      const { comparable, problems, pages } = viewHandover(path);
      assert.deepEqual(problems, []);
      assert.equal(pages.unclaimed, 0);
      assert.deepEqual(comparable?.files.map(withoutContent), expectedFiles().map(withoutContent));
    });

    test("is taken over by our kernel, with all its files", () => {
      const { note } = image.info;
      assert(note !== null);
      const { files, leaks } = takeOverFromLinux(path, note.kho);
      assert.deepEqual(files.map(withoutContent), expectedFiles().map(withoutContent));
      assert.deepEqual(leaks, { pages: 0, pins: 0, domains: 0 });
    });

    test("passes `holdfast verify`, and differs from itself in nothing", () => {
      assert.equal(holdfast("verify", path).status, 0);
      const { status, stdout, stderr } = holdfast("diff", path, path, "--json");
      assert.equal(status, 0, stderr);
      assert.deepEqual(JSON.parse(stdout).differences, []);
    });

    test("differs from ours of the same scenario in addresses and the release alone", () => {
      const ours = join(folder, "ours");
      handOverOnOurKernel(ours);
      const { stdout } = holdfast("diff", path, ours, "--json");
      const { differences } = JSON.parse(stdout) as { differences: Difference[] };
      const details = differences.flatMap(({ kind, change, details: changes }) =>
        change === "changed" ? changes.map((text) => `${kind}: ${text}`) : [`${kind}: ${change}`],
      );
      const expected = /^(kexec: release |preserved: blocks |file: pages )/;
      assert.deepEqual(
        details.filter((text) => !expected.test(text)),
        [],
      );
      assert(details.some((text) => text.startsWith("file: pages ")));
    });

    test("never goes unnoticed when it is damaged: a problem is named, or it reads otherwise", () => {
      const pages = new Set<number>();
      readHandover(new WatchedImage(image, (pa) => pages.add(pa)), { fdtPa: null });
      const prng = new Prng(SEED);
      const good = summary(readHandover(image, { fdtPa: null }));
      const saysNothing = meaninglessBits(image);
      const damaged = new WatchedImage(image);
      const unnoticed: string[] = [];
      const bytes = new Uint8Array(PAGE_SIZE);
      let named = 0;
      for (const page of pages) {
        image.read(page, bytes);
        const used = [...bytes.keys()].filter((at) => bytes[at] !== 0);
        for (let i = 0; i < FLIPS_PER_PAGE && used.length > 0; i++) {
          const [at] = used.splice(prng.below(used.length), 1);
          const flipped = 1 << prng.below(8);
          damaged.damage(page + at, flipped);
          const handover = readHandover(damaged, { fdtPa: null });
          if (handover.problems.list.length > 0) named++;
          else if (summary(handover) === good && !saysNothing(page + at, flipped))
            unnoticed.push(`${hex(page + at)} ^ ${hex(flipped)}`);
        }
      }
      assert(named > 0);
      assert.deepEqual(unnoticed, [], `seed ${SEED}`);
    });
  });

/** As `holdfast diff --json` prints it. */
interface Difference {
  readonly kind: string;
  readonly change: string;
  readonly details: readonly string[];
}

function withoutContent({ session, token, sizeBytes, position, seals }: ObservedFile) {
  return { session, token, sizeBytes, position, seals };
}

/** Which bits nothing depends on, neither in Linux nor here. */
function meaninglessBits(image: RamImage): (pa: number, flipped: number) => boolean {
  const { fdtPa, candidates, scratch, liveUpdate, info } = readHandover(image, { fdtPa: null });
  assert(fdtPa !== null && scratch !== null && info.note !== null);
  const { scratchAddress } = info.note.kho;
  const [{ sizeBytes }] = candidates;
  const memfds = (liveUpdate?.sessions ?? []).flatMap(({ files }) =>
    files.map(({ data }) => (data as FileData).content),
  );
  return (pa, flipped) => {
    // libfdt leaves remains of its work behind the tree.
    if (pa >= fdtPa + sizeBytes && pa < fdtPa + PAGE_SIZE) return true;
    const area = (pa - scratchAddress) / KHO_SCRATCH.sizeBytes;
    // The address of an empty area.
    if (scratch[Math.floor(area)]?.size === 0 && area % 1 < 0.5) return true;
    return memfds.some((content) => {
      if (content.kind !== "memfd") return false;
      const { serPa, array } = content.memfd;
      // How the array was mapped.
      const vmallocFlags = serPa + MEMFD_LUO_SER.offset.folios + KHO_VMALLOC.offset.flags;
      if (pa === vmallocFlags && (flipped & VMALLOC_FLAGS) !== 0) return true;
      // MEMFD_LUO_FOLIO_DIRTY, bit 52 of an entry: all are.
      const isEntry = array?.pages.includes(pa - (pa % PAGE_SIZE)) === true;
      return isEntry && pa % MEMFD_LUO_FOLIO_SER_BYTES === 6 && flipped === 0x10;
    });
  };
}

/** All that a reader can tell, as one text. */
function summary(handover: Handover): string {
  const { fdt, metadata, preserved, scratch, liveUpdate, notes } = handover;
  const sessions = liveUpdate?.sessions.map(({ name, files }) => ({
    name,
    files: files.map(({ token, handler, data }) => {
      const { word, content } = data as FileData;
      return { token, handler: handler.compatible, word, content };
    }),
  }));
  const { liveupdateNumber } = liveUpdate ?? {};
  return JSON.stringify(
    { fdt, metadata, preserved, scratch, liveupdateNumber, sessions, notes },
    (_key, value: unknown) => {
      if (typeof value === "bigint") return `${value}`;
      return ArrayBuffer.isView(value) ? Array.from(value as Float64Array) : value;
    },
  );
}
