/**
 * Blocking all DMA when a handover is refused, with nothing but registers and one page.
 * @module
 */
import { EVENT_IM, FECTL_REG, GCMD_SRTP, GCMD_TE, RTADDR_REG } from "../../abi/vtd/registers.ts";
import { PAGE_SIZE } from "../../base/units.ts";
import type { Machine } from "../../machine/machine.ts";
import { RegisterInvalidation } from "./invalidation.ts";
import { UnitRegisters } from "./unit-registers.ts";

/**
 * Points every remapping unit that translates to an empty root table and flushes, so no device can reach memory any
 * more. Translation stays on. Units that do not translate are left alone: bus mastering must be off behind them
 * already (`quiesceAll` of kernel/pci). Ordinary start-up (`VtdIommu.start`) may follow.
 *
 * @param emptyRootTable - physical address of a page that stays reserved; it is zeroed here
 */
export function blockAll(machine: Machine, emptyRootTable: number): void {
  machine.memory.fill(emptyRootTable, PAGE_SIZE, 0);
  machine.memory.fence();
  for (const { registerBase } of machine.firmware.drhds) {
    const registers = new UnitRegisters(machine.mmio, registerBase);
    if (!registers.status(GCMD_TE)) continue;
    registers.write32(FECTL_REG, EVENT_IM);
    const caches = new RegisterInvalidation(registers);
    registers.flushWriteBuffer();
    registers.write64(RTADDR_REG, emptyRootTable);
    registers.enable(GCMD_SRTP);
    caches.contextGlobal();
    caches.iotlbGlobal();
  }
}
