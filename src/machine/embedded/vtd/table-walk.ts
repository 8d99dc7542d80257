/**
 * Walks through root, context and second-stage tables in memory.
 *
 * Why: this is all that hardware knows of what a kernel means: bits in memory, checked as the specification
 * says, each wrong one with its own fault reason.
 * Source: Intel VT-d specification rev 5.0 §3.4, §3.7, §7 (legacy-mode fault conditions), §9.1, §9.3, §9.8.
 * A present entry is checked for reserved bits before its rights count. An entry is taken whole: its low half
 * is read again after the high one, so a 64-bit store of the kernel is never seen half done.
 * Not modelled: first-stage, nested and scalable-mode translation, accessed and dirty bits.
 * @module
 */
import {
  FAULT_BEYOND_MGAW,
  FAULT_CONTEXT_INVALID,
  FAULT_CONTEXT_NOT_PRESENT,
  FAULT_CONTEXT_RESERVED,
  FAULT_CONTEXT_TABLE_ACCESS,
  FAULT_PAGING_ENTRY_ACCESS,
  FAULT_PAGING_ENTRY_RESERVED,
  FAULT_READ,
  FAULT_ROOT_NOT_PRESENT,
  FAULT_ROOT_RESERVED,
  FAULT_ROOT_TABLE_ACCESS,
  FAULT_WRITE,
} from "../../../abi/vtd/faults.ts";
import {
  addressWidthBits,
  addressWidthLevels,
  CONTEXT_FPD,
  CONTEXT_P,
  contextAddressWidth,
  contextDomainId,
  contextEntryAddress,
  contextEntryHasReserved,
  contextTranslationType,
  ENTRY_BYTES,
  ROOT_P,
  rootEntryAddress,
  rootEntryHasReserved,
  TT_MULTI_LEVEL,
  TT_PASS_THROUGH,
  tableAddress,
} from "../../../abi/vtd/root-context.ts";
import {
  SS_ENTRY_BYTES,
  SS_R,
  SS_W,
  type SsReservedBits,
  ssAddress,
  ssIndex,
  ssIsLeaf,
  ssIsPresent,
  ssReservedBits,
} from "../../../abi/vtd/second-stage.ts";
import type { PhysicalMemory } from "../../machine.ts";
import { type VtdCapabilities, widestAddressWidth } from "./capabilities.ts";
import type { PagingStructureCache } from "./paging-structure-cache.ts";

/** No fault: reason 0 is for software. */
export const NO_FAULT = 0;

/** The part of physical memory that the walk uses. */
export type WalkMemory = Pick<PhysicalMemory, "contains" | "loadOrdered32">;

/** Its methods return a fault reason or {@link NO_FAULT} and leave what they found in the fields, so that a walk allocates nothing. */
export class TableWalk {
  /** After {@link context}: DID (after a fault that of a present context entry, else 0), first address out of bounds, top table, its level (-1: pass-through). */
  domainId = 0;
  addressLimit = 0;
  tableAddress = 0;
  topLevel = 0;
  /** After {@link context}, also after a fault: FPD of the context entry, if one was read. */
  faultDisable = false;
  /** After {@link secondStage}: the leaf's level and the address of its page; SS_R | SS_W of the way as far as it went. */
  leafLevel = 0;
  pageAddress = 0;
  rights = 0;

  readonly #memory: WalkMemory;
  readonly #capabilities: VtdCapabilities;
  readonly #structures: PagingStructureCache;
  readonly #reserved: SsReservedBits;
  readonly #domainIdBits: number;
  readonly #words = new Uint32Array(4);

