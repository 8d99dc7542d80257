/** All cases about iommufd and VFIO. @module */
import { IOMMUFD_CASES } from "./cases/iommufd.ts";
import type { ConformanceCase } from "./conformance-case.ts";

export const ASSIGNED_DEVICE_CASES: readonly ConformanceCase[] = [...IOMMUFD_CASES];
