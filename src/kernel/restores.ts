/**
 * Formats that this kernel can restore: the manifest of its images.
 * @module
 */
import { IOMMU_LUO_COMPATIBLE } from "../abi/iommu-luo.ts";
import { IOMMUFD_LUO_COMPATIBLE } from "../abi/iommufd-luo.ts";
import { KHO_FDT_COMPATIBLE } from "../abi/kho.ts";
import { LUO_ABI_COMPATIBLE } from "../abi/luo.ts";
import { MEMFD_LUO_FH_COMPATIBLE } from "../abi/memfd.ts";
import { MEMFS_COMPATIBLE, MEMFS_FILE_COMPATIBLE } from "../abi/memfs.ts";
import { PCI_LUO_COMPATIBLE } from "../abi/pci-luo.ts";
import { VFIO_PCI_LUO_COMPATIBLE } from "../abi/vfio-luo.ts";

export const RESTORES: readonly string[] = [
  KHO_FDT_COMPATIBLE,
  LUO_ABI_COMPATIBLE,
  MEMFS_COMPATIBLE,
  MEMFS_FILE_COMPATIBLE,
  MEMFD_LUO_FH_COMPATIBLE,
  IOMMUFD_LUO_COMPATIBLE,
  VFIO_PCI_LUO_COMPATIBLE,
  IOMMU_LUO_COMPATIBLE,
  PCI_LUO_COMPATIBLE,
];
