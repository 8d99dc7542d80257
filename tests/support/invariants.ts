/**
 * What must hold in a host at every quiet moment, whichever kernel runs or none: each function returns what is wrong.
 *
 *   - no page has two owners, and what is owned is allocated as that block
 *   - what a device can reach is exactly its guest's file, or its reserved memory regions
 *   - what goes through a jump is preserved, and not a byte of it changes but by DMA
 *   - whoever is not preserved cannot do DMA
 *   - every frame on the wire is in exactly one place
 * @module
 */
import { KHO_METADATA_NODE_NAME } from "../../src/abi/kexec-metadata.ts";
import { ecamOffset, PCI_COMMAND, PCI_COMMAND_MASTER } from "../../src/abi/pci.ts";
import { SS_R, SS_W } from "../../src/abi/vtd/second-stage.ts";
import { hex, orderBytes, PAGE_SIZE } from "../../src/base/units.ts";
import { RestoredTables } from "../../src/kernel/iommu/restored-tables.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import type { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type { KhoBootParameters, MemoryRange } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import type { DeviceWrites } from "./device-writes.ts";
import {
  type Block,
  extentRange,
  type LeafRun,
  type MemfsFileMap,
  type MemfsMap,
  type Preserved,
  readMemfs,
  readPreserved,
  readTree,
  readUnit,
  type TableTree,
  type UnitMap,
} from "./physical-map.ts";

/** What memory and registers say at one moment. */
export interface HostState {
  readonly ram: Ram;
  readonly preserved: Preserved;
  readonly memfs: MemfsMap | null;
  /** Those that translate. */
  readonly units: readonly UnitMap[];
}

/** Reads all of it. @param kho - where the handover is, as the kernel would tell the next */
export function readHostState(machine: DeterministicMachine, kho: KhoBootParameters): HostState {
  const { ram, hardware } = machine;
  const preserved = readPreserved(ram, kho);
  const units = hardware.vtds.flatMap((unit, segment) =>
    unit === null ? [] : (readUnit(ram, segment, unit) ?? []),
  );
  return { ram, preserved, memfs: readMemfs(ram, preserved), units };
}

/** All files of all stores. */
export function filesOf({ memfs }: HostState): readonly MemfsFileMap[] {
  return memfs === null ? [] : memfs.stores.flatMap((store) => store.files);
}

// -- owners -------------------------------------------------------------------------------------------------

interface Owned extends Block {
  readonly owner: string;
  /** Must be preserved whenever a handover could begin. */
  readonly inHandover: "always" | "frozen";
}

/** Trees of the previous kernel that no device may use any more, but that are still there. */
function restoredTrees({ ram }: HostState, kernel: Kernel): TableTree[] {
  const trees: TableTree[] = [];
  for (let id = 0; trees.length < kernel.iommu.restoredCount; id++) {
    const domain = kernel.iommu.restoredDomain(id);
    if (domain instanceof RestoredTables) trees.push(readTree(ram, domain.top, domain.levels));
  }
  return trees;
}

function ownedBlocks(state: HostState, kernel: Kernel | null): Owned[] {
  const owned: Owned[] = [];
  const page = (pa: number, owner: string, inHandover: Owned["inHandover"]) =>
    owned.push({ pa, order: 0, owner, inHandover });
  const { preserved, memfs, units } = state;
  const metadata = preserved.subtrees.get(KHO_METADATA_NODE_NAME);
  if (metadata !== undefined) page(metadata.pa, "kho metadata", "always");
  for (const unit of units) {
    page(unit.rootTable, `root table of segment ${unit.segment}`, "frozen");
    for (const pa of unit.contextTables)
      page(pa, `context table of segment ${unit.segment}`, "frozen");
  }
  const trees = new Map<number, TableTree>();
  const attached = new Set<number>();
  for (const unit of units)
    for (const { tree } of unit.functions) {
      trees.set(tree.top, tree);
      attached.add(tree.top);
    }
  if (kernel !== null) for (const tree of restoredTrees(state, kernel)) trees.set(tree.top, tree);
  for (const tree of trees.values())
    for (const pa of tree.tables)
      owned.push({
        pa,
        order: 0,
        owner: `table of the tree at ${hex(tree.top)}`,
        inHandover: "frozen",
      });
  for (const store of memfs?.stores ?? []) {
    for (const pa of store.metadata) page(pa, `metadata of store ${store.name}`, "always");
    for (const file of store.files)
      for (const extent of file.extents)
        for (let i = 0; i < extent.count; i++)
          owned.push({
            pa: extent.pa + i * orderBytes(extent.order),
            order: extent.order,
            owner: `file ${file.label}`,
            inHandover: "always",
          });
  }
  if (memfs !== null) page(memfs.rootPa, "memfs root", "always");
  return owned;
}

