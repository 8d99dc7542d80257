/**
 * A handover as a tree for a person.
 * @module
 */
import { formatBytes } from "../base/units.ts";
import type { FileView, HandoverView, RunView } from "./describe.ts";
import { counted, type Line, quoteText, renderLines, type Style } from "./text.ts";

export interface RenderOptions {
  readonly style: Style;
  /** All ranges and files; otherwise long lists are cut. */
  readonly isFull: boolean;
}

const SHORT = 8;

/** All of it, as lines. */
export function renderHandover(view: HandoverView, options: RenderOptions): string[] {
  return renderLines(new Renderer(options).handover(view));
}

/** What is wrong, as lines. */
export function renderProblems(
  view: HandoverView,
  { style }: Pick<RenderOptions, "style">,
): string[] {
  return renderLines(problemLines(view, style));
}

function problemLines(view: HandoverView, style: Style): Line[] {
  const lines = view.problems.map(
    ({ address, field, problem }): Line => ({
      text: `${style.bad(printable(field))} ${style.faint(address === null ? "(nowhere)" : `at ${address}`)}: ${printable(problem)}`,
    }),
  );
  if (view.omittedProblems > 0)
    lines.push({ text: `and ${view.omittedProblems} more, which are not listed` });
  return lines;
}

class Renderer {
  readonly #style: Style;
  readonly #limit: number;

  constructor({ style, isFull }: RenderOptions) {
    this.#style = style;
    this.#limit = isFull ? Number.POSITIVE_INFINITY : SHORT;
  }

