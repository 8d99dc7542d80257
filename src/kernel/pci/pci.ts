/**
 * The PCI core: all functions, which of them stay through a live update, and their part of the handover.
 *
 * Lifecycle of a boot:  cold: enumerate().  After a live update: flb.decode → quiesceOthers → flb.adopt, which takes the
 *   hierarchy over as it is; enumerate() is then already done.
 * Lifecycle of an update:  flb.preserve (one record for all functions) → preserve(function) → flb.freeze (registers as they
 *   are at the end) → shutdown() → kexec.
 * Invariants:
 *   - a bridge is preserved as often as all functions below it
 *   - after flb.preserve nothing can fail for lack of memory: its record has room for all functions
 *   - before adoption, what is not preserved is stopped, whatever the previous kernel has left on
 *   - from adoption on, no bus number, BAR or window of what is incoming is ever written
 * Source: the lifecycle of Linux's liveupdate FLBs (Linux 7.3 include/linux/liveupdate.h) and of its PCI core's part,
 *   queued for 7.4
 * @module
 */

import { busOf, PCI_COMMAND_MASTER } from "../../abi/pci.ts";
import { PCI_LUO_COMPATIBLE, PCI_LUO_FUNCTIONS_MAX, pciSerBytes } from "../../abi/pci-luo.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import type { Machine } from "../../machine/machine.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type { RecordPages } from "../kho/record-pages.ts";
import type { FileLifecycleBound } from "../liveupdate/file-handler.ts";
import { AskedFunctions } from "./asked-functions.ts";
import { ConfigAccess } from "./config-access.ts";
import type { PciDevice } from "./device.ts";
import { type Enumeration, enumerate } from "./enumerate.ts";
import { type IncomingFunctions, type PciFunction, type PciRoot, pciName } from "./function.ts";
import { decodeFunctions, type HandedOverPci, writeFunctions } from "./handed-over.ts";
import { inherit } from "./inherit.ts";
import { quiesceOthers } from "./quiesce.ts";
import { type NumberedFunction, scanAsNumbered } from "./scan.ts";

export interface PciDependencies {
  readonly machine: Pick<Machine, "memory" | "mmio" | "firmware">;
  readonly records: RecordPages;
  readonly faults: FaultInjector;
}

export class PciCore implements PciRoot {
  readonly #deps: PciDependencies;
  readonly #access: ConfigAccess;
  #devices: readonly PciDevice[] = [];
  #warnings: readonly string[] = [];
  #isEnumerated = false;
  #scanned: readonly NumberedFunction[] | null = null;
  #incoming: AskedFunctions | null = null;
  /** The handover's record of this kernel, while any file that needs it is preserved. */
  #outgoing: { readonly pa: number; readonly lengthBytes: number } | null = null;

  constructor(deps: PciDependencies) {
    this.#deps = deps;
    this.#access = new ConfigAccess(deps.machine.mmio, deps.machine.firmware.ecams);
  }

  /**
   * Stops DMA of everything that is not preserved, as the previous kernel should have. After `flb.decode`, before a page is
   * given out: on a segment without an IOMMU nothing else keeps such a function out of it.
   * @returns names of the functions whose bus mastering was on
   */
  quiesceOthers(): readonly string[] {
    return quiesceOthers(
      this.#access,
      this.#numbered,
      (segment, bdf) => this.#incoming?.isPreserved(segment, bdf) ?? false,
    );
  }

