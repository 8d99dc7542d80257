/**
 * One PCI function of this kernel: registers by name, bus mastering, capabilities, reset.
 *
 * Source: Linux 7.3 drivers/pci/pci.c (pci_set_master, pci_find_capability, pcie_flr,
 *   pci_wait_for_pending_transaction, pci_save_state)
 * @module
 */
import {
  PCI_BASE_ADDRESS_0,
  PCI_CACHE_LINE_SIZE,
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_MSI,
  PCI_CLASS_REVISION,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_MASTER,
  PCI_EXP_DEVCAP,
  PCI_EXP_DEVCAP_FLR,
  PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL_BCR_FLR,
  PCI_EXP_DEVSTA,
  PCI_EXP_DEVSTA_TRPND,
  PCI_INTERRUPT_LINE,
  PCI_MSI_FLAGS,
  PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_MASKBIT,
  PCI_STD_NUM_BARS,
  PCI_VENDOR_ID,
} from "../../abi/pci.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { type BarShape, barAddress, readBarRegisters } from "./base-address.ts";
import type { ConfigAccess } from "./config-access.ts";
import { type PciBar, type PciFunction, pciName } from "./function.ts";
import { type FoundFunction, findCapabilities } from "./scan.ts";

/** Reads until a function has its completions, or answers again. Each is a bus transaction: a second on real hardware. */
const RESET_POLLS_MAX = 1_000_000;

export class PciDevice implements PciFunction {
  readonly segment: number;
  readonly bdf: number;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly classCode: number;
  readonly isBridge: boolean;
  readonly parent: PciDevice | null;
  /** Memory BARs, whether they have addresses or not. Known after enumeration. */
  shapes: readonly BarShape[] = [];
  bars: readonly PciBar[] = [];
  isIncoming = false;
  /** How often it is preserved; for a bridge, the sum of what is below. */
  preserveCount = 0;
  /** BAR registers as this kernel knows them; it alone writes to them. Known after enumeration. */
  rawBars: readonly number[] = [];
  readonly #access: ConfigAccess;
  #capabilities: ReadonlyMap<number, number> | null = null;

  constructor(access: ConfigAccess, found: FoundFunction, parent: PciDevice | null) {
    this.#access = access;
    this.segment = found.segment;
    this.bdf = found.bdf;
    this.parent = parent;
    this.vendorId = found.vendorId;
    this.deviceId = found.deviceId;
    this.isBridge = found.isBridge;
    this.classCode = this.configRead(PCI_CLASS_REVISION, 4) >>> 8;
  }

  /** "0000:00:05.0" */
  get name(): string {
    return pciName(this.segment, this.bdf);
  }

  configRead(offset: number, size: 1 | 2 | 4): number {
    return this.#access.read(this.segment, this.bdf, offset, size);
  }

  configWrite(offset: number, size: 1 | 2 | 4, value: number): void {
    this.#access.write(this.segment, this.bdf, offset, size, value);
  }

  /** Sets and clears bits of the command register. Writes only if that changes it. */
  changeCommand(set: number, clear: number): void {
    const command = this.configRead(PCI_COMMAND, 2);
    const changed = (command | set) & ~clear;
    if (changed !== command) this.configWrite(PCI_COMMAND, 2, changed);
  }

