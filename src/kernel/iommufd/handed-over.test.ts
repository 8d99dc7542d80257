import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { HandoverError } from "../../abi/handover-error.ts";
import type { DecodedSessionView } from "../liveupdate/file-handler.ts";
import { checkIommufdMemory, type DecodedIommufd } from "./handed-over.ts";

/** An iommufd with a no-IOMMU HWPT, and one with domain 7. */
const IOMMUFD: DecodedIommufd = {
  pa: 0,
  lengthBytes: 64,
  hwpts: [
    { token: 1n, domainId: null, areas: [] },
    { token: 2n, domainId: 7, areas: [] },
  ],
};

/** A session whose files keep addresses below `end`. */
const keeping = (end: number): DecodedSessionView => ({
  dataOf: () => null,
  has: () => false,
  keeps: (pa, lengthBytes) => pa + lengthBytes <= end,
});

describe("checkIommufdMemory()", () => {
  const memoryOf = (id: number) =>
    id === 7
      ? [
          { iova: 0, pa: 0x1000, lengthBytes: 0x1000 },
          { iova: 0x5000, pa: 0x8000, lengthBytes: 0x2000 },
        ]
      : assert.fail(`domain ${id}`);

  it("accepts domains that lead to memory of the session's files only", () => {
    checkIommufdMemory(IOMMUFD, keeping(0xa000), "x", memoryOf);
  });

  it("refuses a domain that leads elsewhere, and says from where to where", () => {
    for (const end of [0x9fff, 0x2000, 0])
      assert.throws(
        () => checkIommufdMemory(IOMMUFD, keeping(end), "x", memoryOf),
        (error) =>
          error instanceof HandoverError &&
          error.field === "x iommufd_hwpt_ser[1].domain_id" &&
          /iova 0x[05]0* ?.*domain 7 leads to 0x/.test(error.message),
        `${end}`,
      );
  });
});