/**
 * No page twice.
 *
 * @param kernel - whose allocator must have each block as allocated; null while no kernel exists
 * @param isFrozen - a jump is under way: page tables must be preserved too
 */
export function ownershipProblems(
  state: HostState,
  kernel: Kernel | null,
  isFrozen: boolean,
): string[] {
  const problems: string[] = [];
  const { preserved, units } = state;
  const owned = ownedBlocks(state, kernel);
  const ownPages = [preserved.fdtPa, ...preserved.nodes].map((pa) => ({
    pa,
    order: 0,
    owner: "kho",
  }));
  // Before a jump the queue is off, and after it the register still has the previous kernel's address.
  const queues = (kernel === null || isFrozen ? [] : units).map(({ queuePa, segment }) => ({
    pa: queuePa,
    order: 1,
    owner: `invalidation queue of segment ${segment}`,
  }));
  const scratch = preserved.scratch.map(({ start, lengthBytes }) => ({
    start,
    end: start + lengthBytes,
    owner: "scratch",
  }));
  const ranges = [...owned, ...ownPages, ...queues].map((o) => ({ ...rangeOf(o), owner: o.owner }));
  problems.push(...overlaps([...ranges, ...scratch]));

  const kept = preserved.blocks.map((block) => ({ ...rangeOf(block), owner: "a preserved block" }));
  problems.push(...overlaps([...kept, ...scratch]));
  kept.sort((a, b) => a.start - b.start);
  for (const block of owned) {
    if (block.inHandover === "frozen" && !isFrozen) continue;
    const { start, end } = rangeOf(block);
    if (!isCovered(kept, start, end))
      problems.push(`${block.owner}: ${hex(start)} is not preserved`);
  }
  if (kernel !== null)
    for (const { pa, order, owner } of [...owned, ...ownPages, ...queues])
      if (!kernel.mm.isCarvedOut(pa) && !kernel.mm.isAllocated(pa, order))
        problems.push(`${owner}: ${hex(pa)} of order ${order} is not allocated`);
  return problems;
}

interface Span {
  readonly start: number;
  readonly end: number;
}

function rangeOf({ pa, order }: Block): Span {
  return { start: pa, end: pa + orderBytes(order) };
}

function overlaps(ranges: readonly (Span & { readonly owner: string })[]): string[] {
  const problems: string[] = [];
  const sorted = [...ranges].sort((a, b) => a.start - b.start);
  let reach = sorted[0];
  for (const range of sorted.slice(1)) {
    if (range.start < reach.end)
      problems.push(`${hex(range.start)} belongs to ${reach.owner} and to ${range.owner}`);
    if (range.end > reach.end) reach = range;
  }
  return problems;
}

/** Whether sorted, disjoint ranges cover a span. */
function isCovered(sorted: readonly Span[], start: number, end: number): boolean {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle].end <= start) low = middle + 1;
    else high = middle;
  }
  let at = start;
  for (let i = low; i < sorted.length && sorted[i].start <= at && at < end; i++) at = sorted[i].end;
  return at >= end;
}

// -- what devices can reach ---------------------------------------------------------------------------------

/** A VM as the machine sees it. */
export interface ExpectedVm {
  readonly name: string;
  /** As in {@link MemfsFileMap.label}. */
  readonly file: string;
  readonly segment: number;
  readonly bdf: number;
  /** Its segment has no remapping unit. */
  readonly noiommu: boolean;
}

/**
 * Every VM's device is translated to its VM's file, all of it and nothing else; functions with reserved memory
 * regions to these; no other function to anything.
 *
 * @param others - labels of files that further functions may reach, by "segment:bdf"
 */
