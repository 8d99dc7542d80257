/**
 * A process that drives devices: what a case about iommufd and VFIO works with.
 *
 * The machine, embedded or QEMU's, has an edu device and an 82574L NIC behind a VT-d unit, each in a group of its own and
 * in the hands of vfio-pci.
 * @module
 */
import assert from "node:assert/strict";
import { E1000E_DEVICE_ID, E1000E_VENDOR_ID } from "../../src/abi/e1000e.ts";
import { EDU_DEVICE_ID, EDU_VENDOR_ID } from "../../src/abi/edu.ts";
import type { FieldType, Struct, StructValue } from "../../src/abi/struct.ts";
import { O_RDWR } from "../../src/abi/uapi/fs.ts";
import type { UserBuffer } from "../../src/abi/uapi/ioctl.ts";
import * as uapi from "../../src/abi/uapi/iommufd.ts";
import { ByteWords } from "../../src/abi/words.ts";
import type { ErrnoCode } from "../../src/base/errno.ts";
import type { Host } from "../../src/host/host.ts";
import { ioasAlloc, ioasMapFile } from "../../src/host/iommufd.ts";
import { bindIommufd } from "../../src/host/vfio.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import type { CaseUser } from "./case-user.ts";
import type { ConformanceCase, KernelName, Outcome } from "./conformance-case.ts";
import type { Divergence } from "./divergences.ts";

/** The largest u64. */
export const U64_LAST = 2n ** 64n - 1n;

/** A descriptor that no process can have open. */
export const NO_FD = 0x7fff_ffff;
/** An id that no object of an iommufd has. */
export const NO_ID = 0x7fff_0000;

/** A case of one stage that has the devices. */
export function deviceCase(name: string, run: (user: DeviceUser) => void): ConformanceCase {
  return { name, stages: [(user) => run(new DeviceUser(user))] };
}

/** Values of a structure, right or wrong: a u64 may be a bigint, to be exact beyond 2^53. */
export type RawValue<F extends Fields> = { readonly [K in keyof F]?: StructValue<F>[K] | bigint };
export type Fields = Record<string, FieldType<unknown>>;

export interface RequestExtras {
  /** Bytes behind the structure; they count in its size. */
  readonly tail?: Uint8Array;
  readonly buffers?: readonly UserBuffer[];
}

/** A device that is open and bound to an iommufd. */
export interface BoundDevice {
  readonly fd: number;
  readonly iommufd: number;
  /** Its id in the iommufd. */
  readonly id: number;
}

export class DeviceUser {
  readonly host: Host;
  readonly kernel: KernelName;
  readonly #user: CaseUser;

  constructor(user: CaseUser) {
    this.host = user.host;
    this.kernel = user.kernel;
    this.#user = user;
  }

  expected<T>(divergence: Divergence<T>): T {
    return this.#user.expected(divergence);
  }

  /** Asserts that a call fails with an errno. */
  fails(code: ErrnoCode, call: () => unknown, what = "a call"): void {
    const outcome = this.outcome(call);
    assert.equal(outcome, code, `${what} comes to ${outcome}, not ${code}`);
  }

  outcome(call: () => unknown): Outcome {
    return this.#user.outcome(call);
  }

