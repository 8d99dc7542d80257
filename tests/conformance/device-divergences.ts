/**
 * Where the kernels differ on purpose about iommufd and VFIO; as `divergences.ts`.
 * @module
 */
import { MIB } from "../../src/base/units.ts";
import type { Outcome } from "./conformance-case.ts";
import type { Divergence } from "./divergences.ts";

/** MAP_FILE of what cannot back DMA, on an IOAS without HWPT. */
export const PINNED_AT_MAP_FILE: Divergence<Outcome> = {
  row: "pins of an IOAS",
  linux: "ok",
  ours: "EINVAL",
};

/** Bytes that are left mapped. */
export const PARTIAL_UNMAP: Divergence<number> = {
  row: "IOMMU_IOAS_UNMAP over a range that ends inside an area",
  linux: 0x3000,
  ours: 0x5000,
};

const IOVAS = "end of IOVAs of an IOAS without HWPT; alignment of automatic IOVAs";

export const LAST_IOVA: Divergence<number> = {
  row: IOVAS,
  // 2^64 - 1, rounded.
  linux: 2 ** 64,
  ours: 2 ** 52 - 1,
};

/** The first IOVA that 4 MiB get. */
export const AUTO_ALIGNMENT: Divergence<number> = { row: IOVAS, linux: 2 * MIB, ours: 4 * MIB };

export const RLIMIT_MODE: Divergence<Outcome> = {
  row: "IOMMU_OPTION RLIMIT_MODE=1",
  linux: "ok",
  ours: "EOPNOTSUPP",
};

/** HWPT_ALLOC with IOMMU_HWPT_ALLOC_PASID. */
export const PASID_HWPT: Divergence<Outcome> = {
  row: "HWPTs for PASIDs",
  linux: "ok",
  ours: "EOPNOTSUPP",
};

/** HWPT_ALLOC with IOMMU_HWPT_FAULT_ID_VALID and an id that no fault queue has. */
export const FAULT_HWPT: Divergence<Outcome> = {
  row: "HWPTs with a fault queue",
  linux: "ENOENT",
  ours: "EOPNOTSUPP",
};

/** Interrupts heard. */
export const LATE_EVENTFD: Divergence<number> = {
  row: "an MSI that comes after its eventfd was taken away",
  linux: 0,
  ours: 1,
};

/** The first bytes of memory at IOVA 0, which were all ones. */
export const STRAY_MSI: Divergence<readonly number[]> = {
  row: LATE_EVENTFD.row,
  linux: [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
  ours: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
};

/** Interrupts heard. */
export const IRQS_LEFT_BY_FAILURE: Divergence<number> = {
  row: "VFIO_DEVICE_SET_IRQS of a bad eventfd while another is set",
  linux: 0,
  ours: 1,
};

/** Numbers of INTx, MSI-X, error and request interrupts of the edu. */
export const OTHER_IRQS: Divergence<readonly number[]> = {
  row: "VFIO interrupts but MSI",
  linux: [1, 0, 1, 1],
  ours: [0, 0, 0, 0],
};

export const DEVICE_DIVERGENCES: readonly Divergence<unknown>[] = [
  PINNED_AT_MAP_FILE,
  PARTIAL_UNMAP,
  LAST_IOVA,
  AUTO_ALIGNMENT,
  RLIMIT_MODE,
  PASID_HWPT,
  FAULT_HWPT,
  LATE_EVENTFD,
  STRAY_MSI,
  IRQS_LEFT_BY_FAILURE,
  OTHER_IRQS,
];
