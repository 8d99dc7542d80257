import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { PAGE_SIZE } from "../../base/units.ts";
import { IOMMU_READ, IOMMU_WRITE, type PagingDomain } from "../iommu/domain.ts";
import { File, type FileExtent } from "../vfs/file.ts";
import { IoPageTable } from "./io-pagetable.ts";
import { PinnedPages } from "./pinned-pages.ts";

const FILE_PAGES = 16;
const IOVA_PAGES = 64;

/** A file whose pages lie in runs: page p at frame `frames[p]`. */
class RunFile extends File {
  readonly kind = "memfs";
  readonly frames: readonly number[];
  pins = 0;
  constructor(frames: readonly number[]) {
    super();
    this.frames = frames;
  }
  protected override release(): void {}
  override pin(offset: number, lengthBytes: number) {
    if (offset + lengthBytes > this.frames.length * PAGE_SIZE)
      throw new KernelError("EINVAL", "pin", "past the end");
    this.pins++;
    const extents: FileExtent[] = [];
    for (let at = offset; at < offset + lengthBytes; at += PAGE_SIZE) {
      const pa = this.frames[at / PAGE_SIZE] * PAGE_SIZE;
      const last = extents.at(-1);
      // Some neighbours are given as one extent, some as two.
      if (last !== undefined && last.pa + last.lengthBytes === pa && (pa / PAGE_SIZE) % 3 !== 0)
        extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + PAGE_SIZE };
      else extents.push({ offsetBytes: at, pa, lengthBytes: PAGE_SIZE });
    }
    return { extents, unpin: () => this.pins-- };
  }
}

