/**
 * iommufd's ioctls, as far as this kernel has them.
 *
 * Every structure starts with its own size in bytes (see kernel/vfs/user-argument.ts). Not built, and so
 * ENOTTY: mapping of user addresses (userspace here has none), dirty tracking, nesting, vIOMMUs, fault queues.
 * Source: Linux 7.3 include/uapi/linux/iommufd.h. The two LIVEUPDATE requests are not upstream:
 * MARK_PRESERVE has the layout proposed there, RETRIEVE is ours; both numbers are ours, far from the next
 * one that upstream would give out.
 * @module
 */
import { s32, struct, token64, u8, u16, u32, u64, type ValueOf } from "../struct.ts";
import { ioctlNumber } from "./ioctl.ts";

export const IOMMUFD_TYPE = 0x3b;

export const IOMMU_DESTROY = ioctlNumber(IOMMUFD_TYPE, 0x80);
export const IOMMU_IOAS_ALLOC = ioctlNumber(IOMMUFD_TYPE, 0x81);
export const IOMMU_IOAS_ALLOW_IOVAS = ioctlNumber(IOMMUFD_TYPE, 0x82);
export const IOMMU_IOAS_COPY = ioctlNumber(IOMMUFD_TYPE, 0x83);
export const IOMMU_IOAS_IOVA_RANGES = ioctlNumber(IOMMUFD_TYPE, 0x84);
export const IOMMU_IOAS_UNMAP = ioctlNumber(IOMMUFD_TYPE, 0x86);
export const IOMMU_OPTION = ioctlNumber(IOMMUFD_TYPE, 0x87);
export const IOMMU_HWPT_ALLOC = ioctlNumber(IOMMUFD_TYPE, 0x89);
export const IOMMU_GET_HW_INFO = ioctlNumber(IOMMUFD_TYPE, 0x8a);
export const IOMMU_IOAS_MAP_FILE = ioctlNumber(IOMMUFD_TYPE, 0x8f);
export const IOMMU_IOAS_NOIOMMU_GET_PA = ioctlNumber(IOMMUFD_TYPE, 0x95);
export const IOMMU_HWPT_LIVEUPDATE_MARK_PRESERVE = ioctlNumber(IOMMUFD_TYPE, 0xf0);
export const IOMMU_HWPT_LIVEUPDATE_RETRIEVE = ioctlNumber(IOMMUFD_TYPE, 0xf1);

export const IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0;
export const IOMMU_IOAS_MAP_WRITEABLE = 1 << 1;
export const IOMMU_IOAS_MAP_READABLE = 1 << 2;

export const IOMMU_OPTION_RLIMIT_MODE = 0;
export const IOMMU_OPTION_HUGE_PAGES = 1;
export const IOMMU_OPTION_OP_SET = 0;
export const IOMMU_OPTION_OP_GET = 1;

export const IOMMU_HWPT_DATA_NONE = 0;
/** In: whatever the driver has. */
export const IOMMU_HW_INFO_TYPE_DEFAULT = 0;
/** `data_uptr` gets a {@link iommu_hw_info_vtd}. */
export const IOMMU_HW_INFO_TYPE_INTEL_VTD = 1;
export const IOMMU_HW_INFO_FLAG_INPUT_TYPE = 1 << 0;
export const IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 1 << 3;

export const iommu_destroy = struct("iommu_destroy", { size: u32, id: u32 });

export const iommu_ioas_alloc = struct("iommu_ioas_alloc", {
  size: u32,
  flags: u32,
  out_ioas_id: u32,
});

export const iommu_iova_range = struct("iommu_iova_range", { start: u64, last: u64 });
export type IommuIovaRange = ValueOf<typeof iommu_iova_range>;

export const iommu_ioas_iova_ranges = struct("iommu_ioas_iova_ranges", {
  size: u32,
  ioas_id: u32,
  num_iovas: u32,
  __reserved: u32,
  /** Pointer to an array of {@link iommu_iova_range}. */
  allowed_iovas: u64,
  out_iova_alignment: u64,
});

export const iommu_ioas_allow_iovas = struct("iommu_ioas_allow_iovas", {
  size: u32,
  ioas_id: u32,
  num_iovas: u32,
  __reserved: u32,
  /** Pointer to an array of {@link iommu_iova_range}. */
  allowed_iovas: u64,
});

export const iommu_ioas_map_file = struct("iommu_ioas_map_file", {
  size: u32,
  flags: u32,
  ioas_id: u32,
  fd: s32,
  start: u64,
  length: u64,
  iova: u64,
});

export const iommu_ioas_copy = struct("iommu_ioas_copy", {
  size: u32,
  flags: u32,
  dst_ioas_id: u32,
  src_ioas_id: u32,
  length: u64,
  dst_iova: u64,
  src_iova: u64,
});

export const iommu_ioas_unmap = struct("iommu_ioas_unmap", {
  size: u32,
  ioas_id: u32,
  iova: u64,
  /** In: bytes, or 2^64 - 1 with iova 0 for everything. Out: bytes unmapped. */
  length: u64,
});

export const iommu_ioas_noiommu_get_pa = struct("iommu_ioas_noiommu_get_pa", {
  size: u32,
  flags: u32,
  ioas_id: u32,
  __reserved: u32,
  iova: u64,
  /** In: at most so many bytes. Out: physically contiguous bytes from `out_phys` on. */
  length: u64,
  out_phys: u64,
});

export const iommu_option = struct("iommu_option", {
  size: u32,
  option_id: u32,
  op: u16,
  __reserved: u16,
  object_id: u32,
  val64: u64,
});

export const iommu_hwpt_alloc = struct("iommu_hwpt_alloc", {
  size: u32,
  flags: u32,
  dev_id: u32,
  pt_id: u32,
  out_hwpt_id: u32,
  __reserved: u32,
  data_type: u32,
  data_len: u32,
  data_uptr: u64,
  fault_id: u32,
  __reserved2: u32,
});

export const iommu_hw_info = struct("iommu_hw_info", {
  size: u32,
  flags: u32,
  dev_id: u32,
  data_len: u32,
  data_uptr: u64,
  out_data_type: u32,
  out_max_pasid_log2: u8,
  __reserved0: u8,
  __reserved1: u8,
  __reserved2: u8,
  out_capabilities: u64,
});

export const iommu_hw_info_vtd = struct("iommu_hw_info_vtd", {
  flags: u32,
  __reserved: u32,
  /** As the unit's capability register. */
  cap_reg: token64,
  /** As the unit's extended capability register. */
  ecap_reg: token64,
});

/** Marks a HWPT to be kept through live updates, under a token of the caller's choosing; there is no unmark. */
export const iommu_hwpt_liveupdate_mark_preserve = struct("iommu_hwpt_liveupdate_mark_preserve", {
  size: u32,
  hwpt_id: u32,
  hwpt_token: token64,
});

/** Finds the HWPT that the previous kernel kept under a token; it has no IOAS. */
export const iommu_hwpt_liveupdate_retrieve = struct("iommu_hwpt_liveupdate_retrieve", {
  size: u32,
  out_hwpt_id: u32,
  hwpt_token: token64,
});
