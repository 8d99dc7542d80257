/**
 * For tests: a small machine whose memory outlives kernels, and kernels with the real allocator and handover but
 * nothing else than memfs.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { MEMFS_SUBTREE } from "../../abi/memfs.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { MIB, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { FirmwareMemory, KhoBootParameters } from "../../machine/machine.ts";
import { createSharedRam, ObservedRam, type Ram } from "../../machine/physical-memory.ts";
import { IncomingHandover } from "../kho/incoming-handover.ts";
import { Kho } from "../kho/kho.ts";
import { Scratch } from "../kho/scratch.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import type { CarveOut } from "./carve-out.ts";
import { extentBytes } from "./change.ts";
import { type DecodedMemfs, decodeMemfs } from "./decode.ts";
import { Memfs } from "./memfs.ts";

const SMALL: readonly FirmwareMemory[] = [
  { start: 0, lengthBytes: 48 * MIB, node: 0 },
  { start: 64 * MIB, lengthBytes: 32 * MIB, node: 1 },
];
/** Outside of what the small machine's scratch takes. */
export const SMALL_CARVE_OUT: CarveOut = { name: "carved", start: 32 * MIB, lengthBytes: 8 * MIB };

export type Kernel = ReturnType<Box["boot"]>;

/** The machine. */
export class Box {
  readonly firmware: { readonly memory: readonly FirmwareMemory[]; readonly nodeCount: number };
  readonly memory: Ram;
  /** Called before every store. */
  beforeStore: ((pa: number) => void) | null = null;

  constructor(memory: readonly FirmwareMemory[] = SMALL) {
    this.firmware = { memory, nodeCount: 1 + Math.max(...memory.map((m) => m.node)) };
    this.memory = new ObservedRam(createSharedRam(memory), (pa) => this.beforeStore?.(pa));
  }

  /** Starts a kernel; after a kexec the carve-outs come from the handover. */
  boot(parameters: KhoBootParameters | null, coldCarveOuts: readonly CarveOut[] = []) {
    const { memory, firmware } = this;
    const faults = new FaultInjector();
    const incoming = parameters === null ? null : IncomingHandover.read(memory, parameters);
    const decoded = incoming === null ? null : decodeIncoming(incoming);
    const carveOuts = incoming === null ? coldCarveOuts : (decoded?.carveOuts ?? []);
    const scratch = incoming?.scratch ?? Scratch.reserve(firmware, carveOuts);
    const mm = new BuddyAllocator({
      memory,
      firmware,
      scratch: scratch.ranges,
      carveOuts,
      ...(incoming === null ? {} : { reserved: incoming.blocks }),
      faults,
    });
    const kho = Kho.start({ memory, mm, scratch, incoming, release: "test", faults });
    const memfs = new Memfs({
      memory,
      mm,
      kho,
      faults,
      nodeCount: firmware.nodeCount,
      incoming: decoded,
    });
    if (incoming === null) for (const carveOut of coldCarveOuts) memfs.addCarveOut(carveOut);
    return { mm, kho, memfs, faults, incoming, decoded };
  }

  /** Ends a kernel, without leave, and starts the next. */
  jump(kernel: Kernel): Kernel {
    const next = this.boot(kernel.kho.bootParameters());
    next.memfs.adopt();
    return next;
  }

  /** What the next kernel would find if this one ended now. */
  look(kernel: Kernel): { decoded: DecodedMemfs | null; incoming: IncomingHandover } {
    const incoming = IncomingHandover.read(this.memory, kernel.kho.bootParameters());
    return { decoded: decodeIncoming(incoming), incoming };
  }
}

/** @throws {HandoverError} */
export function decodeIncoming(incoming: IncomingHandover): DecodedMemfs | null {
  const subtree = incoming.subtree(MEMFS_SUBTREE);
  return subtree === null
    ? null
    : decodeMemfs(incoming, subtree.pa, subtree.sizeBytes, MEMFS_SUBTREE);
}

/** A store as text, one line a file: path, size, and where each run of bytes lies. Orphans are left out. */
export function listing(decoded: DecodedMemfs | null): string[] {
  const lines: string[] = [];
  for (const { inodes, superblock } of decoded?.stores ?? []) {
    const pathOf = (ino: number): string => {
      const inode = inodes.get(ino);
      if (inode === undefined || inode.parent === 0) return `${superblock.name}:`;
      return `${pathOf(inode.parent)}/${inode.name}`;
    };
    for (const inode of inodes.values()) {
      if (inode.isOrphan) continue;
      const runs: { offset: number; pa: number; bytes: number }[] = [];
      for (const extent of inode.extents) {
        const last = runs.at(-1);
        const bytes = extentBytes(extent);
        const isNext = last !== undefined && last.offset + last.bytes === extent.offset;
        if (isNext && last.pa + last.bytes === extent.pa) last.bytes += bytes;
        else runs.push({ offset: extent.offset, pa: extent.pa, bytes });
      }
      const where = runs.map((r) => `${r.offset}@${r.pa.toString(16)}+${r.bytes}`);
      lines.push(`${pathOf(inode.ino)} ${inode.kind} ${inode.sizeBytes} ${where.join(" ")}`);
    }
  }
  return lines.sort();
}

/** Pages in use, for leak checks. */
export function pagesInUse(kernel: Kernel): number {
  const { allocated, reserved } = kernel.mm.counts();
  return allocated + reserved;
}

/** Bytes of one page of each order that memfs uses in tests. */
export const HUGE = orderBytes(9);
export const PAGE = PAGE_SIZE;

/** Whether a decoder refused, and the field that it named. */
export function refusedField(action: () => void): string | null {
  try {
    action();
  } catch (error) {
    if (error instanceof HandoverError) return error.field;
    throw error;
  }
  return null;
}
