/**
 * The objects of an iommufd, by id, with the count of what uses each.
 *
 * Lifecycle: `users` starts at 1 for the table; each object that needs another one, and the driver of a bound
 * device, holds one more; only an object with the table's own user can be destroyed.
 * Source: Linux 7.3 drivers/iommu/iommufd/main.c iommufd_object_remove()
 * @module
 */
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import type { RestoredDomain } from "../iommu/domain.ts";
import type { PciFunction } from "../pci/function.ts";
import type { FollowingDomain, IoPageTable } from "./io-pagetable.ts";
import type { RestoredNoiommu } from "./restored-noiommu.ts";

interface Counted {
  readonly id: number;
  users: number;
}

/** An IO address space. */
export interface Ioas extends Counted {
  readonly type: "ioas";
  readonly table: IoPageTable;
  /** HWPTs that show this address space, oldest first. */
  readonly hwpts: PagingHwpt[];
}

/** A hardware page table that shows an IOAS. */
export interface PagingHwpt extends Counted {
  readonly type: "hwpt";
  readonly ioas: Ioas;
  readonly domain: FollowingDomain;
  /** Made by attaching a device to the IOAS; goes with its last device. */
  isAuto: boolean;
  /** The name under which a live update keeps it; null: it does not. */
  token: bigint | null;
}

/** A page table of the previous kernel: it shows what it shows, and no IOAS. */
export interface RestoredHwpt extends Counted {
  readonly type: "hwpt";
  readonly ioas: null;
  readonly domain: RestoredDomain | RestoredNoiommu;
  /** Null: a no-IOMMU HWPT that had none. */
  readonly token: bigint | null;
  /** Its place in the handover. */
  readonly index: number;
}

export type Hwpt = PagingHwpt | RestoredHwpt;

/** A PCI function that a driver has bound. */
export interface Device extends Counted {
  readonly type: "device";
  readonly pci: PciFunction;
  readonly isNoiommu: boolean;
  /** Where its DMA goes; null: nowhere. */
  hwpt: Hwpt | null;
  /** A live update has its attachment: it cannot change. */
  isPreserved: boolean;
}

export type IommufdObject = Ioas | Hwpt | Device;

const ID_LAST = 2 ** 31 - 1;

export class ObjectTable {
  readonly #objects = new Map<number, IommufdObject>();
  readonly #faults: FaultInjector;
  /** No id below is free. */
  #lowestFree = 1;

  constructor(faults: FaultInjector) {
    this.#faults = faults;
  }

  get size(): number {
    return this.#objects.size;
  }

  values(): IterableIterator<IommufdObject> {
    return this.#objects.values();
  }

  /**
   * Adds an object under the lowest free id.
   *
   * @param make - makes the object of its id; runs once nothing can fail any more
   * @throws {KernelError} ENOMEM when no id is left
   */
  add<T extends IommufdObject>(make: (id: number) => T): T {
    this.#faults.point("iommufd:object");
    let id = this.#lowestFree;
    while (this.#objects.has(id)) id++;
    if (id > ID_LAST) throw new KernelError("ENOMEM", "iommufd", "no object id is left");
    this.#lowestFree = id + 1;
    const object = make(id);
    this.#objects.set(id, object);
    return object;
  }

  /** Takes an object out that only the table uses. */
  remove(object: IommufdObject): void {
    assert(object.users === 1, `${object.type} ${object.id} goes while it is used`);
    assert(this.#objects.get(object.id) === object, `${object.type} ${object.id} is not here`);
    this.#objects.delete(object.id);
    this.#lowestFree = Math.min(this.#lowestFree, object.id);
  }

  find(id: number): IommufdObject | null {
    return this.#objects.get(id) ?? null;
  }

  /** @throws {KernelError} ENOENT when no object has that id, or one of another type */
  get<K extends IommufdObject["type"]>(
    id: number,
    type: K,
    op: string,
  ): Extract<IommufdObject, { type: K }> {
    const object = this.#objects.get(id);
    if (object === undefined || object.type !== type)
      throw new KernelError("ENOENT", op, `no ${type} has id ${id}`);
    return object as Extract<IommufdObject, { type: K }>;
  }
}