  /** BAR registers as they read. */
  barRegisters(): number[] {
    return readBarRegisters(this.#access, this.segment, this.bdf, this.isBridge);
  }

  /** Takes over the addresses that the BARs hold. @param raw - as they read */
  takeBars(raw: readonly number[]): void {
    this.rawBars = raw;
    const bars = this.shapes.map((shape) => {
      const { index, sizeBytes, is64 } = shape;
      return { index, sizeBytes, is64, address: barAddress(shape, raw) };
    });
    this.bars = bars.filter((bar) => bar.address !== 0);
  }

  capability(id: number): number {
    // They do not change: one walk for all.
    this.#capabilities ??= findCapabilities(this.#access, this.segment, this.bdf);
    return this.#capabilities.get(id) ?? 0;
  }

  setBusMaster(on: boolean): void {
    if (!on) {
      this.changeCommand(0, PCI_COMMAND_MASTER);
      return;
    }
    // The bridges above first: a request that a bridge does not forward is an error to the device.
    this.parent?.setBusMaster(true);
    this.changeCommand(PCI_COMMAND_MASTER, 0);
  }

  /**
   * Function level reset. BARs, command register and MSI are as before afterwards; the device is as after power-on.
   *
   * The specification asks for 100 ms before the first access; the machines that we run on complete the reset within
   * the write that starts it, so only the wait for an answer is here.
   * @throws {KernelError} ENOTTY without FLR; EBUSY while preserved; EIO when it does not come back
   */
  reset(): void {
    if (this.preserveCount > 0)
      throw new KernelError("EBUSY", "reset", `${this.name} is preserved for the next kernel`);
    const express = this.capability(PCI_CAP_ID_EXP);
    if (express === 0 || !hasFlr(this.configRead(express + PCI_EXP_DEVCAP, 4)))
      throw new KernelError("ENOTTY", "reset", `${this.name} has no function level reset`);
    const command = this.configRead(PCI_COMMAND, 2);
    const saved = this.#save();
    // Neither requests nor accesses while it resets.
    this.configWrite(PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
    this.#awaitCompletions(express);
    const control = this.configRead(express + PCI_EXP_DEVCTL, 2);
    this.configWrite(express + PCI_EXP_DEVCTL, 2, control | PCI_EXP_DEVCTL_BCR_FLR);
    this.#awaitAnswer();
    this.configWrite(express + PCI_EXP_DEVCTL, 2, control & ~PCI_EXP_DEVCTL_BCR_FLR);
    for (const [offset, value] of saved) this.configWrite(offset, 4, value);
    // Last: with its addresses in place it may decode and master again.
    this.configWrite(PCI_COMMAND, 2, command);
  }

  /** Registers that a reset loses, by offset, in the order to write them back. */
  #save(): [number, number][] {
    assert(!this.isBridge, "bridges have no function level reset");
    const offsets: number[] = [PCI_CACHE_LINE_SIZE, PCI_INTERRUPT_LINE];
    for (let i = 0; i < PCI_STD_NUM_BARS; i++) offsets.push(PCI_BASE_ADDRESS_0 + 4 * i);
    const msi = this.capability(PCI_CAP_ID_MSI);
    if (msi !== 0) {
      // Address, data and mask before the flags, which enable it.
      for (let i = 1; i < msiDwords(this.configRead(msi + PCI_MSI_FLAGS, 2)); i++)
        offsets.push(msi + 4 * i);
      offsets.push(msi);
    }
    return offsets.map((offset) => [offset, this.configRead(offset, 4)]);
  }

  /**
   * Waits for the completions of requests that are under way: one that comes after the reset may be taken for the answer
   * to a new request (PCIe §6.6.2). A function that never gets them is reset all the same: that is what a reset is for.
   */
  #awaitCompletions(express: number): void {
    for (let i = 0; i < RESET_POLLS_MAX; i++)
      if ((this.configRead(express + PCI_EXP_DEVSTA, 2) & PCI_EXP_DEVSTA_TRPND) === 0) return;
  }

  #awaitAnswer(): void {
    for (let i = 0; i < RESET_POLLS_MAX; i++)
      if (this.configRead(PCI_VENDOR_ID, 2) === this.vendorId) return;
    throw new KernelError("EIO", "reset", `${this.name} does not answer after its reset`);
  }
}

function hasFlr(deviceCapabilities: number): boolean {
  return (deviceCapabilities & PCI_EXP_DEVCAP_FLR) !== 0;
}

/** Dwords of the MSI capability with these flags. */
function msiDwords(flags: number): number {
  const addressDwords = (flags & PCI_MSI_FLAGS_64BIT) !== 0 ? 2 : 1;
  const maskDwords = (flags & PCI_MSI_FLAGS_MASKBIT) !== 0 ? 2 : 0;
  return 1 + addressDwords + 1 + maskDwords;
}
