/**
 * What endpoints and bridges of the fabric have in common: a place on a bus, config space, the command register.
 *
 * Invariant: a function's requester id follows from its bridge's bus number register as it is now, so that a kernel
 * that renumbers a bus under DMA sees the DMA fault.
 * @module
 */
import {
  PCI_CAP_ID_EXP,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_COMMAND_PARITY,
  PCI_COMMAND_SERR,
  PCI_EXP_DEVCAP,
  PCI_EXP_FLAGS,
  PCI_EXP_FLAGS_TYPE_SHIFT,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_MFD,
} from "../../../abi/pci.ts";
import { ConfigSpace } from "./config-space.ts";

/** Offset of the PCI Express capability in all our functions, as in QEMU's e1000e. */
export const EXP_CAPABILITY = 0xe0;

/** The bus that functions are on: the root bus, or the one below a bridge. */
export interface FabricBus {
  /** Its number now. */
  readonly number: number;
  /** Whether requests of functions on it reach memory: every bridge above has bus mastering. */
  readonly forwardsUpstream: boolean;
  /** By device << 3 | function. */
  readonly functions: Map<number, FabricFunction>;
}

export abstract class FabricFunction {
  readonly bus: FabricBus;
  /** device << 3 | function. */
  readonly devfn: number;
  protected readonly config = new ConfigSpace();

  constructor(bus: FabricBus, devfn: number) {
    this.bus = bus;
    this.devfn = devfn;
    this.config.define(
      PCI_COMMAND,
      2,
      0,
      PCI_COMMAND_MEMORY |
        PCI_COMMAND_MASTER |
        PCI_COMMAND_PARITY |
        PCI_COMMAND_SERR |
        PCI_COMMAND_INTX_DISABLE,
    );
  }

  /** bus << 8 | device << 3 | function, as the bus is numbered now. */
  get bdf(): number {
    return (this.bus.number << 8) | this.devfn;
  }

  /** Whether it answers memory accesses. */
  get memoryEnabled(): boolean {
    return (this.config.read(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) !== 0;
  }

  /** Whether it may make requests of its own (a bridge: forward them upstream). */
  get busMaster(): boolean {
    return (this.config.read(PCI_COMMAND, 2) & PCI_COMMAND_MASTER) !== 0;
  }

  configRead(offset: number, size: 1 | 2 | 4): number {
    return this.config.read(offset, size);
  }

  abstract configWrite(offset: number, size: 1 | 2 | 4, value: number): void;

  /** Reads memory space at `address`. @returns null when nothing here claims the address */
  abstract memoryRead(address: number, size: 1 | 2 | 4): number | null;
  /** @returns whether something here claimed the address */
  abstract memoryWrite(address: number, size: 1 | 2 | 4, value: number): boolean;
  /** All state as after power-on, in everything below too. */
  abstract reset(): void;

  /** Says in function 0 that the device has more functions. */
  markMultifunction(): void {
    const type = this.config.read(PCI_HEADER_TYPE, 1);
    this.config.define(PCI_HEADER_TYPE, 1, type | PCI_HEADER_TYPE_MFD);
  }

  /** The PCI Express capability, version 2, last in the list. */
  protected defineExpress(portType: number, deviceCapabilities: number): void {
    const config = this.config;
    config.define(EXP_CAPABILITY, 2, PCI_CAP_ID_EXP);
    config.define(EXP_CAPABILITY + PCI_EXP_FLAGS, 2, 2 | (portType << PCI_EXP_FLAGS_TYPE_SHIFT));
    config.define(EXP_CAPABILITY + PCI_EXP_DEVCAP, 4, deviceCapabilities);
  }
}
