/**
 * What a kernel says to a handover: it is booted up to the point where the handover would be taken over or is
 * refused, on the real memory and hardware, and then everything is as before.
 *
 * Why: thousands of wrong handovers can be shown to the same machine in its jump. What the kernel does until it has
 * decided must leave no trace: it writes to no page that is preserved, and to no register at all.
 * @module
 */
import { readKhoFdt } from "../../src/abi/kho.ts";
import { walkRadixTree } from "../../src/abi/kho-radix.ts";
import { FaultInjector } from "../../src/base/fault-injector.ts";
import { hex, orderBytes, PAGE_SIZE } from "../../src/base/units.ts";
import { boot } from "../../src/kernel/boot.ts";
import type { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type {
  BootParameters,
  KernelImage,
  Machine,
  MemoryRange,
} from "../../src/machine/machine.ts";
import { ObservedRam, type Ram } from "../../src/machine/physical-memory.ts";

/** What became of a handover. */
export type ProbeResult =
  | { readonly kind: "refused"; readonly message: string }
  /** Every decoder is content; `log` are lines of the kernel until then. */
  | { readonly kind: "accepted"; readonly log: readonly string[] }
  /** Anything else is a fault of the kernel. */
  | { readonly kind: "broken"; readonly problem: string };

/** Ends the kernel at its decision. */
class Decided {
  readonly result: ProbeResult;
  constructor(result: ProbeResult) {
    this.result = result;
  }
}

/** Shows handovers to kernels, in a machine's jump. */
export class HandoverProbe {
  readonly #machine: DeterministicMachine;
  readonly #ram: UndoRam;
  readonly #preserved: readonly MemoryRange[];
  readonly #image: KernelImage;

  /** @param parameters - the handover while it is whole: what it preserves is not to be written */
  constructor(machine: DeterministicMachine, parameters: BootParameters, image: KernelImage) {
    this.#machine = machine;
    this.#ram = new UndoRam(machine.ram);
    this.#preserved = preservedBlocks(machine.ram, parameters);
    this.#image = image;
  }

  /** Boots a kernel on memory as it is now. */
  show(parameters: BootParameters): ProbeResult {
    const result = this.#boot(parameters);
    const written = [...this.#ram.undo()].filter((page) => this.#isPreserved(page));
    if (written.length > 0)
      return {
        kind: "broken",
        problem: `preserved page ${hex(written[0])} was written before the decision (${result.kind})`,
      };
    return result;
  }

  #boot(parameters: BootParameters): ProbeResult {
    const log: string[] = [];
    const faults = new FaultInjector();
    // Nothing of a handover is used before this point.
    faults.point = (point) => {
      if (point === "boot:adopt") throw new Decided({ kind: "accepted", log });
    };
    const { firmware, hardware } = this.#machine;
    const machine: Machine = {
      memory: this.#ram,
      mmio: {
        read: (pa, size) => hardware.mmio.read(pa, size),
        write: (pa) => {
          throw new Error(`a write to register ${hex(pa)} before the decision`);
        },
      },
      interrupts: { take: () => false, wait: () => {} },
      firmware,
      clock: { nowNs: () => this.#machine.nowNs },
      serial: {
        writeLine: (line) => {
          const refused = /^handover refused: (.*?); all devices are stopped/.exec(line);
          if (refused !== null) throw new Decided({ kind: "refused", message: refused[1] });
          log.push(line);
        },
        readLine: () => null,
      },
      kexec: {
        installed: [this.#image],
        load: () => {},
        execute: () => {
          throw new Error("a jump before the decision");
        },
      },
      powerOff: () => {
        throw new Error("power-off before the decision");
      },
    };
    try {
      boot(machine, parameters, { release: this.#image.release, faults });
    } catch (error) {
      if (error instanceof Decided) return error.result;
      return { kind: "broken", problem: String(error) };
    }
    return { kind: "broken", problem: "the kernel booted without a decision" };
  }

  #isPreserved(page: number): boolean {
    return this.#preserved.some(
      ({ start, lengthBytes }) => page >= start && page < start + lengthBytes,
    );
  }
}

/** RAM that can take back what was stored to it. */
class UndoRam extends ObservedRam {
  readonly #raw: Ram;
  readonly #pages: Map<number, Uint8Array>;

  constructor(raw: Ram) {
    const pages = new Map<number, Uint8Array>();
    const keep = (pa: number) => {
      const page = pa - (pa % PAGE_SIZE);
      if (pages.has(page)) return;
      const bytes = new Uint8Array(PAGE_SIZE);
      raw.read(page, bytes);
      pages.set(page, bytes);
    };
    super(raw.shared, (pa) => {
      keep(pa);
      // A piece of a copy may reach into the next page.
      if (raw.contains(pa, 8)) keep(pa + 7);
    });
    this.#raw = raw;
    this.#pages = pages;
  }

  override view(pa: number): never {
    throw new Error(`a mapping of ${hex(pa)} before the decision`);
  }

  /** @returns the pages that were stored to */
  undo(): readonly number[] {
    for (const [page, bytes] of this.#pages) this.#raw.write(page, bytes);
    const pages = [...this.#pages.keys()];
    this.#pages.clear();
    return pages;
  }
}

/** The tree's own nodes are not among them: once they are read they may be given out. */
function preservedBlocks(ram: Ram, { kho }: BootParameters): MemoryRange[] {
  const blocks: MemoryRange[] = [];
  if (kho === null) return blocks;
  walkRadixTree(ram, readKhoFdt(ram, kho.fdtAddress, kho.fdtSizeBytes).memoryMapPa, {
    block: (pa, order) => blocks.push({ start: pa, lengthBytes: orderBytes(order) }),
  });
  return blocks;
}
