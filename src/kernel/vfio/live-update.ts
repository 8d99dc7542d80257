/**
 * vfio-pci in a live update: a device goes on working while there is no kernel.
 *
 * Before the jump: its iommufd is in the same session and its HWPT is kept; then neither its attachment nor the
 * function itself may change. It is not reset, its interrupts stay enabled, it goes on with DMA.
 * After it: only its session opens it, bound to the retrieved iommufd and attached to the previous kernel's HWPT.
 * What it raised meanwhile is still pending, and told as soon as the VMM says whom to tell. A device that nobody
 * retrieves is stopped when the session is finished, which comes before its memory is freed: files are finished
 * last first, and it was preserved after its iommufd, which was preserved after its memory.
 * Source: Linux list, VFIO live update series v5, for the idea
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  VFIO_PCI_LUO_COMPATIBLE,
  VFIO_PCI_MSI_ENABLED,
  VFIO_PCI_MSI_UNREAD,
  VFIO_PCI_NOIOMMU,
  vfio_pci_ser,
} from "../../abi/vfio-luo.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { hex } from "../../base/units.ts";
import type { Machine, PhysicalMemory } from "../../machine/machine.ts";
import { IommufdFile } from "../iommufd/file.ts";
import type { Iommufd } from "../iommufd/iommufd.ts";
import type { IommufdFileHandler } from "../iommufd/live-update.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type { RecordPages } from "../kho/record-pages.ts";
import type {
  DecodedSessionView,
  FileHandler,
  FileLifecycleBound,
  FinishArgs,
  PreserveArgs,
  RetrieveArgs,
} from "../liveupdate/file-handler.ts";
import { ConfigAccess } from "../pci/config-access.ts";
import { PciDevice } from "../pci/device.ts";
import { type PciRoot, pciName } from "../pci/function.ts";
import { findFunction } from "../pci/scan.ts";
import type { File } from "../vfs/file.ts";
import { VfioDeviceFile } from "./cdev.ts";
import type { VfioDevice } from "./device.ts";
import { checkVfioLinks, type DecodedVfioDevice, decodeVfioDevice } from "./handed-over.ts";
import { enabledMsiVector } from "./msi-vector.ts";
import type { VfioPci } from "./vfio-pci.ts";

const PRESERVE = "LIVEUPDATE_SESSION_PRESERVE_FD";
const RETRIEVE = "LIVEUPDATE_SESSION_RETRIEVE_FD";

export class VfioPciFileHandler implements FileHandler<DecodedVfioDevice> {
  readonly compatible = VFIO_PCI_LUO_COMPATIBLE;
  readonly flbs: readonly FileLifecycleBound[];
  readonly #vfio: VfioPci;
  readonly #iommufd: Iommufd;
  readonly #iommufdHandler: IommufdFileHandler;
  readonly #pci: PciRoot;
  readonly #memory: PhysicalMemory;
  readonly #records: RecordPages;
  /** Finds functions before the PCI core has any: decoders run first. */
  readonly #config: ConfigAccess;
  /** Functions that one handover has named so far. */
  readonly #decoded = new WeakMap<IncomingMemory, DecodedVfioDevice[]>();

  /** @param dependencies - `pciFlb`: the PCI root's part of a handover */
  constructor(dependencies: {
    readonly vfio: VfioPci;
    readonly iommufd: Iommufd;
    /** Of the files that devices are bound to. */
    readonly iommufdHandler: IommufdFileHandler;
    readonly pci: PciRoot;
    readonly pciFlb: FileLifecycleBound;
    readonly machine: Pick<Machine, "memory" | "mmio" | "firmware">;
    readonly records: RecordPages;
  }) {
    const { machine } = dependencies;
    this.#vfio = dependencies.vfio;
    this.#iommufd = dependencies.iommufd;
    this.#iommufdHandler = dependencies.iommufdHandler;
    this.#pci = dependencies.pci;
    this.#config = new ConfigAccess(machine.mmio, machine.firmware.ecams);
    this.#memory = machine.memory;
    this.#records = dependencies.records;
    this.flbs = [dependencies.pciFlb, dependencies.vfio.iommu.flb];
  }

  canPreserve(file: File): boolean {
    return file instanceof VfioDeviceFile;
  }

  /**
   * @throws {KernelError} EINVAL the file has bound no device, its iommufd is not in the session, or the device is
   *   not attached to a HWPT that is preserved there; what pci.preserve and iommu.preserveDevice throw; ENOMEM
   */
  preserve({ file, session }: PreserveArgs): bigint {
    assert(file instanceof VfioDeviceFile, "not a VFIO device");
    const { device } = file;
    if (!file.isBound)
      throw new KernelError("EINVAL", PRESERVE, `${device.name} is not bound by this file`);
    const { iommufd, handle } = device;
    const iommufdToken = session.contains(iommufd) ? session.tokenOf(iommufd) : null;
    if (iommufdToken === null)
      throw new KernelError(
        "EINVAL",
        PRESERVE,
        `the iommufd of ${device.name} is not preserved in session "${session.name}"`,
      );
    const hwptIndex = iommufd.context.preservedIndexOf(handle);
    if (hwptIndex < 0)
      throw new KernelError("EINVAL", PRESERVE, `the HWPT of ${device.name} is not preserved`);
    return withUndo((undo) => {
      this.#pci.preserve(device.pci);
      undo(() => this.#pci.unpreserve(device.pci));
      if (!device.isNoiommu) {
        this.#vfio.iommu.preserveDevice(device.pci);
        undo(() => this.#vfio.iommu.unpreserveDevice(device.pci));
      }
      const pa = this.#records.alloc(vfio_pci_ser.sizeBytes);
      undo(() => this.#records.free(pa, vfio_pci_ser.sizeBytes));
      this.#write(pa, device, iommufdToken, hwptIndex);
      this.#vfio.faults.point("vfio.preserve:done");
      device.isPreserved = true;
      iommufd.context.setDevicePreserved(handle, true);
      return BigInt(pa);
    });
  }

  unpreserve({ file, data }: PreserveArgs & { readonly data: bigint }): void {
    assert(file instanceof VfioDeviceFile, "not a VFIO device");
    const { device } = file;
    device.iommufd.context.setDevicePreserved(device.handle, false);
    device.isPreserved = false;
    this.#records.free(Number(data), vfio_pci_ser.sizeBytes);
    if (!device.isNoiommu) this.#vfio.iommu.unpreserveDevice(device.pci);
    this.#pci.unpreserve(device.pci);
  }

  /** The VMM may have changed its interrupts since `preserve`, and may have some that it has not read. */
  freeze({ file, session, data }: PreserveArgs & { readonly data: bigint }): bigint {
    assert(file instanceof VfioDeviceFile, "not a VFIO device");
    const { device } = file;
    this.#vfio.faults.point("vfio.freeze:write");
    const iommufdToken = session.tokenOf(device.iommufd);
    assert(iommufdToken !== null, "an iommufd has left its session");
    const hwptIndex = device.iommufd.context.preservedIndexOf(device.handle);
    this.#write(Number(data), device, iommufdToken, hwptIndex);
    return data;
  }

  #write(pa: number, device: VfioDevice, iommufdToken: bigint, hwptIndex: number): void {
    const { pci } = device;
    vfio_pci_ser.write(this.#memory, pa, {
      segment: pci.segment,
      bdf: pci.bdf,
      vendor_id: pci.vendorId,
      device_id: pci.deviceId,
      flags:
        (device.isNoiommu ? VFIO_PCI_NOIOMMU : 0) |
        (device.msiEnabled ? VFIO_PCI_MSI_ENABLED : 0) |
        (device.hasUnreadInterrupt ? VFIO_PCI_MSI_UNREAD : 0),
      msi_vector: device.msiVector,
      iommufd_token: iommufdToken,
      hwpt_index: hwptIndex,
      reserved: 0,
    });
  }

  /** Looks at the hardware too: it must be as the record says. */
  decode(incoming: IncomingMemory, data: bigint, field: string): DecodedVfioDevice {
    const name = (member: string) => `${field} vfio_pci_ser.${member}`;
    const device = decodeVfioDevice(incoming, data, field);
    const { ser, segment, bdf } = device;

    if (!this.#config.reaches(segment, bdf))
      throw new HandoverError(name("segment"), `${pciName(segment, bdf)} is on no bus here`);
    const found = findFunction(this.#config, segment, bdf);
    if (found === null)
      throw new HandoverError(name("bdf"), `${pciName(segment, bdf)} does not answer`);
    const pci = new PciDevice(this.#config, found, null);
    if (pci.isBridge) throw new HandoverError(name("bdf"), `${pci.name} is a bridge`);
    const decoded = this.#decoded.get(incoming) ?? [];
    if (decoded.some((other) => other.segment === segment && other.bdf === bdf))
      throw new HandoverError(name("bdf"), `${pci.name} is named twice`);
    if (ser.vendor_id !== pci.vendorId)
      throw new HandoverError(name("vendor_id"), `the device's is ${hex(pci.vendorId)}`);
    if (ser.device_id !== pci.deviceId)
      throw new HandoverError(name("device_id"), `the device's is ${hex(pci.deviceId)}`);
    const vector = enabledMsiVector(pci);
    const has = (flag: number) => (ser.flags & flag) !== 0;
    if (
      has(VFIO_PCI_NOIOMMU) === this.#vfio.iommu.isTranslated(pci) ||
      has(VFIO_PCI_MSI_ENABLED) !== (vector !== 0)
    )
      throw new HandoverError(name("flags"), `${hex(ser.flags)} do not match the device`);
    if (ser.msi_vector !== vector)
      throw new HandoverError(name("msi_vector"), `the device's is ${vector}`);
    for (const other of decoded)
      if (vector !== 0 && other.ser.msi_vector === vector)
        throw new HandoverError(name("msi_vector"), `${ser.msi_vector} is another device's too`);
    this.#decoded.set(incoming, [...decoded, device]);
    return device;
  }

  checkLinks(data: DecodedVfioDevice, session: DecodedSessionView, field: string): void {
    const { segment, bdf } = data;
    if (this.#pci.incoming?.askFor(segment, bdf) !== true)
      throw new HandoverError(
        `${field} vfio_pci_ser.bdf`,
        `the PCI core has not preserved ${pciName(segment, bdf)}`,
      );
    const attached = this.#vfio.iommu.incoming?.askForDomainOf(segment, bdf) ?? null;
    checkVfioLinks(data, session, field, this.#iommufdHandler, attached);
  }

  /**
   * @throws {KernelError} EINVAL the iommufd is not in the session, or the device does not use the HWPT; EPERM it has
   *   no IOMMU and no-IOMMU mode was not asked for; what retrieving the iommufd throws; ENOMEM
   */
  retrieve({ session, data }: RetrieveArgs<DecodedVfioDevice>): File {
    const pci = this.#pci.find(data.segment, data.bdf);
    const device = pci === null ? null : this.#vfio.find(pci);
    if (device === null)
      throw new KernelError(
        "EINVAL",
        RETRIEVE,
        `${pciName(data.segment, data.bdf)} was not handed over by the PCI core`,
      );
    this.#vfio.checkAllowed(device, RETRIEVE);
    const iommufd = session.incomingFile(data.iommufdToken);
    if (!(iommufd instanceof IommufdFile))
      throw new KernelError("EINVAL", RETRIEVE, `token ${hex(data.iommufdToken)} is no iommufd`);
    device.adopt(iommufd, data.hwptIndex, data.hasUnreadInterrupt);
    return new VfioDeviceFile(device, true);
  }

  // Whether a session may be finished is the iommufd's to say: it knows what still uses the previous kernel's HWPTs.

  finish({ data, file }: FinishArgs<DecodedVfioDevice>): void {
    const pci = this.#pci.find(data.segment, data.bdf);
    // One that the PCI core did not get handed over is ordinary, and may have been opened since.
    if (pci?.isIncoming === true) {
      if (file === null) this.#vfio.find(pci)?.discard();
      this.#pci.finish(pci);
    }
    this.#iommufd.freeUnowned();
    this.#records.release(data.pa, vfio_pci_ser.sizeBytes);
  }
}
