/**
 * Typed callers of VFIO's device ioctls, and access to a device's registers, as a VMM uses them.
 *
 * Every function throws the {@link KernelError} of the call; errnos: kernel/vfio.
 * @module
 */
import type { FieldType, Struct, StructValue } from "../abi/struct.ts";
import * as uapi from "../abi/uapi/vfio.ts";
import { ByteWords } from "../abi/words.ts";
import { KernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";

/** What of a Host these calls need. */
export type VfioHost = Pick<Host, "ioctl" | "pread" | "pwrite">;

/** Binds an open device to an iommufd; it is reset and does nothing on its own then. @returns its id there */
export function bindIommufd(host: VfioHost, device: number, iommufd: number): number {
  return call(host, device, uapi.VFIO_DEVICE_BIND_IOMMUFD, uapi.vfio_device_bind_iommufd, {
    flags: 0,
    iommufd,
    out_devid: 0,
    token_uuid_ptr: 0,
  }).out_devid;
}

/** The id in its iommufd of a bound device, as bindIommufd returned it: for a retrieved one. Not on Linux. */
export function deviceId(host: VfioHost, device: number): number {
  return call(
    host,
    device,
    uapi.VFIO_DEVICE_LIVEUPDATE_GET_DEVID,
    uapi.vfio_device_liveupdate_get_devid,
    { flags: 0, out_devid: 0 },
  ).out_devid;
}

/** Attaches a bound device to an IOAS or a HWPT; an attached one moves there in one step. @returns the HWPT's id */
export function attach(host: VfioHost, device: number, ptId: number): number {
  return call(
    host,
    device,
    uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    uapi.vfio_device_attach_iommufd_pt,
    { flags: 0, pt_id: ptId, pasid: 0 },
  ).pt_id;
}

/** Blocks the device's DMA. */
export function detach(host: VfioHost, device: number): void {
  call(host, device, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, uapi.vfio_device_detach_iommufd_pt, {
    flags: 0,
    pasid: 0,
  });
}

/** What kind of device it is, and how many regions and interrupt indexes it has. */
export function deviceInfo(
  host: VfioHost,
  device: number,
): { readonly canReset: boolean; readonly regionCount: number; readonly irqCount: number } {
  const info = call(host, device, uapi.VFIO_DEVICE_GET_INFO, uapi.vfio_device_info, {
    flags: 0,
    num_regions: 0,
    num_irqs: 0,
    cap_offset: 0,
    pad: 0,
  });
  return {
    canReset: (info.flags & uapi.VFIO_DEVICE_FLAGS_RESET) !== 0,
    regionCount: info.num_regions,
    irqCount: info.num_irqs,
  };
}

/** Size of a region (0: the device has none), and where it begins in the device's file. */
export function regionInfo(
  host: VfioHost,
  device: number,
  index: number,
): { readonly sizeBytes: number; readonly fileOffset: number; readonly flags: number } {
  const info = call(host, device, uapi.VFIO_DEVICE_GET_REGION_INFO, uapi.vfio_region_info, {
    flags: 0,
    index,
    cap_offset: 0,
    size: 0,
    offset: 0,
  });
  return { sizeBytes: info.size, fileOffset: info.offset, flags: info.flags };
}

/** How many interrupts an index has. */
export function irqInfo(
  host: VfioHost,
  device: number,
  index: number,
): { readonly count: number; readonly flags: number } {
  const info = call(host, device, uapi.VFIO_DEVICE_GET_IRQ_INFO, uapi.vfio_irq_info, {
    flags: 0,
    index,
    count: 0,
  });
  return { count: info.count, flags: info.flags };
}

/**
 * Enables the device's MSI and has it signal an eventfd.
 *
 * @param eventfd - -1: MSI stays enabled, and what comes stays pending
 */
export function setMsiEventfd(host: VfioHost, device: number, eventfd: number): void {
  setIrqs(host, device, uapi.VFIO_IRQ_SET_DATA_EVENTFD, 1, [eventfd]);
}

/** Disables the device's MSI. */
export function disableMsi(host: VfioHost, device: number): void {
  setIrqs(host, device, uapi.VFIO_IRQ_SET_DATA_NONE, 0, []);
}

function setIrqs(
  host: VfioHost,
  device: number,
  type: number,
  count: number,
  data: number[],
): void {
  const layout = uapi.vfio_irq_set;
  const argsz = layout.sizeBytes + 4 * data.length;
  const bytes = new Uint8Array(argsz);
  const words = new ByteWords(bytes);
  layout.write(words, 0, {
    argsz,
    flags: type | uapi.VFIO_IRQ_SET_ACTION_TRIGGER,
    index: uapi.VFIO_PCI_MSI_IRQ_INDEX,
    start: 0,
    count,
  });
  data.forEach((value, i) => {
    words.store32(layout.sizeBytes + 4 * i, value >>> 0);
  });
  host.ioctl(device, uapi.VFIO_DEVICE_SET_IRQS, { bytes });
}

/** Resets the device; its interrupts and bus mastering stay as they are. */
export function reset(host: VfioHost, device: number): void {
  host.ioctl(device, uapi.VFIO_DEVICE_RESET, { bytes: new Uint8Array(0) });
}

/** 32-bit registers of one region. Each access is one system call and one bus transaction. */
export class RegionAccess {
  readonly sizeBytes: number;
  readonly #host: VfioHost;
  readonly #device: number;
  readonly #fileOffset: number;
  /** Reused, so that an access allocates nothing. */
  readonly #bytes = new Uint8Array(4);
  readonly #words = new ByteWords(this.#bytes);

  constructor(host: VfioHost, device: number, index: number) {
    const info = regionInfo(host, device, index);
    this.#host = host;
    this.#device = device;
    this.#fileOffset = info.fileOffset;
    this.sizeBytes = info.sizeBytes;
  }

  /** @throws {KernelError} EINVAL outside the region; EIO when memory space is off, or it ends within the word */
  read32(offset: number): number {
    const done = this.#host.pread(this.#device, this.#bytes, this.#fileOffset + offset);
    if (done !== 4) throw new KernelError("EIO", "pread", `${done} bytes of a register`);
    return this.#words.load32(0);
  }

  /** @throws {KernelError} as `read32` */
  write32(offset: number, value: number): void {
    this.#words.store32(0, value >>> 0);
    const done = this.#host.pwrite(this.#device, this.#bytes, this.#fileOffset + offset);
    if (done !== 4) throw new KernelError("EIO", "pwrite", `${done} bytes of a register`);
  }
}

/** Registers of a region: 0 to 5 are BARs, 7 is config space. */
export function openRegion(host: VfioHost, device: number, index: number): RegionAccess {
  return new RegionAccess(host, device, index);
}

type WithArgsz = Record<string, FieldType<unknown>> & { readonly argsz: FieldType<number> };

/** Fills in `argsz`, makes the call, returns the structure as the kernel left it. */
function call<F extends WithArgsz>(
  host: VfioHost,
  device: number,
  request: number,
  layout: Struct<F>,
  value: Omit<StructValue<F>, "argsz">,
): StructValue<F> {
  const bytes = new Uint8Array(layout.sizeBytes);
  const words = new ByteWords(bytes);
  layout.write(words, 0, { ...value, argsz: layout.sizeBytes } as unknown as StructValue<F>);
  host.ioctl(device, request, { bytes });
  return layout.read(words, 0);
}
