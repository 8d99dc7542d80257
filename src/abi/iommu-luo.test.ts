import assert from "node:assert/strict";
import { test } from "node:test";
import {
  IOMMU_RECORDS_MAX,
  IOMMU_SER_PAGES_MAX,
  iommuRecordAddress,
  iommuRecordPages,
} from "./iommu-luo.ts";

test("records lie in the last quarter of the header page, then in the record pages in order", () => {
  const address = (index: number) => iommuRecordAddress(0x1000, [0x8000, 0x4000], index);
  assert.deepEqual([0, 1, 31].map(address), [0x1c00, 0x1c20, 0x1fe0]);
  assert.deepEqual([32, 33, 159].map(address), [0x8000, 0x8020, 0x8fe0]);
  assert.deepEqual([160, 287].map(address), [0x4000, 0x4fe0]);
});

test("so many records need so many pages beside the header page", () => {
  assert.deepEqual([0, 1, 32, 33, 160, 161].map(iommuRecordPages), [0, 0, 0, 1, 1, 2]);
  assert.equal(iommuRecordPages(IOMMU_RECORDS_MAX), IOMMU_SER_PAGES_MAX);
  // The list of pages ends where the records begin.
  assert.equal(16 + 8 * IOMMU_SER_PAGES_MAX, 0xc00);
});
