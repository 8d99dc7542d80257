/**
 * The domains and attachments of a handover on the way to those who come for them.
 *
 * Why: a domain that no HWPT has, or an attached function that no file is, would go on translating into memory that nobody
 * keeps in place for it.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { IOMMU_DOMAIN_RMRR } from "../../abi/iommu-luo.ts";
import type { WordReader } from "../../abi/words.ts";
import { pciName } from "../pci/function.ts";
import type { IncomingDomains } from "./domain.ts";
import type { DecodedIommu, HandedOverUnit } from "./handover-decoder.ts";
import { LeafCursor } from "./second-stage-walk.ts";

type Decoded = DecodedIommu<HandedOverUnit>;

/** What was decoded, and which of it somebody has asked for. */
export class AskedDomains implements IncomingDomains {
  readonly #memory: WordReader;
  readonly #decoded: Decoded;
  readonly #domains = new Set<number>();
  readonly #devices = new Set<Decoded["devices"][number]>();

  constructor(memory: WordReader, decoded: Decoded) {
    this.#memory = memory;
    this.#decoded = decoded;
  }

  askFor(id: number): boolean {
    if (!this.#isUsers(id)) return false;
    this.#domains.add(id);
    return true;
  }

  askForDomainOf(segment: number, bdf: number): number | null {
    const device = this.#decoded.devices.find((d) => d.segment === segment && d.bdf === bdf);
    if (device === undefined || !this.#isUsers(device.domain)) return null;
    this.#devices.add(device);
    return device.domain;
  }

  *memoryOf(id: number) {
    const domain = this.#decoded.domains[id];
    if (domain == null) return;
    const cursor = new LeafCursor({
      memory: this.#memory,
      top: domain.top,
      levels: domain.levels,
    });
    while (cursor.next()) {
      const { iova, pa, lengthBytes } = cursor;
      yield { iova, pa, lengthBytes };
    }
  }

  /** @throws {HandoverError} */
  check(field: string): void {
    for (const id of this.#decoded.domains.keys())
      if (this.#isUsers(id) && !this.#domains.has(id))
        throw new HandoverError(`${field}.iommu_domain_ser[${id}].kind`, "no HWPT has this domain");
    for (const [i, device] of this.#decoded.devices.entries())
      if (this.#isUsers(device.domain) && !this.#devices.has(device))
        throw new HandoverError(
          `${field}.iommu_device_ser[${i}].bdf`,
          `no file is ${pciName(device.segment, device.bdf)}, which has a domain`,
        );
  }

  #isUsers(id: number): boolean {
    const domain = this.#decoded.domains[id];
    return domain != null && domain.kind !== IOMMU_DOMAIN_RMRR;
  }
}
