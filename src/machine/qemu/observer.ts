/**
 * What the hardware of a QEMU machine says of itself between kernels: how far its NICs have come, what its remapping
 * unit has blocked.
 *
 * Reads only, of what no kernel's driver reads: nothing that the next kernel finds is changed.
 * @module
 */
import {
  E1000_MPC,
  E1000_RCTL,
  E1000_RCTL_EN,
  E1000_RDH,
  E1000_RDLEN,
  E1000_TPR,
} from "../../abi/e1000e.ts";
import {
  ecamOffset,
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_MEM_FLAGS,
  PCI_COMMAND,
  PCI_COMMAND_MEMORY,
  PCI_SECONDARY_BUS,
} from "../../abi/pci.ts";
import { decodeFaultRecord, type FaultRecord, FSTS_PFO } from "../../abi/vtd/faults.ts";
import {
  CAP_REG,
  decodeCap,
  FRCD_BYTES,
  FSTS_REG,
  GSTS_REG,
  GSTS_TES,
} from "../../abi/vtd/registers.ts";
import type { Firmware, Mmio } from "../machine.ts";
import type { NicPlace } from "./q35.ts";

const DESCRIPTOR_BYTES = 16;

/** Where a NIC's receive ring stands. */
export interface RingPosition {
  readonly head: number;
  /** Descriptors. */
  readonly size: number;
}

export interface FrameCounts {
  /** Frames that the NIC took. */
  readonly received: number;
  /** Frames for which it had no descriptor. */
  readonly missed: number;
  readonly isReceiving: boolean;
}

/** The remapping unit's own word. */
export interface RemappingState {
  readonly translationEnabled: boolean;
  readonly faults: readonly FaultRecord[];
  /** There were more faults than records. */
  readonly faultsLost: boolean;
}

export class HardwareObserver {
  readonly #mmio: Mmio;
  readonly #firmware: Firmware;

  constructor(mmio: Mmio, firmware: Firmware) {
    this.#mmio = mmio;
    this.#firmware = firmware;
  }

  /** Null while no kernel has set the NIC up. */
  receiveRing(place: NicPlace): RingPosition | null {
    const bar = this.#bar0(place);
    if (bar === null) return null;
    const size = this.#mmio.read(bar + E1000_RDLEN, 4) / DESCRIPTOR_BYTES;
    return size === 0 ? null : { head: this.#mmio.read(bar + E1000_RDH, 4), size };
  }

  /** What the NIC has counted since it was reset. Once: reading clears it. */
  takeFrameCounts(place: NicPlace): FrameCounts {
    const bar = this.#bar0(place);
    if (bar === null) return { received: 0, missed: 0, isReceiving: false };
    return {
      received: this.#mmio.read(bar + E1000_TPR, 4),
      missed: this.#mmio.read(bar + E1000_MPC, 4),
      isReceiving: (this.#mmio.read(bar + E1000_RCTL, 4) & E1000_RCTL_EN) !== 0,
    };
  }

  remapping(): RemappingState {
    const base = this.#firmware.drhds[0].registerBase;
    const read = (offset: number) => this.#mmio.read(base + offset, 4);
    const { nfr, faultRecordingOffset } = decodeCap(read(CAP_REG), read(CAP_REG + 4));
    const faults: FaultRecord[] = [];
    for (let i = 0; i < nfr; i++) {
      const at = faultRecordingOffset + i * FRCD_BYTES;
      const fault = decodeFaultRecord(read(at), read(at + 4), read(at + 8), read(at + 12));
      if (fault !== null) faults.push(fault);
    }
    return {
      translationEnabled: (read(GSTS_REG) & GSTS_TES) !== 0,
      faults,
      faultsLost: (read(FSTS_REG) & FSTS_PFO) !== 0,
    };
  }

  /** The function's address as buses are numbered now. */
  bdf({ port, nic }: NicPlace): number {
    const devfn = (nic.device << 3) | nic.function;
    if (port === null) return devfn;
    const portBdf = (port.device << 3) | port.function;
    return (this.#mmio.read(this.#config(portBdf) + PCI_SECONDARY_BUS, 1) << 8) | devfn;
  }

  /** Null while it does not decode. */
  #bar0(place: NicPlace): number | null {
    const bdf = this.bdf(place);
    // A root port without a bus number leads nowhere.
    if (place.port !== null && bdf < 0x100) return null;
    const config = this.#config(bdf);
    const command = this.#mmio.read(config + PCI_COMMAND, 2);
    if (command === 0xffff || (command & PCI_COMMAND_MEMORY) === 0) return null;
    const bar = this.#mmio.read(config + PCI_BASE_ADDRESS_0, 4);
    return bar - (bar & PCI_BASE_ADDRESS_MEM_FLAGS);
  }

  #config(bdf: number): number {
    const [{ base, startBus }] = this.#firmware.ecams;
    return base + ecamOffset(startBus, bdf);
  }
}
