/**
 * VFIO's device ioctls and the fixed region and interrupt indexes of vfio-pci, as far as this kernel has them.
 *
 * Every structure starts with `argsz`, the bytes that the caller gives.
 * Source: Linux 7.3 include/uapi/linux/vfio.h; region offsets: include/linux/vfio_pci_core.h. LIVEUPDATE_GET_DEVID
 * is not upstream, and its number is far from the next one that upstream would give out.
 * @module
 */
import { s32, struct, u32, u64 } from "../struct.ts";
import { ioctlNumber } from "./ioctl.ts";

export const VFIO_TYPE = 0x3b;
export const VFIO_BASE = 100;

export const VFIO_DEVICE_GET_INFO = ioctlNumber(VFIO_TYPE, VFIO_BASE + 7);
export const VFIO_DEVICE_GET_REGION_INFO = ioctlNumber(VFIO_TYPE, VFIO_BASE + 8);
export const VFIO_DEVICE_GET_IRQ_INFO = ioctlNumber(VFIO_TYPE, VFIO_BASE + 9);
export const VFIO_DEVICE_SET_IRQS = ioctlNumber(VFIO_TYPE, VFIO_BASE + 10);
export const VFIO_DEVICE_RESET = ioctlNumber(VFIO_TYPE, VFIO_BASE + 11);
export const VFIO_DEVICE_BIND_IOMMUFD = ioctlNumber(VFIO_TYPE, VFIO_BASE + 18);
export const VFIO_DEVICE_ATTACH_IOMMUFD_PT = ioctlNumber(VFIO_TYPE, VFIO_BASE + 19);
export const VFIO_DEVICE_DETACH_IOMMUFD_PT = ioctlNumber(VFIO_TYPE, VFIO_BASE + 20);
export const VFIO_DEVICE_LIVEUPDATE_GET_DEVID = ioctlNumber(VFIO_TYPE, 0xf2);

export const VFIO_DEVICE_FLAGS_RESET = 1 << 0;
export const VFIO_DEVICE_FLAGS_PCI = 1 << 1;

export const VFIO_REGION_INFO_FLAG_READ = 1 << 0;
export const VFIO_REGION_INFO_FLAG_WRITE = 1 << 1;

export const VFIO_IRQ_INFO_EVENTFD = 1 << 0;
export const VFIO_IRQ_INFO_MASKABLE = 1 << 1;
export const VFIO_IRQ_INFO_AUTOMASKED = 1 << 2;
export const VFIO_IRQ_INFO_NORESIZE = 1 << 3;

export const VFIO_IRQ_SET_DATA_NONE = 1 << 0;
export const VFIO_IRQ_SET_DATA_BOOL = 1 << 1;
export const VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2;
export const VFIO_IRQ_SET_ACTION_MASK = 1 << 3;
export const VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5;
export const VFIO_IRQ_SET_DATA_TYPE_MASK =
  VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD;
export const VFIO_IRQ_SET_ACTION_TYPE_MASK =
  VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER;

export const VFIO_DEVICE_ATTACH_PASID = 1 << 0;

export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
export const VFIO_PCI_VGA_REGION_INDEX = 8;
export const VFIO_PCI_NUM_REGIONS = 9;

export const VFIO_PCI_INTX_IRQ_INDEX = 0;
export const VFIO_PCI_MSI_IRQ_INDEX = 1;
export const VFIO_PCI_NUM_IRQS = 5;

/** Region `index` of a device begins at file offset index · 2^40. Userspace should ask GET_REGION_INFO. */
export const VFIO_PCI_OFFSET_SHIFT = 40;

export const vfio_device_info = struct("vfio_device_info", {
  argsz: u32,
  flags: u32,
  num_regions: u32,
  num_irqs: u32,
  cap_offset: u32,
  pad: u32,
});

export const vfio_region_info = struct("vfio_region_info", {
  argsz: u32,
  flags: u32,
  index: u32,
  cap_offset: u32,
  size: u64,
  offset: u64,
});

export const vfio_irq_info = struct("vfio_irq_info", {
  argsz: u32,
  flags: u32,
  index: u32,
  count: u32,
});

/** Followed by `count` values of the type that `flags` names: u8 or s32. */
export const vfio_irq_set = struct("vfio_irq_set", {
  argsz: u32,
  flags: u32,
  index: u32,
  start: u32,
  count: u32,
});

export const vfio_device_bind_iommufd = struct("vfio_device_bind_iommufd", {
  argsz: u32,
  flags: u32,
  iommufd: s32,
  out_devid: u32,
  token_uuid_ptr: u64,
});

export const vfio_device_attach_iommufd_pt = struct("vfio_device_attach_iommufd_pt", {
  argsz: u32,
  flags: u32,
  pt_id: u32,
  pasid: u32,
});

export const vfio_device_detach_iommufd_pt = struct("vfio_device_detach_iommufd_pt", {
  argsz: u32,
  flags: u32,
  pasid: u32,
});

/** The id of a device in its iommufd: for one that a live update has bound, and BIND_IOMMUFD has not told. */
export const vfio_device_liveupdate_get_devid = struct("vfio_device_liveupdate_get_devid", {
  argsz: u32,
  flags: u32,
  out_devid: u32,
});