  /** All functions as the previous kernel has numbered them. */
  get #numbered(): readonly NumberedFunction[] {
    this.#scanned ??= this.#access.ecams.flatMap((ecam) => scanAsNumbered(this.#access, ecam));
    return this.#scanned;
  }

  /** Finds and sets up all functions, unless adoption of a handover has found them already. Once at boot. */
  enumerate(): void {
    if (this.#isEnumerated) return;
    this.#take(enumerate(this.#access, this.#deps.machine.firmware));
  }

  /** What enumeration could not set up, for the log. */
  get warnings(): readonly string[] {
    return this.#warnings;
  }

  get functions(): readonly PciFunction[] {
    return this.#devices;
  }

  find(segment: number, bdf: number): PciFunction | null {
    return this.#find(segment, bdf) ?? null;
  }

  get incoming(): IncomingFunctions | null {
    return this.#incoming;
  }

  preserve(pci: PciFunction): void {
    const device = this.#own(pci);
    if (device.isBridge)
      throw new KernelError("EINVAL", "pci preserve", `${device.name} is a bridge`);
    assert(this.#outgoing !== null, "the PCI FLB is preserved before any function");
    this.#deps.faults.point("pci:preserve");
    for (let d: PciDevice | null = device; d !== null; d = d.parent) d.preserveCount++;
  }

  unpreserve(pci: PciFunction): void {
    const device = this.#own(pci);
    assert(device.preserveCount > 0, `${device.name} is not preserved`);
    for (let d: PciDevice | null = device; d !== null; d = d.parent) d.preserveCount--;
  }

  isPreserved(pci: PciFunction): boolean {
    return this.#own(pci).preserveCount > 0;
  }

  finish(pci: PciFunction): void {
    const device = this.#own(pci);
    device.isIncoming = false;
    // A bridge is ordinary again when nothing below it is incoming.
    for (let bridge = device.parent; bridge !== null; bridge = bridge.parent)
      bridge.isIncoming = this.#devices.some((d) => d.isIncoming && d.parent === bridge);
  }

  shutdown(): void {
    // What is below a bridge first: a device whose requests its bridge rejects has an error, not a rest.
    for (const device of [...this.#devices].reverse())
      if (device.preserveCount === 0) device.changeCommand(0, PCI_COMMAND_MASTER);
  }

  /** PCI's global state in a live update: file handlers that preserve functions name it. */
  readonly flb: FileLifecycleBound<HandedOverPci> = {
    compatible: PCI_LUO_COMPATIBLE,
    preserve: () => this.#preserveState(),
    unpreserve: () => this.#unpreserveState(),
    freeze: (data) => {
      assert(this.#outgoing !== null, "the PCI FLB is preserved");
      writeFunctions(this.#deps.machine.memory, this.#outgoing.pa, this.#devices);
      return data;
    },
    decode: (incoming: IncomingMemory, data: bigint, field: string) => {
      const { firmware } = this.#deps.machine;
      const state = decodeFunctions(incoming, data, field, { access: this.#access, firmware });
      this.#incoming = new AskedFunctions(state.records);
      return state;
    },
    checkAsked: (_state, field) => this.#incoming?.check(field),
    adopt: (state) => this.#adopt(state),
    finish: () => {
      for (const device of this.#devices) device.isIncoming = false;
    },
  };

  #preserveState(): bigint {
    assert(this.#outgoing === null, "the PCI FLB is preserved once");
    const count = this.#devices.length;
    if (count > PCI_LUO_FUNCTIONS_MAX)
      throw new KernelError(
        "ENOSPC",
        "pci preserve",
        `${count} functions; a handover holds ${PCI_LUO_FUNCTIONS_MAX}`,
      );
    const lengthBytes = pciSerBytes(count);
    const pa = this.#deps.records.alloc(lengthBytes);
    this.#outgoing = { pa, lengthBytes };
    return BigInt(pa);
  }

  #unpreserveState(): void {
    assert(this.#outgoing !== null, "the PCI FLB is preserved");
    const { pa, lengthBytes } = this.#outgoing;
    this.#outgoing = null;
    this.#deps.records.free(pa, lengthBytes);
  }

  #adopt(state: HandedOverPci): void {
    const { records, machine } = this.#deps;
    assert(!this.#isEnumerated, "a handover is adopted before anything is enumerated");
    this.#take(inherit(this.#access, machine.firmware, this.#numbered, state.records));
    // Every word of it is in `state`.
    records.release(state.pa, state.lengthBytes);
  }

  #take(found: Enumeration): void {
    this.#devices = found.devices;
    this.#warnings = found.warnings;
    this.#isEnumerated = true;
  }

  #find(segment: number, bdf: number): PciDevice | undefined {
    return this.#devices.find((d) => d.segment === segment && d.bdf === bdf);
  }

  #own(pci: PciFunction): PciDevice {
    const device = this.#find(pci.segment, pci.bdf);
    assert(
      device !== undefined && device === pci,
      `${pciName(pci.segment, pci.bdf)} on bus ${busOf(pci.bdf)} is of this kernel`,
    );
    return device;
  }
}
