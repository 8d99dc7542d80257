/**
 * A raw RAM file of QEMU's q35: `-object memory-backend-file,share=on,mem-path=FILE`.
 *
 * The file holds RAM without the hole below 4 GiB. Where the hole begins depends on the size, so that guest addresses
 * stay aligned to 1 GiB: QEMU's q35 puts 2 GiB below 4 GiB when RAM has 2.75 GiB or more, everything otherwise; a
 * machine started with `max-ram-below-4g` may put less. The rest begins at 4 GiB.
 * Not covered: AMD hosts with so much memory that QEMU moves the rest to 1 TiB.
 * Source: QEMU hw/i386/pc_q35.c pc_q35_init
 * @module
 */
import { GIB } from "../../base/units.ts";
import type { Segment } from "./ram-image.ts";

const HOLE_END = 4 * GIB;
const SPLIT_FROM = 0xb000_0000;
const BELOW_WHEN_SPLIT = 0x8000_0000;

/** @param belowBytes - RAM below 4 GiB at most; null: as q35 decides by the size */
export function rawSegments(fileBytes: number, belowBytes: number | null): Segment[] {
  const below = Math.min(
    fileBytes,
    belowBytes ?? (fileBytes >= SPLIT_FROM ? BELOW_WHEN_SPLIT : SPLIT_FROM),
  );
  const segments = [{ pa: 0, lengthBytes: below, fileOffset: 0, fileBytes: below }];
  const above = fileBytes - below;
  if (above > 0)
    segments.push({ pa: HOLE_END, lengthBytes: above, fileOffset: below, fileBytes: above });
  return segments;
}
