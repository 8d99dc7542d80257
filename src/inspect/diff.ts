/**
 * What differs between two handovers: of two jumps, of two hosts, of two kernels.
 *
 * Things are matched by the names that userspace knows: sessions by name, files by token, memfs files by store and
 * path, devices by function. Domain ids and addresses of metadata are each kernel's own and are not compared.
 * @module
 */
import { hex } from "../base/units.ts";
import type { DecodedStore } from "../kernel/memfs/decode.ts";
import type { Inode } from "../kernel/memfs/inode.ts";
import { describe, pathOf, type RunView } from "./describe.ts";
import type { FileContent, FileData, Handover } from "./handover.ts";
import { deviceNames, reachDevice } from "./reach.ts";

export interface Difference {
  readonly kind: "kexec" | "preserved" | "session" | "file" | "memfs" | "device" | "pci";
  /** What it is: 'session "vm0"', '"guests" "/vm0"', "0000:01:00.0". */
  readonly name: string;
  readonly change: "appeared" | "vanished" | "changed";
  /** Of what has changed: what of it, from what, to what. */
  readonly details: readonly string[];
}

/** Everything that differs, by kind, then by name. */
export function diffHandovers(a: Handover, b: Handover): Difference[] {
  const differences: Difference[] = [];
  for (const kind of ["kexec", "preserved", "session", "file", "memfs", "device", "pci"] as const) {
    const before = FACTS[kind](a);
    const after = FACTS[kind](b);
    for (const name of [...new Set([...before.keys(), ...after.keys()])].sort()) {
      const from = before.get(name);
      const to = after.get(name);
      if (from === undefined) differences.push({ kind, name, change: "appeared", details: [] });
      else if (to === undefined) differences.push({ kind, name, change: "vanished", details: [] });
      else {
        const details = compare(from, to);
        if (details.length > 0) differences.push({ kind, name, change: "changed", details });
      }
    }
  }
  return differences;
}

/** What is known of one thing, each fact by its name. */
type Facts = ReadonlyMap<string, string | number>;

const FACTS: Readonly<Record<Difference["kind"], (handover: Handover) => Map<string, Facts>>> = {
  kexec: ({ metadata }) =>
    new Map(
      metadata === null
        ? []
        : [["kernel", facts({ release: metadata.previousRelease, kexecs: metadata.kexecCount })]],
    ),
  preserved: ({ preserved }) =>
    new Map(
      (preserved?.byOrder ?? []).map(({ order, blocks }) => [`order ${order}`, facts({ blocks })]),
    ),
  session: ({ liveUpdate }) =>
    new Map(
      (liveUpdate?.sessions ?? []).map((s) => [
        JSON.stringify(s.name),
        facts({ files: s.files.length }),
      ]),
    ),
  file: (handover) =>
    new Map(
      (handover.liveUpdate?.sessions ?? []).flatMap((session) =>
        session.files.map((file): [string, Facts] => [
          `${JSON.stringify(session.name)} token ${hex(file.token)}`,
          facts({
            format: file.handler.compatible,
            ...fileFacts((file.data as FileData).content),
          }),
        ]),
      ),
    ),
  memfs: ({ memfs }) =>
    new Map(
      (memfs?.stores ?? []).flatMap((store) =>
        [...store.inodes.values()]
          .filter(({ ino }) => ino !== 1)
          .map((inode): [string, Facts] => [nameInStore(store, inode), memoryFacts(inode)]),
      ),
    ),
  device: (handover) =>
    new Map(
      deviceNames(handover).map((name): [string, Facts] => {
        const { how, session, ranges } = reachDevice(handover, name);
        return [
          name,
          facts({ reach: how, session: session ?? "none", translations: rangesText(ranges) }),
        ];
      }),
    ),
  pci: (handover) =>
    new Map(
      (describe(handover).pci ?? []).map((f): [string, Facts] => [
        f.function,
        facts({ bars: f.bars.join(" "), buses: f.bridgeTo?.join("..") ?? "", held: f.preservedBy }),
      ]),
    ),
};

function fileFacts(content: FileContent): Record<string, string | number> {
  switch (content.kind) {
    case "memfs":
      return { inode: content.inode.ino };
    case "memfd": {
      const { memfd } = content;
      const { folios } = memfd;
      const places: string[] = [];
      for (let i = 0; i < folios.count; i++)
        places.push(`${hex(folios.index[i])}@${hex(folios.pa[i])}/${folios.order[i]}`);
      return {
        size: memfd.sizeBytes,
        position: memfd.position,
        seals: hex(memfd.seals),
        pages: places.join(" "),
      };
    }
    case "iommufd":
      return { hwpts: content.iommufd.hwpts.map(({ token }) => String(token)).join(" ") };
    case "vfio":
      return { function: `${content.device.segment}:${hex(content.device.bdf)}` };
    default:
      return {};
  }
}

function memoryFacts(inode: Inode): Facts {
  return facts({
    size: inode.sizeBytes,
    pages: inode.extents
      .map((e) => `${hex(e.offset)}@${hex(e.pa)}/${e.order}x${e.count}`)
      .join(" "),
  });
}

function nameInStore(store: DecodedStore, inode: Inode): string {
  return `${JSON.stringify(store.superblock.name)} ${JSON.stringify(pathOf(store, inode))}`;
}

function rangesText(ranges: readonly RunView[]): string {
  return ranges.map((r) => `${r.iova}→${r.pa} ${hex(r.lengthBytes)} ${r.rights}`).join("; ");
}

function facts(values: Readonly<Record<string, string | number>>): Facts {
  return new Map(Object.entries(values));
}

const LONG = 60;

/** Long values, lists of pages, are not quoted: that they differ is what one wants to know. */
function compare(from: Facts, to: Facts): string[] {
  return [...new Set([...from.keys(), ...to.keys()])].flatMap((name) => {
    const [before, after] = [String(from.get(name) ?? "none"), String(to.get(name) ?? "none")];
    if (before === after) return [];
    if (before.length > LONG || after.length > LONG) return [`${name} differ`];
    return [`${name} ${before} → ${after}`];
  });
}
