/**
 * All cases, in the order in which they run: those that want a kernel with no image loaded come first.
 * @module
 */
import { DEVICE_CASES } from "./cases/device.ts";
import { INTERRUPT_CASES } from "./cases/device-interrupts.ts";
import { DMA_CASES } from "./cases/dma.ts";
import { EVENTFD_CASES } from "./cases/eventfds.ts";
import { IOCTL_CASES } from "./cases/ioctls.ts";
import { IOMMUFD_CASES } from "./cases/iommufd.ts";
import { JUMP_CASES } from "./cases/jumps.ts";
import { MEMFD_CASES } from "./cases/memfds.ts";
import { PRESERVED_MEMFD_CASES } from "./cases/preserved-memfds.ts";
import { SESSION_FILE_CASES } from "./cases/session-files.ts";
import { SESSION_CASES } from "./cases/sessions.ts";
import { VFIO_CASES } from "./cases/vfio.ts";
import type { ConformanceCase } from "./conformance-case.ts";

/** Cases by subject. */
export const SUITE: ReadonlyMap<string, readonly ConformanceCase[]> = new Map([
  ["reboot and jumps", JUMP_CASES],
  ["the device", DEVICE_CASES],
  ["requests", IOCTL_CASES],
  ["sessions", SESSION_CASES],
  ["files of sessions", SESSION_FILE_CASES],
  ["preserved memfds", PRESERVED_MEMFD_CASES],
  ["memfds", MEMFD_CASES],
  ["eventfds", EVENTFD_CASES],
  ["address spaces", IOMMUFD_CASES],
  ["assigned devices", VFIO_CASES],
  ["interrupts of assigned devices", INTERRUPT_CASES],
  ["DMA of assigned devices", DMA_CASES],
]);

/** All of them in one list. */
export const CASES: readonly ConformanceCase[] = [...SUITE.values()].flat();
