/**
 * Checking the IOMMU's part of a handover: the record, the tables in memory, and the registers must agree.
 *
 * Why so strict: what is adopted goes on translating DMA. A tree that leads a device into memory that this kernel gives
 * out would corrupt it, so every page that a device can reach must be preserved, and every context entry that is
 * present must be of a function that somebody will come for.
 * Runs before anything of the handover is used; changes nothing. An inspector has no registers and perhaps no firmware
 * table: then the record and the tables must agree.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  IOMMU_DEVICE_SER,
  IOMMU_DOMAIN_NONE,
  IOMMU_DOMAIN_PAGING,
  IOMMU_DOMAIN_RMRR,
  IOMMU_DOMAIN_SER,
  IOMMU_RECORDS_MAX,
  IOMMU_SER,
  IOMMU_SER_PAGES_MAX,
  IOMMU_UNIT_SER,
  iommuRecordAddress,
  iommuRecordPages,
} from "../../abi/iommu-luo.ts";
import { GCMD_QIE, GCMD_TE, IQH_REG, IQT_REG } from "../../abi/vtd/registers.ts";
import {
  addressWidthBits,
  CONTEXT_TABLE_ENTRIES,
  contextEntry,
  contextEntryAddress,
  ROOT_P,
  ROOT_TABLE_ENTRIES,
  rootEntryAddress,
  rootEntryHasReserved,
  TT_MULTI_LEVEL,
  tableAddress,
} from "../../abi/vtd/root-context.ts";
import { hex } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import { apart, type IncomingMemory, type Place } from "../kho/incoming.ts";
import { pciName } from "../pci/function.ts";
import { functionKey } from "./attached-function.ts";
import { levelsAddressWidth, type RemappingUnit } from "./remapping-unit.ts";
import type { RmrrFunction } from "./rmrr.ts";
import { LeafCursor } from "./second-stage-walk.ts";
import { type MayReach, TableDecoder } from "./table-decoder.ts";
import type { UnitRegisters } from "./unit-registers.ts";

/** What the decoder asks about a remapping unit: a {@link RemappingUnit} is one. */
export interface HandedOverUnit {
  readonly segment: number;
  /** Null: there is only an image of the memory. */
  readonly registers: UnitRegisters | null;
  readonly dids: { readonly end: number };
  /** Sizes of leaves, as a sum of powers of two. */
  readonly pageSizes: number;
  supportsLevels(levels: number): boolean;
}

/** A unit as it was handed over, in agreement with its registers. */
export interface DecodedUnit<U extends HandedOverUnit = RemappingUnit> {
  readonly unit: U;
  readonly rootTable: number;
  readonly contextTables: readonly { readonly bus: number; readonly pa: number }[];
}

/** A domain as it was handed over. */
export interface DecodedDomain {
  readonly kind: typeof IOMMU_DOMAIN_PAGING | typeof IOMMU_DOMAIN_RMRR;
  readonly top: number;
  readonly levels: number;
  /** Every page of its tables. */
  readonly tables: readonly number[];
  /** Sizes of its leaves, as a sum of powers of two. */
  readonly leafSizes: number;
  /** Whether all entries passed: always, but for who only looks. What did not must not be walked again. */
  readonly isWhole: boolean;
}

/** A function as it was handed over. */
export interface DecodedDevice<U extends HandedOverUnit = RemappingUnit> {
  readonly unit: U;
  readonly segment: number;
  readonly bdf: number;
  readonly did: number;
  /** Slot of its domain. */
  readonly domain: number;
}

/** All of it, checked. */
export interface DecodedIommu<U extends HandedOverUnit = RemappingUnit> {
  /** Pages of the record itself. */
  readonly pages: readonly number[];
  readonly units: readonly DecodedUnit<U>[];
  /** By slot; null for unused ones. */
  readonly domains: readonly (DecodedDomain | null)[];
  readonly devices: readonly DecodedDevice<U>[];
}

/** A run of leaves with the same rights (SS_R | SS_W) in the domain of a slot. */
export type OnRun = (
  slot: number,
  iova: number,
  pa: number,
  lengthBytes: number,
  rights: number,
) => void;

