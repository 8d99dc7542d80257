import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { HandoverError } from "../../abi/handover-error.ts";
import { IOMMU_DOMAIN_PAGING, IOMMU_DOMAIN_RMRR } from "../../abi/iommu-luo.ts";
import { ByteRam } from "../../abi/ram-words.ts";
import { SS_PS, SS_R, SS_W } from "../../abi/vtd/second-stage.ts";
import { AskedDomains } from "./asked-domains.ts";
import type { DecodedIommu } from "./handover-decoder.ts";

const TOP = 0x1000;
const DOMAIN = { top: TOP, levels: 3, tables: [TOP], leafSizes: 0, isWhole: true };

/** Slots: 0 unused, 1 a user's with a function, 2 of RMRRs with a function, 3 a user's without any. */
function decoded(): DecodedIommu {
  const device = (bdf: number, domain: number) =>
    ({ segment: 0, bdf, did: 1, domain }) as DecodedIommu["devices"][number];
  return {
    pages: [],
    units: [],
    domains: [
      null,
      { ...DOMAIN, kind: IOMMU_DOMAIN_PAGING },
      { ...DOMAIN, kind: IOMMU_DOMAIN_RMRR },
      { ...DOMAIN, kind: IOMMU_DOMAIN_PAGING },
    ],
    devices: [device(0x100, 1), device(8, 2)],
  };
}

function refusal(asked: AskedDomains): string | null {
  try {
    asked.check("iommu");
  } catch (error) {
    assert.ok(error instanceof HandoverError);
    return error.field;
  }
  return null;
}

describe("AskedDomains", () => {
  it("gives users' domains and attachments away, and no others", () => {
    const asked = new AskedDomains(new ByteRam(new Uint8Array(0x2000)), decoded());
    assert.deepEqual(
      [0, 1, 2, 3, 4, -1, 0.5].map((id) => asked.askFor(id)),
      [false, true, false, true, false, false, false],
    );
    assert.equal(asked.askForDomainOf(0, 0x100), 1);
    assert.equal(asked.askForDomainOf(0, 8), null, "RMRRs");
    assert.equal(asked.askForDomainOf(0, 0x108), null);
    assert.equal(asked.askForDomainOf(1, 0x100), null);
  });

  it("refuses a domain that no HWPT asked for, and a function that no file asked for", () => {
    const asked = new AskedDomains(new ByteRam(new Uint8Array(0x2000)), decoded());
    assert.equal(refusal(asked), "iommu.iommu_domain_ser[1].kind");
    asked.askFor(1);
    assert.equal(refusal(asked), "iommu.iommu_domain_ser[3].kind");
    asked.askFor(3);
    assert.equal(refusal(asked), "iommu.iommu_device_ser[0].bdf");
    asked.askForDomainOf(0, 0x100);
    assert.equal(refusal(asked), null);
  });

  it("tells the memory of a domain", () => {
    const ram = new ByteRam(new Uint8Array(0x2000));
    ram.store64(TOP + 8 * 3, 0x4000_0000 + SS_PS + SS_R + SS_W);
    const asked = new AskedDomains(ram, decoded());
    assert.deepEqual(
      [...asked.memoryOf(1)],
      [{ iova: 3 * 2 ** 30, pa: 0x4000_0000, lengthBytes: 2 ** 30 }],
    );
    assert.deepEqual([...asked.memoryOf(0)], []);
  });
});
