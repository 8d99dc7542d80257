/**
 * Where a file's bytes lie: the FIEMAP ioctl.
 *
 * Source: Linux 7.3 include/uapi/linux/fiemap.h, fs.h
 * @module
 */
import { struct, u32, u64 } from "../struct.ts";

/** _IOWR('f', 11, struct fiemap) */
export const FS_IOC_FIEMAP = 0xc020660b;
/** The last extent of the file. */
export const FIEMAP_EXTENT_LAST = 1;

/** Header; `fm_extent_count` structures {@link FIEMAP_EXTENT} follow it. */
export const FIEMAP = struct("fiemap", {
  fm_start: u64,
  fm_length: u64,
  fm_flags: u32,
  fm_mapped_extents: u32,
  fm_extent_count: u32,
  fm_reserved: u32,
});

export const FIEMAP_EXTENT = struct("fiemap_extent", {
  fe_logical: u64,
  fe_physical: u64,
  fe_length: u64,
  fe_reserved64_0: u64,
  fe_reserved64_1: u64,
  fe_flags: u32,
  fe_reserved_0: u32,
  fe_reserved_1: u32,
  fe_reserved_2: u32,
});