/** Decodes one handover. */
export class HandoverDecoder<U extends HandedOverUnit = RemappingUnit> {
  readonly #incoming: IncomingMemory;
  readonly #field: string;
  readonly #units: readonly U[];
  readonly #rmrrs: readonly RmrrFunction[] | null;
  readonly #onRun: OnRun;
  #header = 0;
  readonly #pages: number[] = [];
  /** Slots that could not be read, for who goes on without them. */
  readonly #unread = new Set<number>();

  /**
   * @param units - this machine's, not started
   * @param rmrrs - those on segments with a unit; null: not known
   * @param onRun - told of each run that a domain maps
   */
  constructor(
    incoming: IncomingMemory,
    field: string,
    units: readonly U[],
    rmrrs: readonly RmrrFunction[] | null,
    onRun: OnRun = () => {},
  ) {
    this.#incoming = incoming;
    this.#field = field;
    this.#units = units;
    this.#rmrrs = rmrrs;
    this.#onRun = onRun;
  }

  /**
   * @param data - physical address of the header
   * @throws {HandoverError}
   */
  decode(data: bigint): DecodedIommu<U> {
    const header = Number(data);
    this.#header = header;
    this.#incoming.claim(header, 0, `${this.#field}.data`);
    const ser = IOMMU_SER.read(this.#incoming.memory, header);
    this.#expect(
      "iommu_ser.unit_count",
      ser.unit_count,
      this.#units.length,
      "units in firmware's table",
    );
    const records = ser.unit_count + ser.domain_count + ser.device_count;
    if (ser.domain_count > IOMMU_RECORDS_MAX)
      this.#refuse("iommu_ser.domain_count", ser.domain_count);
    if (records > IOMMU_RECORDS_MAX) this.#refuse("iommu_ser.device_count", ser.device_count);
    if (ser.page_count < iommuRecordPages(records) || ser.page_count > IOMMU_SER_PAGES_MAX)
      this.#refuse("iommu_ser.page_count", ser.page_count);
    for (let i = 0; i < ser.page_count; i++) {
      const page = this.#incoming.memory.load64(header + IOMMU_SER.sizeBytes + 8 * i);
      this.#incoming.claim(page, 0, `${this.#field}.iommu_ser.pages[${i}]`);
      this.#pages.push(page);
    }
    // What the units refer to by number comes first; their tables, which must match all of it, come last.
    const domains = count(ser.domain_count, (i) => {
      const record = ser.unit_count + i;
      const place = { pa: this.#recordAddress(record), struct: IOMMU_DOMAIN_SER };
      return this.#apart(
        place,
        () => this.#domain(i, record),
        () => this.#unread.add(i),
      );
    });
    const devices = this.#devices(ser.unit_count + ser.domain_count, ser.device_count, domains);
    if (this.#rmrrs !== null) this.#checkRmrrs(this.#rmrrs, domains, devices, header);
    const units = count(ser.unit_count, (i) => {
      const place = { pa: this.#recordAddress(i), struct: IOMMU_UNIT_SER };
      return this.#apart(
        place,
        () => this.#unit(i, domains, devices),
        () => {},
      );
    }).filter((unit) => unit !== null);
    return { pages: [header, ...this.#pages], units, domains, devices };
  }

  /** Decodes a part; `unread` is called where it cannot be read and its neighbours still can. */
  #apart<T>(place: Place, decode: () => T, unread: () => void): T | null {
    let isRead = false;
    const value = apart(this.#incoming, place, () => {
      const decoded = decode();
      isRead = true;
      return decoded;
    });
    if (!isRead) unread();
    return value;
  }

  #domain(i: number, record: number): DecodedDomain | null {
    const name = `iommu_domain_ser[${i}]`;
    const ser = IOMMU_DOMAIN_SER.read(this.#incoming.memory, this.#recordAddress(record));
    this.#expect(`${name}.reserved`, ser.reserved, 0, "always");
    if (ser.kind === IOMMU_DOMAIN_NONE) {
      for (const key of ["top_table", "levels", "address_width", "table_count"] as const)
        this.#expect(`${name}.${key}`, ser[key], 0, "in an unused slot");
      return null;
    }
    if (ser.kind !== IOMMU_DOMAIN_PAGING && ser.kind !== IOMMU_DOMAIN_RMRR)
      this.#refuse(`${name}.kind`, ser.kind);
    if (ser.levels !== 3 && ser.levels !== 4) this.#refuse(`${name}.levels`, ser.levels);
    const width = addressWidthBits(levelsAddressWidth(ser.levels));
    this.#expect(`${name}.address_width`, ser.address_width, width, `with ${ser.levels} levels`);
    const mayReach: MayReach = (iova, pa, lengthBytes, rights) => {
      this.#onRun(i, iova, pa, lengthBytes, rights);
      if (ser.kind === IOMMU_DOMAIN_PAGING) return this.#incoming.isPreserved(pa, lengthBytes);
      return iova === pa && this.#isReservedRegion(pa, lengthBytes);
    };
    const tree = new TableDecoder(this.#incoming, `${this.#field}.${name}`, mayReach).decode(
      ser.top_table,
      ser.levels,
    );
    const place = { pa: this.#recordAddress(record), struct: IOMMU_DOMAIN_SER };
    apart(this.#incoming, place, () =>
      this.#expect(`${name}.table_count`, ser.table_count, tree.tables.length, "tables found"),
    );
    return { kind: ser.kind, top: ser.top_table, levels: ser.levels, ...tree };
  }

  #devices(
    firstRecord: number,
    deviceCount: number,
    domains: readonly (DecodedDomain | null)[],
  ): readonly DecodedDevice<U>[] {
    const functions = new Set<number>();
    const dids = this.#units.map(() => new Set<number>());
    const devices: DecodedDevice<U>[] = [];
    for (let i = 0; i < deviceCount; i++) {
      const pa = this.#recordAddress(firstRecord + i);
      const device = apart(this.#incoming, { pa, struct: IOMMU_DEVICE_SER }, () =>
        this.#device(i, pa, functions, dids, domains),
      );
      if (device !== null) devices.push(device);
    }
    return devices;
  }

  #device(
    i: number,
    pa: number,
    functions: Set<number>,
    dids: readonly Set<number>[],
    domains: readonly (DecodedDomain | null)[],
  ): DecodedDevice<U> {
    const name = `iommu_device_ser[${i}]`;
    const ser = IOMMU_DEVICE_SER.read(this.#incoming.memory, pa);
    this.#expect(`${name}.reserved`, ser.reserved, 0, "always");
    this.#expect(`${name}.reserved2`, ser.reserved2, 0, "always");
    const unit = this.#units[ser.unit];
    if (unit === undefined) this.#refuse(`${name}.unit`, ser.unit);
    this.#expect(`${name}.segment`, ser.segment, unit.segment, "the unit's");
    const key = functionKey(ser.segment, ser.bdf);
    if (functions.has(key)) this.#refuse(`${name}.bdf`, ser.bdf, "named twice");
    functions.add(key);
    if (ser.did === 0 || ser.did >= unit.dids.end) this.#refuse(`${name}.did`, ser.did);
    if (dids[ser.unit].has(ser.did)) this.#refuse(`${name}.did`, ser.did, "used twice on its unit");
    dids[ser.unit].add(ser.did);
    const { segment, bdf, did, domain: slot } = ser;
    if (this.#unread.has(slot)) return { unit, segment, bdf, did, domain: slot };
    const domain = domains[slot];
    if (domain === undefined || domain === null) this.#refuse(`${name}.domain`, slot);
    if (!unit.supportsLevels(domain.levels) || (domain.leafSizes & ~unit.pageSizes) !== 0)
      this.#refuse(`${name}.domain`, ser.domain, "its unit cannot walk these tables");
    return { unit, segment, bdf, did, domain: slot };
  }

  /** Every function with RMRRs has a domain of them, all of them, and nobody else has. */
  #checkRmrrs(
    rmrrs: readonly RmrrFunction[],
    domains: readonly (DecodedDomain | null)[],
    devices: readonly DecodedDevice<U>[],
    header: number,
  ): void {
    const found = new Set<RmrrFunction>();
    const used = new Set<number>();
    const place = { pa: header, struct: IOMMU_SER };
    for (const [i, device] of devices.entries()) {
      if (this.#unread.has(device.domain)) {
        for (const rmrr of rmrrs)
          if (rmrr.segment === device.segment && rmrr.bdf === device.bdf) found.add(rmrr);
        continue;
      }
      apart(this.#incoming, place, () => {
        const rmrr = rmrrs.find((r) => r.segment === device.segment && r.bdf === device.bdf);
        const domain = domains[device.domain];
        const isRmrr = domain?.kind === IOMMU_DOMAIN_RMRR;
        const name = `iommu_device_ser[${i}].domain`;
        if (isRmrr !== (rmrr !== undefined))
          this.#refuse(
            name,
            device.domain,
            isRmrr ? "the function has no RMRR" : "the function has RMRRs",
          );
        if (rmrr === undefined || domain === null) return;
        found.add(rmrr);
        if (used.has(device.domain)) this.#refuse(name, device.domain, "used by two functions");
        used.add(device.domain);
        if (domain.isWhole && !this.#mapsExactly(domain, rmrr.ranges))
          this.#refuse(name, device.domain, "it does not map exactly the function's RMRRs");
      });
    }
    for (const rmrr of rmrrs)
      apart(this.#incoming, place, () => {
        if (!found.has(rmrr))
          this.#refuse(
            "iommu_ser.device_count",
            devices.length,
            `${pciName(rmrr.segment, rmrr.bdf)} has RMRRs and is missing`,
          );
      });
  }

  #unit(
    i: number,
    domains: readonly (DecodedDomain | null)[],
    devices: readonly DecodedDevice<U>[],
  ): DecodedUnit<U> {
    const name = `iommu_unit_ser[${i}]`;
    const unit = this.#units[i];
    const { registers } = unit;
    const ser = IOMMU_UNIT_SER.read(this.#incoming.memory, this.#recordAddress(i));
    if (registers !== null)
      this.#expect(
        `${name}.register_base`,
        ser.register_base,
        registers.base,
        "in firmware's table",
      );
    this.#expect(`${name}.segment`, ser.segment, unit.segment, "in firmware's table");
    this.#expect(`${name}.reserved`, ser.reserved, 0, "always");
    this.#expect(`${name}.reserved2`, ser.reserved2, 0, "always");
    if (registers !== null) this.#checkRegisters(name, registers, ser.root_table);
    this.#incoming.claim(ser.root_table, 0, `${this.#field}.${name}.root_table`);
    const contextTables = this.#contextTables(name, ser.root_table);
    this.#checkEntries(name, unit, ser.root_table, contextTables, domains, devices);
    return { unit, rootTable: ser.root_table, contextTables };
  }

  #checkRegisters(name: string, registers: UnitRegisters, rootTable: number): void {
    if (!registers.status(GCMD_TE)) this.#refuse(name, registers.base, "translation is off");
    if (registers.status(GCMD_QIE) && registers.read32(IQH_REG) !== registers.read32(IQT_REG))
      this.#refuse(name, registers.base, "its invalidation queue has not run dry");
    this.#expect(`${name}.root_table`, rootTable, registers.rootTableAddress, "in RTADDR");
  }

  #contextTables(name: string, rootTable: number): { bus: number; pa: number }[] {
    const { memory } = this.#incoming;
    const tables: { bus: number; pa: number }[] = [];
    for (let bus = 0; bus < ROOT_TABLE_ENTRIES; bus++) {
      const at = rootEntryAddress(rootTable, bus << 8);
      const w = [0, 4, 8, 12].map((offset) => memory.load32(at + offset));
      if (w.every((word) => word === 0)) continue;
      apart(this.#incoming, { pa: at }, () => {
        const entry = `${name}: root entry of bus ${hex(bus)}`;
        if ((w[0] & ROOT_P) === 0 || rootEntryHasReserved(w[0], w[1], w[2], w[3], 52))
          this.#refuse(entry, w[0], "not one that is present and valid");
        const pa = tableAddress(w[0], w[1]);
        this.#incoming.claim(pa, 0, `${this.#field}.${entry}`);
        tables.push({ bus, pa });
      });
    }
    return tables;
  }

  /** Each context entry is 0 or exactly that of a device in the record, and each device has one. */
  #checkEntries(
    name: string,
    unit: U,
    rootTable: number,
    contextTables: readonly { readonly bus: number; readonly pa: number }[],
    domains: readonly (DecodedDomain | null)[],
    devices: readonly DecodedDevice<U>[],
  ): void {
    const { memory } = this.#incoming;
    const missing = new Map(devices.filter((d) => d.unit === unit).map((d) => [d.bdf, d]));
    for (const { bus, pa } of contextTables) {
      for (let devfn = 0; devfn < CONTEXT_TABLE_ENTRIES; devfn++) {
        const bdf = (bus << 8) | devfn;
        const at = contextEntryAddress(pa, bdf);
        const device = missing.get(bdf);
        missing.delete(bdf);
        if (device !== undefined && this.#unread.has(device.domain)) continue;
        const domain = device === undefined ? null : domains[device.domain];
        const expected =
          device === undefined || domain === null
            ? [0, 0, 0, 0]
            : contextEntry({
                translationType: TT_MULTI_LEVEL,
                secondStageTable: domain.top,
                addressWidth: levelsAddressWidth(domain.levels),
                domainId: device.did,
              });
        for (let w = 0; w < 4; w++) {
          const found = memory.load32(at + 4 * w);
          if (found === expected[w]) continue;
          apart(this.#incoming, { pa: at + 4 * w }, () =>
            this.#refuse(
              `${name}: context entry of ${pciName(unit.segment, bdf)}, word ${w}`,
              found,
              `the record says ${hex(expected[w])}`,
            ),
          );
        }
      }
    }
    for (const { bdf } of missing.values())
      apart(this.#incoming, { pa: rootEntryAddress(rootTable, bdf) }, () =>
        this.#refuse(
          `${name}: context entry of ${pciName(unit.segment, bdf)}`,
          0,
          "not present, but the record has the function",
        ),
      );
  }

  /** Whether a run lies in the RMRRs of some function. */
  #isReservedRegion(pa: number, lengthBytes: number): boolean {
    if (this.#rmrrs === null) return true;
    return this.#rmrrs.some((rmrr) => covers(rmrr.ranges, pa, lengthBytes));
  }

  /** Whether an identity mapping that passed maps these ranges and no more. */
  #mapsExactly(domain: DecodedDomain, ranges: readonly MemoryRange[]): boolean {
    let missingBytes = 0;
    for (const range of ranges) missingBytes += range.lengthBytes;
    const { memory } = this.#incoming;
    const cursor = new LeafCursor({ memory, top: domain.top, levels: domain.levels });
    while (cursor.next()) {
      if (!covers(ranges, cursor.pa, cursor.lengthBytes)) return false;
      missingBytes -= cursor.lengthBytes;
    }
    return missingBytes === 0;
  }

  #recordAddress(index: number): number {
    return iommuRecordAddress(this.#header, this.#pages, index);
  }

  #expect(name: string, found: number, expected: number, why: string): void {
    if (found !== expected) this.#refuse(name, found, `${hex(expected)} ${why}`);
  }

  #refuse(name: string, found: number, problem = "out of range"): never {
    throw new HandoverError(`${this.#field}.${name}`, `${hex(found)}: ${problem}`);
  }
}

/** Whether a run lies in one of the ranges. */
function covers(ranges: readonly MemoryRange[], pa: number, lengthBytes: number): boolean {
  return ranges.some(
    (range) => pa >= range.start && pa + lengthBytes <= range.start + range.lengthBytes,
  );
}

/** The values of `decode` for 0 to `end` - 1, in order. */
function count<T>(end: number, decode: (i: number) => T): T[] {
  const values: T[] = [];
  for (let i = 0; i < end; i++) values.push(decode(i));
  return values;
}