export function reachProblems(
  state: HostState,
  vms: readonly ExpectedVm[],
  rmrrs: readonly (MemoryRange & { readonly segment: number; readonly bdf: number })[],
  others: ReadonlySet<string> = new Set(),
): string[] {
  const problems: string[] = [];
  const files = new Map(filesOf(state).map((file) => [file.label, file]));
  const expected = new Map<string, { owner: string; runs: LeafRun[] }>();
  for (const { start, lengthBytes, segment, bdf } of rmrrs) {
    const key = functionKey(segment, bdf);
    const entry = expected.get(key) ?? { owner: "reserved memory regions", runs: [] };
    entry.runs.push({ iova: start, pa: start, lengthBytes, rights: SS_R | SS_W });
    expected.set(key, entry);
  }
  for (const vm of vms) {
    const file = files.get(vm.file);
    if (file === undefined) problems.push(`${vm.name}: there is no file ${vm.file}`);
    else if (!vm.noiommu)
      expected.set(functionKey(vm.segment, vm.bdf), { owner: vm.name, runs: fileRuns(file) });
  }
  for (const { functions } of state.units)
    for (const { segment, bdf, tree } of functions) {
      const key = functionKey(segment, bdf);
      const wanted = expected.get(key);
      expected.delete(key);
      if (others.has(key)) continue;
      if (wanted === undefined) problems.push(`function ${key} is translated, but is nobody's`);
      else if (describeRuns(tree.runs) !== describeRuns(wanted.runs))
        problems.push(
          `${wanted.owner}: ${key} reaches ${describeRuns(tree.runs)}, not ${describeRuns(wanted.runs)}`,
        );
    }
  for (const [key, { owner }] of expected)
    if (state.units.some(({ segment }) => key.startsWith(`${segment}:`)))
      problems.push(`${owner}: ${key} is not translated`);
  return problems;
}

/** "0:100": a function, by segment and source-id in hexadecimal. */
export function functionKey(segment: number, bdf: number): string {
  return `${segment}:${bdf.toString(16)}`;
}

