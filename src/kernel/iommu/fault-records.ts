/**
 * Reading what a remapping unit has recorded about blocked DMA.
 *
 * Records are polled: nothing in this kernel has to happen at once when a DMA was blocked, so the fault event stays masked.
 * Source: VT-d spec rev 5.0 §7.2.1, §11.4.7
 * @module
 */
import {
  decodeFaultRecord,
  type FaultRecord,
  FRCD_W3_F,
  FSTS_FRI_SHIFT,
  FSTS_PFO,
  FSTS_PPF,
} from "../../abi/vtd/faults.ts";
import { FRCD_BYTES, FSTS_REG } from "../../abi/vtd/registers.ts";
import type { UnitRegisters } from "./unit-registers.ts";

/**
 * Takes all records out of a unit, oldest first, so that they can be used again.
 *
 * @param take - called for each record
 * @returns whether faults were lost because all records were in use
 */
export function drainFaults(registers: UnitRegisters, take: (fault: FaultRecord) => void): boolean {
  const { nfr, faultRecordingOffset } = registers.cap;
  const status = registers.read32(FSTS_REG);
  if ((status & FSTS_PPF) !== 0) {
    const first = (status >>> FSTS_FRI_SHIFT) & 0xff;
    for (let i = 0; i < nfr; i++) {
      const at = faultRecordingOffset + ((first + i) % nfr) * FRCD_BYTES;
      const w3 = registers.read32(at + 12);
      const fault = decodeFaultRecord(
        registers.read32(at),
        registers.read32(at + 4),
        registers.read32(at + 8),
        w3,
      );
      if (fault === null) continue;
      take(fault);
      registers.write32(at + 12, FRCD_W3_F);
    }
  }
  if ((status & FSTS_PFO) === 0) return false;
  registers.write32(FSTS_REG, FSTS_PFO);
  return true;
}