/** Page tables as a map of pages, strict about what may be mapped and unmapped. */
class PageMapDomain implements PagingDomain {
  readonly type = "paging";
  readonly apertureEnd = 2 ** 48;
  readonly pageSizes = PAGE_SIZE;
  readonly pages = new Map<number, { pa: number; prot: number }>();
  failAfter = Number.POSITIVE_INFINITY;
  readonly #largePages: () => boolean;
  constructor(largePages = () => true) {
    this.#largePages = largePages;
  }
  map(iova: number, pa: number, lengthBytes: number, prot: number): void {
    if (this.failAfter-- <= 0) throw new KernelError("ENOMEM", "map", "injected");
    assert.ok(this.#largePages() || lengthBytes === PAGE_SIZE, "page by page");
    assert.ok(iova % PAGE_SIZE === 0 && pa % PAGE_SIZE === 0 && lengthBytes % PAGE_SIZE === 0);
    for (let at = 0; at < lengthBytes; at += PAGE_SIZE) {
      assert.ok(!this.pages.has(iova + at), "mapped twice");
      this.pages.set(iova + at, { pa: pa + at, prot });
    }
  }
  unmap(iova: number, lengthBytes: number): void {
    for (let at = 0; at < lengthBytes; at += PAGE_SIZE)
      assert.ok(this.pages.delete(iova + at), "unmapped what was not mapped");
  }
  iovaToPhys(iova: number): number | null {
    return this.pages.get(iova)?.pa ?? null;
  }
  free(): void {
    assert.equal(this.pages.size, 0, "freed while pages are mapped");
  }
}

/** The model: what each IOVA page shows, and which area it is of. */
type Model = Map<number, { frame: number; prot: number; area: number }>;

class Real {
  readonly table = new IoPageTable(new FaultInjector());
  readonly domains: PageMapDomain[] = [];
  readonly file: RunFile;
  areas = 0;
  constructor(frames: readonly number[]) {
    this.file = new RunFile(frames);
  }
}

function check(model: Model, real: Real): void {
  for (const domain of real.domains) {
    const seen = new Map([...domain.pages].map(([iova, page]) => [iova / PAGE_SIZE, page]));
    assert.equal(seen.size, model.size);
    for (const [page, { frame, prot }] of model)
      assert.deepEqual(seen.get(page), { pa: frame * PAGE_SIZE, prot });
  }
  for (const [page, { frame }] of model)
    assert.equal(real.table.physicalAt(page * PAGE_SIZE, 1)?.pa, frame * PAGE_SIZE);
  const holders = new Set(real.table.areas.map((area) => area.pages));
  assert.equal(real.file.pins, holders.size, "one pin for each mapping that some area shows");
}

type Command = fc.Command<Model, Real>;

class MapCommand implements Command {
  readonly from: number;
  readonly count: number;
  readonly iova: number | null;
  readonly prot: number;
  readonly failAfter: number;
  constructor(from: number, count: number, iova: number | null, prot: number, failAfter: number) {
    this.from = from;
    this.count = count;
    this.iova = iova;
    this.prot = prot;
    this.failAfter = failAfter;
  }
  check(): boolean {
    return true;
  }
  run(model: Model, real: Real): void {
    const lengthBytes = this.count * PAGE_SIZE;
    const pages = new PinnedPages(real.file, this.from * PAGE_SIZE, lengthBytes, true);
    const wanted = Array.from({ length: this.count }, (_, i) => (this.iova ?? 0) + i);
    const collides = this.iova !== null && wanted.some((page) => model.has(page));
    for (const domain of real.domains) domain.failAfter = this.failAfter;
    let iova: number;
    try {
      const slices = [{ pages, startByte: 0, lengthBytes }];
      const at = this.iova === null ? null : this.iova * PAGE_SIZE;
      iova = real.table.map(slices, at, this.prot, "map");
    } catch (error) {
      if (!isKernelError(error)) throw error;
      pages.put();
      assert.equal(error.code, collides ? "EEXIST" : "ENOMEM");
      if (!collides) assert.ok(real.domains.length > 0 && this.failAfter < 99);
      check(model, real);
      return;
    } finally {
      for (const domain of real.domains) domain.failAfter = Number.POSITIVE_INFINITY;
    }
    assert.ok(!collides);
    assert.ok(iova > 0 || this.iova === 0);
    const area = real.areas++;
    for (let i = 0; i < this.count; i++) {
      assert.ok(!model.has(iova / PAGE_SIZE + i), "automatic room is free");
      const frame = real.file.frames[this.from + i];
      model.set(iova / PAGE_SIZE + i, { frame, prot: this.prot, area });
    }
    check(model, real);
  }
  toString(): string {
    return `map(${this.from}, ${this.count}, at ${this.iova}, fail ${this.failAfter})`;
  }
}

class UnmapCommand implements Command {
  readonly from: number;
  readonly count: number;
  constructor(from: number, count: number) {
    this.from = from;
    this.count = count;
  }
  check(): boolean {
    return true;
  }
  run(model: Model, real: Real): void {
    const inside = (page: number) => page >= this.from && page < this.from + this.count;
    const hit = new Set([...model].filter(([page]) => inside(page)).map(([, at]) => at.area));
    const isPartial = [...model].some(([page, { area }]) => hit.has(area) && !inside(page));
    const start = this.from * PAGE_SIZE;
    const unmap = () => real.table.unmap(start, start + this.count * PAGE_SIZE - 1, "unmap");
    if (isPartial) assert.throws(unmap, (error) => isKernelError(error, "ENOENT"));
    else {
      const pages = [...model.keys()].filter(inside);
      assert.equal(unmap(), pages.length * PAGE_SIZE);
      for (const page of pages) model.delete(page);
    }
    check(model, real);
  }
  toString(): string {
    return `unmap(${this.from}, ${this.count})`;
  }
}

class CopyCommand implements Command {
  readonly from: number;
  readonly count: number;
  readonly to: number;
  constructor(from: number, count: number, to: number) {
    this.from = from;
    this.count = count;
    this.to = to;
  }
  check(): boolean {
    return true;
  }
  run(model: Model, real: Real): void {
    const pages = Array.from({ length: this.count }, (_, i) => i);
    const isMapped = pages.every((i) => model.has(this.from + i));
    const get = () => real.table.slices(this.from * PAGE_SIZE, this.count * PAGE_SIZE, "copy");
    if (!isMapped) assert.throws(get, (error) => isKernelError(error, "ENOENT"));
    else {
      const slices = get();
      const map = () => real.table.map(slices, this.to * PAGE_SIZE, IOMMU_READ, "copy");
      if (pages.some((i) => model.has(this.to + i))) {
        assert.throws(map, (error) => isKernelError(error, "EEXIST"));
        for (const slice of slices) slice.pages.put();
      } else {
        map();
        let at = this.to;
        for (const slice of slices) {
          const area = real.areas++;
          for (let i = 0; i < slice.lengthBytes / PAGE_SIZE; i++, at++) {
            const source = model.get(this.from + at - this.to);
            assert.ok(source !== undefined);
            model.set(at, { frame: source.frame, prot: IOMMU_READ, area });
          }
        }
      }
    }
    check(model, real);
  }
  toString(): string {
    return `copy(${this.from}, ${this.count} to ${this.to})`;
  }
}

class DomainCommand implements Command {
  readonly adds: boolean;
  readonly failAfter: number;
  constructor(adds: boolean, failAfter: number) {
    this.adds = adds;
    this.failAfter = failAfter;
  }
  check(): boolean {
    return true;
  }
  run(model: Model, real: Real): void {
    if (this.adds) {
      const domain = new PageMapDomain(() => real.table.largePages);
      domain.failAfter = this.failAfter;
      try {
        real.table.addDomain(domain, "add");
        real.domains.push(domain);
      } catch (error) {
        if (!isKernelError(error, "ENOMEM")) throw error;
        domain.free();
      }
      domain.failAfter = Number.POSITIVE_INFINITY;
    } else {
      const domain = real.domains.shift();
      if (domain !== undefined) {
        real.table.removeDomain(domain);
        domain.free();
      }
    }
    check(model, real);
  }
  toString(): string {
    return this.adds ? `addDomain(fail ${this.failAfter})` : "removeDomain";
  }
}

class LargePagesCommand implements Command {
  readonly isAllowed: boolean;
  constructor(isAllowed: boolean) {
    this.isAllowed = isAllowed;
  }
  check(): boolean {
    return true;
  }
  run(model: Model, real: Real): void {
    const { table } = real;
    const was = table.largePages;
    const set = () => table.setLargePages(this.isAllowed, "set");
    const mayBeMapped = model.size > 0 && real.domains.length > 0;
    if (was && !this.isAllowed && mayBeMapped) {
      assert.throws(set, (error) => isKernelError(error, "EINVAL"));
      assert.equal(table.largePages, was);
    } else {
      set();
      assert.equal(table.largePages, this.isAllowed);
      const isByPages = !this.isAllowed || real.domains.length > 0;
      assert.equal(table.iovaAlignment, isByPages ? PAGE_SIZE : 1);
    }
    check(model, real);
  }
  toString(): string {
    return `setLargePages(${this.isAllowed})`;
  }
}

test("whatever is mapped, copied, unmapped or fails, all domains show what a simple model says", () => {
  const failAfter = fc.oneof({ weight: 3, arbitrary: fc.constant(99) }, fc.nat(3));
  const iova = fc.nat(IOVA_PAGES - FILE_PAGES);
  const count = fc.integer({ min: 1, max: 6 });
  const commands = [
    fc
      .tuple(fc.nat(FILE_PAGES - 6), count, fc.option(iova), fc.constantFrom(1, 2, 3), failAfter)
      .map((a) => new MapCommand(...a)),
    fc.tuple(iova, fc.integer({ min: 1, max: 16 })).map((a) => new UnmapCommand(...a)),
    fc.tuple(iova, count, iova).map((a) => new CopyCommand(...a)),
    fc.tuple(fc.boolean(), failAfter).map((a) => new DomainCommand(...a)),
    fc.boolean().map((isAllowed) => new LargePagesCommand(isAllowed)),
  ];
  const frames = fc
    .array(fc.nat(40), { minLength: FILE_PAGES, maxLength: FILE_PAGES })
    // Runs of neighbours, broken here and there.
    .map((jumps) => jumps.map((jump, i) => (jump > 30 ? 1000 * jump : 0) + 100 + i));
  fc.assert(
    fc.property(frames, fc.commands(commands, { maxCommands: 40 }), (pages, steps) => {
      const real = new Real(pages);
      fc.modelRun(() => ({ model: new Map(), real }), steps);
      for (const domain of real.domains) {
        real.table.removeDomain(domain);
        domain.free();
      }
      real.table.destroy();
      assert.equal(real.file.pins, 0);
      assert.equal(real.file.references, 1);
    }),
    { numRuns: 300 },
  );
});

test("map() joins extents that are neighbours, so that large pages stay large", () => {
  const file = new RunFile(Array.from({ length: FILE_PAGES }, (_, i) => 512 + i));
  const runs: number[] = [];
  const domain = new PageMapDomain();
  const map = domain.map.bind(domain);
  domain.map = (iova, pa, lengthBytes, prot) => {
    runs.push(lengthBytes);
    map(iova, pa, lengthBytes, prot);
  };
  const table = new IoPageTable(new FaultInjector());
  table.addDomain(domain, "add");
  const pages = new PinnedPages(file, 0, FILE_PAGES * PAGE_SIZE, true);
  table.map(
    [{ pages, startByte: 0, lengthBytes: FILE_PAGES * PAGE_SIZE }],
    0,
    IOMMU_READ | IOMMU_WRITE,
    "map",
  );
  assert.deepEqual(runs, [FILE_PAGES * PAGE_SIZE]);
});
