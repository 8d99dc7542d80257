/**
 * What the Live Update Orchestrator leaves in memory for the next kernel: upstream's `luo-v5`, to the byte.
 *
 * Layout:
 *   KHO subtree "LUO" → luo_ser ┬ sessions_pa → block → block …   51 luo_session_ser each
 *                               │                 └ files → block → block …   63 luo_file_ser each
 *                               └ flbs_pa → luo_flb_header_ser, luo_flb_ser × count   (one page, at most 63)
 * Blocks are those of `kho-block.ts`. Any change of a layout here needs another {@link LUO_ABI_COMPATIBLE}.
 * Source: Linux 7.3 include/linux/kho/abi/luo.h
 * @module
 */
import { cString, struct, token64, u64, type ValueOf } from "./struct.ts";

/** Name of the KHO subtree that is a {@link LUO_SER}. */
export const LUO_KHO_ENTRY_NAME = "LUO";
export const LUO_ABI_COMPATIBLE = "luo-v5";

/** Bytes of a session's name with its NUL: LIVEUPDATE_SESSION_NAME_LENGTH of the uAPI. */
export const LUO_SESSION_NAME_LENGTH = 64;
/** Bytes of a handler's compatible string with its NUL. */
export const LIVEUPDATE_HNDL_COMPAT_LENGTH = 48;
/** Bytes of an FLB's compatible string with its NUL. */
export const LIVEUPDATE_FLB_COMPAT_LENGTH = 48;

/** The root of it all. */
export const LUO_SER = struct("luo_ser", {
  compatible: cString(8),
  /** Number of this live update: 1 for the first since the cold boot. */
  liveupdate_num: u64,
  /** First block of sessions, or 0. */
  sessions_pa: u64,
  /** Page of FLBs, or 0. */
  flbs_pa: u64,
});
export type LuoSer = ValueOf<typeof LUO_SER>;

/** One session; the last two fields are upstream's `struct luo_file_set_ser`. */
export const LUO_SESSION_SER = struct("luo_session_ser", {
  name: cString(LUO_SESSION_NAME_LENGTH),
  /** First block of its files, or 0. */
  files: u64,
  /** Files in all blocks. */
  count: u64,
});

/** One file of a session. */
export const LUO_FILE_SER = struct("luo_file_ser", {
  /** Names the file handler. */
  compatible: cString(LIVEUPDATE_HNDL_COMPAT_LENGTH),
  /** The handler's own: usually the address of a preserved structure. */
  data: token64,
  /** What userspace calls the file; unique in its session. */
  token: token64,
});

export const LUO_FLB_HEADER_SER = struct("luo_flb_header_ser", {
  /** Pages from here on: 1. */
  pgcnt: u64,
  /** Entries that follow. */
  count: u64,
});

export const LUO_FLB_SER = struct("luo_flb_ser", {
  /** Names the FLB. */
  name: cString(LIVEUPDATE_FLB_COMPAT_LENGTH),
  data: token64,
  /** Preserved files that depend on it. */
  count: u64,
});

/** Pages of the FLB array. */
export const LUO_FLB_PGCNT = 1;
/** FLBs that fit into it: 63. */
export const LUO_FLB_MAX = Math.floor(
  (LUO_FLB_PGCNT * 4096 - LUO_FLB_HEADER_SER.sizeBytes) / LUO_FLB_SER.sizeBytes,
);
