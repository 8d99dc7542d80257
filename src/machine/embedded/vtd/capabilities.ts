/**
 * What a remapping unit can do: the values behind its CAP and ECAP registers.
 *
 * Why: a driver must read them instead of assuming, so tests build units that lack page sizes or levels.
 * @module
 */

import type { VtdCap, VtdEcap } from "../../../abi/vtd/registers.ts";
import { FRCD_BYTES, VTD_REGISTERS_BYTES } from "../../../abi/vtd/registers.ts";
import { AW_39_BIT, AW_48_BIT, addressWidthBits } from "../../../abi/vtd/root-context.ts";
import { assert } from "../../../base/assert.ts";

/** Capabilities of one unit. Make others by spreading {@link DEFAULT_VTD_CAPABILITIES}. */
export interface VtdCapabilities {
  readonly cap: VtdCap;
  readonly ecap: VtdEcap;
  /** Bits of a physical address: what firmware's DMAR table calls host address width. 32 to 52. */
  readonly hostAddressWidth: number;
  /** Source-ids in the context cache: a power of two, at least 4. */
  readonly contextCacheEntries: number;
  /** Translations in the IOTLB for each page size, and table entries cached for each level: a power of two, at least 4. */
  readonly iotlbEntries: number;
}

/** 3 and 4 levels, all page sizes, 64K domains, queued invalidation, pass-through, 8 fault records. */
export const DEFAULT_VTD_CAPABILITIES: VtdCapabilities = {
  cap: {
    nd: 6,
    rwbf: false,
    cm: false,
    sagaw: (1 << AW_39_BIT) | (1 << AW_48_BIT),
    mgaw: 48,
    faultRecordingOffset: 0x220,
    sllps: 0b11,
    psi: true,
    nfr: 8,
    mamv: 18,
    dwd: true,
    drd: true,
  },
  ecap: {
    coherent: true,
    qi: true,
    dt: false,
    ir: false,
    pt: true,
    sc: false,
    iotlbOffset: 0xf0,
  },
  hostAddressWidth: 52,
  contextCacheEntries: 64,
  iotlbEntries: 256,
};

/** The largest AW that SAGAW has: what a pass-through entry must say. */
export function widestAddressWidth(sagaw: number): number {
  return (sagaw & (1 << AW_48_BIT)) !== 0 ? AW_48_BIT : AW_39_BIT;
}

/** Refuses what the model does not have, and registers that would overlap. */
export function checkCapabilities(capabilities: VtdCapabilities): void {
  const { cap, ecap, hostAddressWidth } = capabilities;
  const modelled = (1 << AW_39_BIT) | (1 << AW_48_BIT);
  assert(cap.sagaw !== 0 && (cap.sagaw & ~modelled) === 0, "SAGAW is 39 bit, 48 bit or both");
  assert(cap.mgaw <= addressWidthBits(widestAddressWidth(cap.sagaw)), "MGAW within SAGAW");
  assert((cap.sllps & ~0b11) === 0, "SLLPS has 2 MiB and 1 GiB only");
  assert(!ecap.dt && !ecap.ir, "device-TLBs and interrupt remapping are not modelled");
  assert(hostAddressWidth >= 32 && hostAddressWidth <= 52, "host address width 32 to 52");
  for (const entries of [capabilities.contextCacheEntries, capabilities.iotlbEntries])
    assert(entries >= 4 && (entries & (entries - 1)) === 0, "cache sizes are powers of two from 4");
  const records = cap.faultRecordingOffset;
  const recordsEnd = records + cap.nfr * FRCD_BYTES;
  const iotlb = ecap.iotlbOffset;
  assert(
    records >= 0xc0 && recordsEnd <= VTD_REGISTERS_BYTES && iotlb >= 0xc0,
    "fault records and IOTLB registers lie behind the fixed registers",
  );
  assert(
    iotlb + 16 <= VTD_REGISTERS_BYTES && (iotlb + 16 <= records || iotlb >= recordsEnd),
    "fault records and IOTLB registers do not overlap",
  );
}
