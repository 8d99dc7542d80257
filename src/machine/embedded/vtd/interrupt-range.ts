/**
 * The addresses whose writes are interrupts.
 * Source: Intel VT-d specification rev 5.0 §3.14 (handling requests to interrupt address range).
 * @module
 */

/** Whether an address is in 0xfee00000 to 0xfeefffff. */
export function isInterruptAddress(address: number): boolean {
  return address >= 0xfee00000 && address <= 0xfeefffff;
}
