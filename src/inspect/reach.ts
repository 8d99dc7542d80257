/**
 * Which devices reach which memory, as the tables in an image let them.
 *
 * What counts are the context entries in memory, which the hardware reads, not the record beside them. A function
 * without an entry is blocked; one that no unit translates reaches everything.
 * @module
 */
import { SS_R, SS_W } from "../abi/vtd/second-stage.ts";
import { hex, PAGE_SIZE } from "../base/units.ts";
import { pciName } from "../kernel/pci/function.ts";
import { contextEntries, describeRun, type EntryView, type RunView } from "./describe.ts";
import type { FileData, Handover, MappedRun } from "./handover.ts";

/** How a device reaches a page. */
export interface PageReach {
  readonly function: string;
  /** Address by which the device names the page's first byte; several where it is mapped more than once. */
  readonly iova: string;
  readonly canRead: boolean;
  readonly canWrite: boolean;
  /** Session whose file the device is; null: none. */
  readonly session: string | null;
}

/** What one device reaches. */
export interface DeviceReach {
  readonly function: string;
  readonly session: string | null;
  /** blocked: nothing. untranslated: all memory by its own address. unknown: tables that could not be read. */
  readonly how: "translated" | "untranslated" | "blocked" | "unknown";
  readonly ranges: readonly RunView[];
}

/** Devices that reach a page, and those of which it is not known. */
export interface PageAnswer {
  readonly page: string;
  readonly reachedBy: readonly PageReach[];
  readonly unknown: readonly string[];
}

export function reachPage(handover: Handover, address: number): PageAnswer {
  const page = address - (address % PAGE_SIZE);
  const reachedBy: PageReach[] = [];
  const unknown: string[] = [];
  for (const name of deviceNames(handover)) {
    const device = find(handover, name);
    if (device.how === "unknown") unknown.push(name);
    const { session } = device;
    if (device.how === "untranslated")
      reachedBy.push({
        function: name,
        iova: hex(page),
        canRead: true,
        canWrite: true,
        session,
      });
    for (const { iova, pa, lengthBytes, rights } of device.runs) {
      if (page + PAGE_SIZE <= pa || page >= pa + lengthBytes) continue;
      reachedBy.push({
        function: name,
        iova: hex(iova + page - pa),
        canRead: (rights & SS_R) !== 0,
        canWrite: (rights & SS_W) !== 0,
        session,
      });
    }
  }
  return { page: hex(page), reachedBy, unknown };
}

/** @param name - "0000:01:00.0" */
export function reachDevice(handover: Handover, name: string): DeviceReach {
  const { how, session, runs } = find(handover, name);
  return { function: name, session, how, ranges: runs.map(describeRun) };
}

/** Functions that have an entry, or are a file of a session. */
export function deviceNames(handover: Handover): string[] {
  const names = new Set(entriesOf(handover).map((entry) => entry.function));
  for (const { name } of vfioFiles(handover)) names.add(name);
  return [...names].sort();
}

function find(
  handover: Handover,
  name: string,
): Pick<DeviceReach, "how" | "session"> & { readonly runs: readonly MappedRun[] } {
  const file = vfioFiles(handover).find((one) => one.name === name);
  const session = file?.session ?? null;
  if (file?.isNoiommu === true) return { how: "untranslated", session, runs: [] };
  const entry = entriesOf(handover).find((one) => one.function === name);
  if (entry === undefined) {
    const isKnown = handover.iommu !== null && handover.iommu.units.length > 0;
    return { how: isKnown ? "blocked" : "unknown", session, runs: [] };
  }
  if (entry.translation === "pass-through") return { how: "untranslated", session, runs: [] };
  const runs = entry.domain === null ? undefined : handover.mapped.get(entry.domain);
  if (entry.translation !== "second-stage" || entry.domain === null)
    return { how: "unknown", session, runs: [] };
  return { how: "translated", session, runs: runs ?? [] };
}

function entriesOf(handover: Handover): EntryView[] {
  return (handover.iommu?.units ?? []).flatMap(({ unit, contextTables }) =>
    contextTables.flatMap(({ bus, pa }) => contextEntries(handover, unit.segment, bus, pa)),
  );
}

function vfioFiles({ liveUpdate }: Handover) {
  return (liveUpdate?.sessions ?? []).flatMap((session) =>
    session.files.flatMap(({ data }) => {
      const { content } = data as FileData;
      if (content.kind !== "vfio") return [];
      const { segment, bdf, isNoiommu } = content.device;
      return [{ name: pciName(segment, bdf), isNoiommu, session: session.name }];
    }),
  );
}
