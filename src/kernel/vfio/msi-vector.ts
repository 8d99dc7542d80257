/**
 * The one number that VFIO needs to know of a function's MSI.
 * @module
 */
import type { PciFunction } from "../pci/function.ts";
import { readMsi } from "../pci/msi.ts";

/** The vector that the function raises; 0 when its MSI is off, or it has none; -1 when it goes elsewhere. */
export function enabledMsiVector(pci: PciFunction): number {
  const msi = readMsi(pci);
  if (msi === null || !msi.isEnabled) return 0;
  return msi.vector ?? -1;
}