  /**
   * Runs an action with its first, its second, … step failing that can, until it succeeds with none. A try that failed for
   * that reason has changed nothing, which `check` sees; so has one that succeeded, once `undo` has run.
   *
   * Linux's test kernel fails lookups in iommufd as well as allocations (CONFIG_IOMMUFD_TEST), with their errnos.
   * @returns how many tries failed
   */
  failEachStep<T>(action: () => T, undo: (made: T) => void, check: () => void): number {
    const errnos = ["ENOMEM", ...(this.kernel === "linux" ? ["ENOENT", "EINVAL", "EFAULT"] : [])];
    let failures = 0;
    for (let nth = 1; ; nth++) {
      const made: T[] = [];
      let outcome: Outcome = "ok";
      const reached = this.#user.faults.during(nth, () => {
        outcome = this.outcome(() => made.push(action()));
      });
      for (const one of made) undo(one);
      check();
      if (!reached) {
        assert.equal(outcome, "ok", "without a failed step");
        return failures;
      }
      if (outcome === "ok") continue;
      assert.ok(errnos.includes(outcome), `step ${nth}: ${outcome}`);
      failures++;
    }
  }

  close(...fds: readonly number[]): void {
    for (const fd of fds) this.#user.close(fd);
  }

  openPath(path: string): number {
    return this.#user.own(this.host.open(path, O_RDWR));
  }

  iommufd(): number {
    return this.openPath("/dev/iommu");
  }

  /** A memfd of zeros. */
  memfd(lengthBytes: number): number {
    const fd = this.#user.memfd();
    this.host.ftruncate(fd, lengthBytes);
    return fd;
  }

  eventfd(flags: number): number {
    return this.#user.own(this.host.eventfd(0, flags));
  }

  dup(fd: number): number {
    return this.#user.own(this.host.dup(fd));
  }

  /** Path of the edu's node. */
  get edu(): string {
    return this.#nodeOf(EDU_VENDOR_ID, EDU_DEVICE_ID);
  }

  /** Path of the NIC's node. */
  get nic(): string {
    return this.#nodeOf(E1000E_VENDOR_ID, E1000E_DEVICE_ID);
  }

  /** Opens a device and binds it, to an iommufd of its own if none is given. */
  bound(path: string, iommufd: number = this.iommufd()): BoundDevice {
    const fd = this.openPath(path);
    return { fd, iommufd, id: bindIommufd(this.host, fd, iommufd) };
  }

  /** An IOAS that shows the beginning of a file. @returns its id */
  ioasOf(iommufd: number, file: number, iova: number, lengthBytes: number): number {
    const ioasId = ioasAlloc(this.host, iommufd);
    this.map(iommufd, ioasId, { file, iova, lengthBytes });
    return ioasId;
  }

  /** Shows a range of a file, writable unless said otherwise. @returns its IOVA */
  map(iommufd: number, ioasId: number, range: FileRange): number {
    return ioasMapFile(this.host, iommufd, {
      ioasId,
      fileFd: range.file,
      start: range.start ?? 0,
      lengthBytes: range.lengthBytes,
      writable: range.writable ?? true,
      ...(range.iova === undefined ? {} : { iova: range.iova }),
    });
  }

  /** Unmaps all of an IOAS. @returns bytes unmapped */
  unmapAll(iommufd: number, ioasId: number): number {
    const range = { ioas_id: ioasId, iova: 0, length: U64_LAST };
    return this.request(iommufd, uapi.IOMMU_IOAS_UNMAP, uapi.iommu_ioas_unmap, range).length;
  }

  /**
   * An ioctl with a structure as given, right or wrong. Fields that are not named are 0; the size is that of the structure
   * and its tail.
   *
   * @returns the structure as the kernel left it
   */
  request<F extends Fields>(
    fd: number,
    request: number,
    layout: Struct<F>,
    value: RawValue<F>,
    { tail = new Uint8Array(0), buffers = [] }: RequestExtras = {},
  ): StructValue<F> {
    const bytes = new Uint8Array(layout.sizeBytes + tail.length);
    bytes.set(tail, layout.sizeBytes);
    const words = new ByteWords(bytes);
    words.store32(0, bytes.length);
    for (const [name, field] of Object.entries(value)) {
      if (typeof field === "bigint") words.storeBig64(layout.offset[name], field);
      else layout.fields[name].write(words, layout.offset[name], field);
    }
    this.host.ioctl(fd, request, { bytes, buffers });
    return layout.read(words, 0);
  }

  #nodeOf(vendorId: number, deviceId: number): string {
    const found = listVfioDevices(this.host).find(
      (device) => device.vendorId === vendorId && device.deviceId === deviceId,
    );
    assert(found !== undefined, `vfio-pci has ${vendorId.toString(16)}:${deviceId.toString(16)}`);
    return found.path;
  }
}

export interface FileRange {
  readonly file: number;
  /** Default 0. */
  readonly start?: number;
  readonly lengthBytes: number;
  /** Absent: the kernel finds room. */
  readonly iova?: number;
  readonly writable?: boolean;
}