  /** @param structures - what walks leave for later ones */
  constructor(memory: WalkMemory, capabilities: VtdCapabilities, structures: PagingStructureCache) {
    this.#memory = memory;
    this.#structures = structures;
    this.#capabilities = capabilities;
    this.#domainIdBits = 4 + 2 * capabilities.cap.nd;
    this.#reserved = ssReservedBits(
      capabilities.hostAddressWidth,
      capabilities.cap.sllps,
      capabilities.ecap.sc,
    );
  }

  /** Finds the context entry of a source-id. */
  context(rootTable: number, sourceId: number): number {
    const { cap, ecap, hostAddressWidth } = this.#capabilities;
    const words = this.#words;
    this.faultDisable = false;
    this.domainId = 0;

    if (!this.#loadEntry(rootEntryAddress(rootTable, sourceId))) return FAULT_ROOT_TABLE_ACCESS;
    if ((words[0] & ROOT_P) === 0) return FAULT_ROOT_NOT_PRESENT;
    if (rootEntryHasReserved(words[0], words[1], words[2], words[3], hostAddressWidth))
      return FAULT_ROOT_RESERVED;

    const contextTable = tableAddress(words[0], words[1]);
    if (!this.#loadEntry(contextEntryAddress(contextTable, sourceId)))
      return FAULT_CONTEXT_TABLE_ACCESS;
    this.faultDisable = (words[0] & CONTEXT_FPD) !== 0;
    if ((words[0] & CONTEXT_P) === 0) return FAULT_CONTEXT_NOT_PRESENT;
    this.domainId = contextDomainId(words[2]);
    if (
      contextEntryHasReserved(
        words[0],
        words[1],
        words[2],
        words[3],
        hostAddressWidth,
        this.#domainIdBits,
      )
    )
      return FAULT_CONTEXT_RESERVED;

    const width = contextAddressWidth(words[2]);
    if ((cap.sagaw & (1 << width)) === 0) return FAULT_CONTEXT_INVALID;
    const type = contextTranslationType(words[0]);
    if (type === TT_PASS_THROUGH) {
      if (!ecap.pt || width !== widestAddressWidth(cap.sagaw)) return FAULT_CONTEXT_INVALID;
      this.topLevel = -1;
    } else if (type === TT_MULTI_LEVEL) {
      this.topLevel = addressWidthLevels(width) - 1;
    } else return FAULT_CONTEXT_INVALID;
    this.tableAddress = tableAddress(words[0], words[1]);
    this.addressLimit = 2 ** Math.min(cap.mgaw, addressWidthBits(width));
    return NO_FAULT;
  }

  /**
   * Translates one address by the tables that a context entry names, from the lowest of them that is cached.
   * @param topLevel - 2 or 3
   * @param addressLimit - first address out of bounds
   */
  secondStage(
    domainId: number,
    topTable: number,
    topLevel: number,
    addressLimit: number,
    iova: number,
    isWrite: boolean,
  ): number {
    if (!(iova < addressLimit)) return FAULT_BEYOND_MGAW;
    const words = this.#words;
    const reserved = this.#reserved;
    const wanted = isWrite ? SS_W : SS_R;
    const structures = this.#structures;
    let table = topTable;
    let rights = SS_R | SS_W;
    let first = topLevel;
    const cached = structures.lookup(domainId, iova);
    if (cached >= 0 && structures.levelOf(cached) <= topLevel) {
      first = structures.levelOf(cached) - 1;
      table = structures.table[cached];
      rights = structures.rights[cached];
      this.rights = rights;
      if ((rights & wanted) === 0) return isWrite ? FAULT_WRITE : FAULT_READ;
    }
    for (let level = first; ; level--) {
      if (!this.#loadHalves(table + ssIndex(iova, level) * SS_ENTRY_BYTES))
        return level === topLevel ? FAULT_CONTEXT_INVALID : FAULT_PAGING_ENTRY_ACCESS;
      const low = words[0];
      const high = words[1];
      const leaf = ssIsLeaf(low, level);
      if (ssIsPresent(low)) {
        const lowReserved = leaf ? reserved.leafLow[level] : reserved.tableLow[level];
        if (((low & lowReserved) | (high & reserved.high)) !== 0)
          return FAULT_PAGING_ENTRY_RESERVED;
      }
      rights &= low;
      this.rights = rights;
      if ((rights & wanted) === 0) return isWrite ? FAULT_WRITE : FAULT_READ;
      table = ssAddress(low, high);
      if (leaf) {
        this.leafLevel = level;
        this.pageAddress = table;
        return NO_FAULT;
      }
      structures.fill(domainId, level, iova, table, rights);
    }
  }

  /** Reads a root or context entry whole. False: not in memory. */
  #loadEntry(pa: number): boolean {
    const memory = this.#memory;
    const words = this.#words;
    if (!memory.contains(pa, ENTRY_BYTES)) return false;
    do {
      for (let i = 0; i < 4; i++) words[i] = memory.loadOrdered32(pa + 4 * i);
    } while (memory.loadOrdered32(pa) !== words[0]);
    return true;
  }

  /** Reads a second-stage entry whole. False: not in memory. */
  #loadHalves(pa: number): boolean {
    const memory = this.#memory;
    const words = this.#words;
    if (!memory.contains(pa, SS_ENTRY_BYTES)) return false;
    do {
      words[0] = memory.loadOrdered32(pa);
      words[1] = memory.loadOrdered32(pa + 4);
    } while (memory.loadOrdered32(pa) !== words[0]);
    return true;
  }
}