/** The whole file mapped at 0: guest physical address, IOVA and file offset are one number. */
function fileRuns(file: MemfsFileMap): LeafRun[] {
  const runs: LeafRun[] = [];
  for (const extent of file.extents) {
    const { start: pa, lengthBytes } = extentRange(extent);
    const last = runs.at(-1);
    if (
      last !== undefined &&
      last.iova + last.lengthBytes === extent.offset &&
      last.pa + last.lengthBytes === pa
    )
      runs[runs.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
    else runs.push({ iova: extent.offset, pa, lengthBytes, rights: SS_R | SS_W });
  }
  return runs;
}

function describeRuns(runs: readonly LeafRun[]): string {
  return runs
    .map((run) => `${hex(run.iova)}+${hex(run.lengthBytes)}→${hex(run.pa)}:${run.rights}`)
    .join(" ");
}

// -- who is quiet -------------------------------------------------------------------------------------------

/** While a jump is under way only the VMs' functions, and the bridges above them, may master the bus. */
export function quietProblems(
  machine: DeterministicMachine,
  functions: readonly {
    readonly segment: number;
    readonly bdf: number;
    readonly isBridge: boolean;
  }[],
  vms: readonly ExpectedVm[],
): string[] {
  const preserved = new Set(vms.map(({ segment, bdf }) => functionKey(segment, bdf)));
  return functions
    .filter(({ segment, bdf, isBridge }) => {
      if (isBridge || preserved.has(functionKey(segment, bdf))) return false;
      return (configRead16(machine, segment, bdf, PCI_COMMAND) & PCI_COMMAND_MASTER) !== 0;
    })
    .map(({ segment, bdf }) => `function ${functionKey(segment, bdf)} masters the bus in the jump`);
}

/** Config space as it is, without a kernel noticing. */
export function configRead16(
  { firmware, hardware }: DeterministicMachine,
  segment: number,
  bdf: number,
  offset: number,
): number {
  return hardware.mmio.read(configAddress(firmware, segment, bdf) + offset, 2);
}

/** Changes config space behind the kernel's back. */
export function configWrite16(
  { firmware, hardware }: DeterministicMachine,
  segment: number,
  bdf: number,
  offset: number,
  value: number,
): void {
  hardware.mmio.write(configAddress(firmware, segment, bdf) + offset, 2, value);
}

function configAddress(
  { ecams }: DeterministicMachine["firmware"],
  segment: number,
  bdf: number,
): number {
  const ecam = ecams.find((e) => e.segment === segment);
  if (ecam === undefined) throw new RangeError(`no segment ${segment}`);
  return ecam.base + ecamOffset(ecam.startBus, bdf);
}

// -- contents -----------------------------------------------------------------------------------------------

/** A copy of everything that is preserved, to compare with after a jump. */
export class PreservedSnapshot {
  readonly #copies: { readonly pa: number; readonly bytes: Uint8Array; readonly owner: string }[];

  constructor(state: HostState) {
    const { ram, preserved } = state;
    const files = filesOf(state).flatMap(({ label, extents }) =>
      extents.map((extent) => ({ ...extentRange(extent), label })),
    );
    const copy = (pa: number, lengthBytes: number, owner: string) => {
      const bytes = new Uint8Array(lengthBytes);
      ram.read(pa, bytes);
      return { pa, bytes, owner };
    };
    this.#copies = [preserved.fdtPa, ...preserved.nodes].map((pa) => copy(pa, PAGE_SIZE, "kho"));
    const scope = (pa: number) =>
      files.find((f) => pa >= f.start && pa < f.start + f.lengthBytes)?.label;
    for (const { pa, order } of preserved.blocks)
      this.#copies.push(copy(pa, orderBytes(order), scope(pa) ?? "preserved block"));
  }

  /**
   * Pages that differ, though no device has written to them since {@link DeviceWrites.mark}.
   * @param files - only these; absent: everything
   */
  problems(ram: Ram, writes: DeviceWrites, files?: ReadonlySet<string>): string[] {
    const problems: string[] = [];
    for (const { pa, bytes, owner } of this.#copies) {
      if (files !== undefined && !files.has(owner)) continue;
      if (Buffer.compare(bytes, ram.view(pa, bytes.length)) === 0) continue;
      for (let at = 0; at < bytes.length; at += PAGE_SIZE) {
        if (writes.isWritten(pa + at)) continue;
        const page = ram.view(pa + at, PAGE_SIZE);
        if (Buffer.compare(bytes.subarray(at, at + PAGE_SIZE), page) !== 0)
          problems.push(`${owner}: the page at ${hex(pa + at)} has changed in the jump`);
      }
    }
    return problems;
  }
}

// -- frames -------------------------------------------------------------------------------------------------

/** What a guest says of itself at its end. */
export interface GuestReport {
  readonly name: string;
  readonly nicId: number;
  readonly received: number;
  readonly lost: number;
  readonly corrupt: number;
  readonly transmitted: number;
  /** Of its own audit. */
  readonly problems: readonly string[];
  readonly bytesMoved: number;
}

/**
 * @param mayOverrun - frames may come faster than the ring is emptied: those that find no descriptor are the wire's loss
 */
export function trafficProblems(
  machine: DeterministicMachine,
  guests: readonly GuestReport[],
  mayOverrun: boolean,
): string[] {
  const problems: string[] = [];
  for (const [id, nic] of machine.statistics.nics().entries()) {
    const { sent, delivered, missed, filtered, dmaFailed } = nic;
    if (sent !== delivered + missed + filtered + dmaFailed)
      problems.push(`${nic.name}: of ${sent} frames ${delivered + missed} are accounted for`);
    if (dmaFailed > 0) problems.push(`${nic.name}: DMA of ${dmaFailed} frames failed`);
    if (filtered > 0) problems.push(`${nic.name}: ${filtered} frames filtered`);
    const { transmitCorrupt, transmitGaps, transmitDmaFailed } = nic;
    if (transmitCorrupt + transmitGaps + transmitDmaFailed > 0)
      problems.push(
        `${nic.name} sent ${transmitCorrupt} corrupt frames, ${transmitGaps} out of sequence, and could not read ${transmitDmaFailed}`,
      );
    if (missed > 0 && !mayOverrun) problems.push(`${nic.name}: ${missed} frames missed`);
    const guest = guests.find((g) => g.nicId === id);
    if (guest === undefined) continue;
    if (guest.received !== delivered)
      problems.push(`${guest.name} has ${guest.received} of ${delivered} frames`);
    if (guest.transmitted !== nic.transmitted)
      problems.push(`${nic.name} sent ${nic.transmitted} of ${guest.transmitted} frames`);
    if (guest.lost > missed) problems.push(`${guest.name} lacks ${guest.lost} frames`);
    if (guest.corrupt > 0) problems.push(`${guest.name}: ${guest.corrupt} frames corrupt`);
    if (guest.bytesMoved > 0) problems.push(`${guest.name}: ${guest.bytesMoved} bytes moved`);
    problems.push(...guest.problems.map((problem) => `${guest.name}: ${problem}`));
  }
  return problems;
}

/** DMA that a unit has blocked. */
export function faultProblems(machine: DeterministicMachine): string[] {
  return machine.hardware.vtds.flatMap((unit, segment) => {
    const faults = unit?.statistics.faults ?? 0;
    return faults === 0 ? [] : [`segment ${segment}: ${faults} DMA faults`];
  });
}