  handover(view: HandoverView): Line[] {
    const { problems, notes } = view;
    return [
      this.#image(view),
      this.#fdt(view),
      ...this.#preserved(view),
      ...this.#scratch(view),
      ...this.#memfs(view),
      ...this.#liveUpdate(view),
      ...this.#iommu(view),
      ...this.#pci(view),
      ...notes.map((note) => ({ text: `note: ${printable(note)}` })),
      problems.length === 0
        ? { text: this.#style.good("nothing wrong was found") }
        : {
            text: this.#style.bad(counted(problems.length + view.omittedProblems, "problem")),
            children: problemLines(view, this.#style),
          },
    ];
  }

  #image({ image }: HandoverView): Line {
    const ranges = image.ranges.map(({ start, end }) => `${start}..${end}`);
    const update = image.update === null ? "" : `, update ${image.update}`;
    return {
      text: `${this.#style.strong("image")} ${printable(image.path)}: ${image.format}, ${formatBytes(image.ramBytes)} of RAM${update}`,
      children: [
        ...this.#cut(ranges, (text) => ({ text: this.#style.faint(text) })),
        ...image.warnings.map((warning) => ({ text: this.#style.bad(printable(warning)) })),
      ],
    };
  }

  #fdt({ fdt, kexec }: HandoverView): Line {
    const children: Line[] = [];
    if (fdt.candidates.length > 1)
      children.push({
        text: `found ${fdt.candidates.length}; another can be chosen by --fdt ADDR`,
        children: fdt.candidates.map((c) => ({
          text: `${c.pa} ${c.compatible}${c.pa === fdt.address ? " (this one)" : ""}: tree ${
            c.isTreeWhole ? "whole" : "not whole"
          }, ${c.hasSessions ? "sessions" : "no sessions"}, live update ${c.liveupdateNumber}`,
        })),
      });
    for (const { name, address, sizeBytes } of fdt.subtrees)
      children.push({
        text: `subtree ${quoteText(name)}: ${formatBytes(sizeBytes)} ${this.#at(address)}`,
      });
    if (kexec !== null)
      children.push({ text: `kexec ${kexec.count}, from ${quoteText(kexec.previousRelease)}` });
    const compatible = fdt.candidates.find((c) => c.pa === fdt.address)?.compatible;
    const where =
      fdt.address === null ? "not found" : `${compatible ?? "?"} ${this.#at(fdt.address)}`;
    return { text: `${this.#style.strong("KHO FDT")} ${where}, by ${fdt.foundBy}`, children };
  }

  #preserved({ preserved }: HandoverView): Line[] {
    if (preserved === null) return [];
    const children: Line[] = preserved.orders.map(({ order, blockBytes, blocks, bytes }) => ({
      text: `order ${order}: ${counted(blocks, "block")} of ${formatBytes(blockBytes)}, ${formatBytes(bytes)}`,
    }));
    for (const { node, bytes } of preserved.nodes ?? [])
      children.push({ text: `node ${node}: ${formatBytes(bytes)}` });
    if (preserved.unclaimedBytes > 0)
      children.push({
        text: `${formatBytes(preserved.unclaimedBytes)} named by nothing known here`,
      });
    return [
      {
        text: `${this.#style.strong("preserved")} ${formatBytes(preserved.bytes)}, in a tree of ${counted(preserved.treePages, "page")}`,
        children,
      },
    ];
  }

  #scratch({ scratch }: HandoverView): Line[] {
    const title = this.#style.strong("scratch");
    if (scratch === null) return [{ text: `${title} unknown: only boot data says where it is` }];
    const used = scratch.filter(({ sizeBytes }) => sizeBytes > 0);
    return [
      {
        text: title,
        children: used.map(({ address, sizeBytes }) => ({
          text: `${formatBytes(sizeBytes)} ${this.#at(address)}`,
        })),
      },
    ];
  }

  #memfs({ memfs }: HandoverView): Line[] {
    return (memfs ?? []).map((store) => ({
      text: `${this.#style.strong("memfs")} ${quoteText(store.name)}: ${
        store.carveOut === null
          ? "dynamic"
          : `carve-out of ${formatBytes(store.carveOut.lengthBytes)} ${this.#at(store.carveOut.start)}`
      }${store.node === null ? "" : `, node ${store.node}`}${
        store.isChangeUnfinished ? ", a change was under way" : ""
      }`,
      children: this.#cut(store.entries, (e) => ({
        text:
          e.kind === "directory"
            ? `${quoteText(e.path)} directory`
            : `${quoteText(e.path)} ${formatBytes(e.sizeBytes)}, ${formatBytes(e.allocatedBytes)} allocated in ${counted(e.extents, "extent")}`,
      })),
    }));
  }

  #liveUpdate({ liveUpdate }: HandoverView): Line[] {
    if (liveUpdate === null) return [];
    return [
      {
        text: `${this.#style.strong("live update")} ${liveUpdate.number}: ${counted(liveUpdate.sessions.length, "session")}`,
        children: [
          ...this.#cut(liveUpdate.sessions, (session) => ({
            text: `session ${quoteText(session.name)}: ${counted(session.files.length, "file")}`,
            children: this.#cut(session.files, (file) => this.#file(file)),
          })),
          ...liveUpdate.flbs.map(({ compatible, files }) => ({
            text: `FLB ${quoteText(compatible)}: for ${counted(files, "file")}`,
          })),
        ],
      },
    ];
  }

  #file({ token, compatible, data, content }: FileView): Line {
    const title = `token ${token} ${quoteText(compatible)}`;
    switch (content.kind) {
      case "memfs":
        return {
          text: `${title}: ${quoteText(content.path ?? "?")} of ${quoteText(content.store ?? "?")}, ${formatBytes(content.sizeBytes)}`,
        };
      case "memfd": {
        const { sizeBytes, position, seals, folios, allocatedBytes } = content;
        return {
          text: `${title}: ${formatBytes(sizeBytes)}, position ${position}, seals ${
            seals.length === 0 ? "none" : seals.join("|")
          }, ${counted(folios, "folio")} of ${formatBytes(allocatedBytes)}`,
        };
      }
      case "iommufd":
        return {
          text: `${title}: ${counted(content.hwpts.length, "HWPT")}`,
          children: this.#cut(content.hwpts, ({ token, domain, areas }) => ({
            text: `HWPT ${token ?? "without token"}: ${
              domain === null ? `no-IOMMU, ${counted(areas.length, "area")}` : `domain ${domain}`
            }`,
          })),
        };
      case "vfio":
        return {
          text: `${title}: ${content.function} (${content.vendorId}:${content.deviceId}), ${
            content.isNoiommu ? "no IOMMU, " : ""
          }iommufd ${content.iommufdToken} HWPT ${content.hwptIndex}, MSI ${
            content.msiVector === 0 ? "off" : `vector ${content.msiVector}`
          }`,
        };
      default:
        return { text: `${title}: ${this.#style.bad("not readable")}, data ${data}` };
    }
  }

  #iommu({ iommu }: HandoverView): Line[] {
    if (iommu === null) return [];
    return [
      ...iommu.units.map((unit) => ({
        text: `${this.#style.strong("IOMMU unit")} ${unit.registerBase}, segment ${unit.segment}: root table ${this.#at(unit.rootTable)}, ${counted(unit.contextTables.length, "context table")}`,
        children: this.#cut(unit.entries, (e) => ({
          text: `${e.function}: ${e.translation}, domain id ${e.domainId}, ${
            e.domain === null ? `table ${e.table} of no domain` : `domain ${e.domain}`
          }`,
        })),
      })),
      ...iommu.domains.map((domain) => ({
        text: `${this.#style.strong("domain")} ${domain.id}: ${domain.kind}, ${domain.levels ?? "?"} levels, ${counted(domain.tablePages ?? 0, "table")} ${this.#at(domain.topTable ?? "?")}, maps ${formatBytes(domain.mappedBytes)}`,
        children: this.#cut(domain.ranges, renderRun),
      })),
    ];
  }

  #pci({ pci }: HandoverView): Line[] {
    if (pci === null) return [];
    const kept = pci.filter(({ preservedBy }) => preservedBy > 0);
    return [
      {
        text: `${this.#style.strong("PCI")} ${counted(kept.length, "function")} of ${pci.length} preserved`,
        children: this.#cut(kept, (f) => ({
          text: `${f.function} ${f.vendorId}:${f.deviceId}${
            f.bridgeTo === null
              ? ""
              : `, bridge to buses ${f.bridgeTo[0]}..${f.bridgeTo[1]}, for ${f.preservedBy}`
          }`,
        })),
      },
    ];
  }

  #at(address: string): string {
    return this.#style.faint(`at ${address}`);
  }

  #cut<T>(items: readonly T[], render: (item: T) => Line): Line[] {
    const lines = items.slice(0, this.#limit).map(render);
    if (items.length > this.#limit)
      lines.push({ text: `… and ${items.length - this.#limit} more (--full)` });
    return lines;
  }
}

/** "iova 0x0 → 0xc000000, 16 MiB, rw" */
export function renderRun({ iova, pa, lengthBytes, rights }: RunView): Line {
  return { text: `iova ${iova} → ${pa}, ${formatBytes(lengthBytes)}, ${rights}` };
}

/** A message that may hold what an image says. */
function printable(text: string): string {
  return quoteText(text).slice(1, -1).replaceAll('\\"', '"');
}
