/**
 * One MSI vector of a function.
 *
 * Source: PCI Local Bus 3.0 §6.8.1; Intel SDM Vol. 3 §11.11 (address and data on x86)
 * @module
 */
import {
  MSI_ADDRESS_BASE,
  MSI_DATA_VECTOR_MASK,
  PCI_CAP_ID_MSI,
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
import type { PciFunction } from "../pci/function.ts";

/** Whether the function can send MSIs. */
export function hasMsi(pci: PciFunction): boolean {
  return pci.capability(PCI_CAP_ID_MSI) !== 0;
}

/** The vector that the function sends, or 0 when its MSI is off. */
export function enabledMsiVector(pci: PciFunction): number {
  const at = pci.capability(PCI_CAP_ID_MSI);
  if (at === 0) return 0;
  const flags = pci.configRead(at + PCI_MSI_FLAGS, 2);
  if ((flags & PCI_MSI_FLAGS_ENABLE) === 0) return 0;
  const data = (flags & PCI_MSI_FLAGS_64BIT) !== 0 ? PCI_MSI_DATA_64 : PCI_MSI_DATA_32;
  return pci.configRead(at + data, 2) & MSI_DATA_VECTOR_MASK;
}

/** Lets the function send one vector, fixed delivery to processor 0. It must have MSI. */
export function enableMsi(pci: PciFunction, vector: number): void {
  const at = pci.capability(PCI_CAP_ID_MSI);
  const flags =
    pci.configRead(at + PCI_MSI_FLAGS, 2) & ~(PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE);
  const is64 = (flags & PCI_MSI_FLAGS_64BIT) !== 0;
  // Off while address and data change: the function must not send half of each.
  pci.configWrite(at + PCI_MSI_FLAGS, 2, flags);
  pci.configWrite(at + PCI_MSI_ADDRESS_LO, 4, MSI_ADDRESS_BASE);
  if (is64) pci.configWrite(at + PCI_MSI_ADDRESS_HI, 4, 0);
  pci.configWrite(at + (is64 ? PCI_MSI_DATA_64 : PCI_MSI_DATA_32), 2, vector);
  if ((flags & PCI_MSI_FLAGS_MASKBIT) !== 0)
    pci.configWrite(at + (is64 ? PCI_MSI_MASK_64 : PCI_MSI_MASK_32), 4, 0);
  pci.configWrite(at + PCI_MSI_FLAGS, 2, flags | PCI_MSI_FLAGS_ENABLE);
}

/** Stops the function's MSIs. */
export function disableMsi(pci: PciFunction): void {
  const at = pci.capability(PCI_CAP_ID_MSI);
  if (at === 0) return;
  const flags = pci.configRead(at + PCI_MSI_FLAGS, 2);
  pci.configWrite(at + PCI_MSI_FLAGS, 2, flags & ~PCI_MSI_FLAGS_ENABLE);
}
