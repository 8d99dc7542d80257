/**
 * Message signalled interrupts of a function.
 *
 * Source: PCI Local Bus 3.0 §6.8.1; Intel SDM Vol. 3 §11.11 (address and data); Linux 7.3 drivers/pci/msi/msi.c
 * Not modelled: MSI-X, more than one vector, destinations (there is one processor), interrupt remapping.
 * @module
 */
import {
  MSI_ADDRESS_BASE,
  MSI_ADDRESS_LAST,
  MSI_DATA_VECTOR_MASK,
  PCI_CAP_ID_MSI,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_MSI_ADDRESS_HI,
  PCI_MSI_ADDRESS_LO,
  PCI_MSI_DATA_32,
  PCI_MSI_DATA_64,
  PCI_MSI_FLAGS,
  PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_ENABLE,
  PCI_MSI_FLAGS_MASKBIT,
  PCI_MSI_FLAGS_QSIZE,
  PCI_MSI_MASK_32,
  PCI_MSI_MASK_64,
} from "../../abi/pci.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { type PciFunction, pciName } from "./function.ts";

/** MSI as the function's registers say it. */
export interface MsiState {
  readonly isEnabled: boolean;
  /** The vector that it raises; null when its address is not the interrupt controller's. */
  readonly vector: number | null;
  /** Whether the vector is masked; false where there is no mask bit. */
  readonly isMasked: boolean;
}

/**
 * Makes the function raise `vector`.
 *
 * @param vector - 32 to 255
 * @throws {KernelError} EINVAL when the function has no MSI
 */
export function enableMsi(pci: PciFunction, vector: number): void {
  assert(vector >= 32 && vector <= 255, `vector ${vector}`);
  const at = msiCapability(pci);
  const flags = disabledFlags(pci, at);
  pci.configWrite(at + PCI_MSI_FLAGS, 2, flags);
  const is64 = (flags & PCI_MSI_FLAGS_64BIT) !== 0;
  pci.configWrite(at + PCI_MSI_ADDRESS_LO, 4, MSI_ADDRESS_BASE);
  if (is64) pci.configWrite(at + PCI_MSI_ADDRESS_HI, 4, 0);
  pci.configWrite(at + (is64 ? PCI_MSI_DATA_64 : PCI_MSI_DATA_32), 2, vector);
  const maskAt = maskRegister(at, flags);
  if (maskAt !== 0) pci.configWrite(maskAt, 4, pci.configRead(maskAt, 4) & ~1);
  const command = pci.configRead(PCI_COMMAND, 2);
  pci.configWrite(PCI_COMMAND, 2, command | PCI_COMMAND_INTX_DISABLE);
  // Last, when all of the message is in place: half an address would be a DMA write to anywhere.
  pci.configWrite(at + PCI_MSI_FLAGS, 2, flags | PCI_MSI_FLAGS_ENABLE);
}

/**
 * Stops the function's MSI. Its address and data stay.
 *
 * @throws {KernelError} EINVAL when the function has no MSI
 */
export function disableMsi(pci: PciFunction): void {
  const at = msiCapability(pci);
  pci.configWrite(at + PCI_MSI_FLAGS, 2, disabledFlags(pci, at));
}

/**
 * Holds the function's vector back, or lets it go.
 *
 * With a mask bit what happens meanwhile is delivered later. Without one, MSI is disabled instead (as INTx is, nothing
 * else is raised), and what happens meanwhile is lost: the caller must look at the device after unmasking.
 * @throws {KernelError} EINVAL when the function has no MSI
 */
export function maskMsi(pci: PciFunction, isMasked: boolean): void {
  const at = msiCapability(pci);
  const flags = pci.configRead(at + PCI_MSI_FLAGS, 2);
  const maskAt = maskRegister(at, flags);
  if (maskAt !== 0) {
    const mask = pci.configRead(maskAt, 4);
    pci.configWrite(maskAt, 4, isMasked ? mask | 1 : mask & ~1);
    return;
  }
  const enable = isMasked ? 0 : PCI_MSI_FLAGS_ENABLE;
  pci.configWrite(at + PCI_MSI_FLAGS, 2, disabledFlags(pci, at) | enable);
}

/** What is set up now, by this kernel or the one before; null when the function has no MSI. Reads only. */
export function readMsi(pci: PciFunction): MsiState | null {
  const at = pci.capability(PCI_CAP_ID_MSI);
  if (at === 0) return null;
  const flags = pci.configRead(at + PCI_MSI_FLAGS, 2);
  const is64 = (flags & PCI_MSI_FLAGS_64BIT) !== 0;
  const high = is64 ? pci.configRead(at + PCI_MSI_ADDRESS_HI, 4) : 0;
  const address = pci.configRead(at + PCI_MSI_ADDRESS_LO, 4) + high * 2 ** 32;
  const data = pci.configRead(at + (is64 ? PCI_MSI_DATA_64 : PCI_MSI_DATA_32), 2);
  const maskAt = maskRegister(at, flags);
  return {
    isEnabled: (flags & PCI_MSI_FLAGS_ENABLE) !== 0,
    vector:
      address >= MSI_ADDRESS_BASE && address <= MSI_ADDRESS_LAST
        ? data & MSI_DATA_VECTOR_MASK
        : null,
    isMasked: maskAt !== 0 && (pci.configRead(maskAt, 4) & 1) !== 0,
  };
}

function msiCapability(pci: PciFunction): number {
  const at = pci.capability(PCI_CAP_ID_MSI);
  if (at === 0) throw new KernelError("EINVAL", "msi", `${pciName(pci.segment, pci.bdf)} has none`);
  return at;
}

/** Flags with MSI off and one vector. */
function disabledFlags(pci: PciFunction, at: number): number {
  const flags = pci.configRead(at + PCI_MSI_FLAGS, 2);
  return flags & ~(PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE);
}

/** The mask register, or 0. */
function maskRegister(at: number, flags: number): number {
  if ((flags & PCI_MSI_FLAGS_MASKBIT) === 0) return 0;
  return at + ((flags & PCI_MSI_FLAGS_64BIT) !== 0 ? PCI_MSI_MASK_64 : PCI_MSI_MASK_32);
}
