/**
 * Reads and checks what a VFIO PCI device of the previous kernel has left, as far as memory alone tells.
 *
 * Why apart from the handler, which compares it with the hardware: an inspector has an image and no hardware.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  VFIO_PCI_FLAGS_ALL,
  VFIO_PCI_MSI_ENABLED,
  VFIO_PCI_MSI_UNREAD,
  VFIO_PCI_NOIOMMU,
  type VfioPciSer,
  vfio_pci_ser,
} from "../../abi/vfio-luo.ts";
import { hex } from "../../base/units.ts";
import type { DecodedIommufd } from "../iommufd/handed-over.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type { DecodedSessionView, FileDecoder } from "../liveupdate/file-handler.ts";

export interface DecodedVfioDevice {
  readonly pa: number;
  readonly segment: number;
  readonly bdf: number;
  readonly isNoiommu: boolean;
  readonly hasUnreadInterrupt: boolean;
  readonly iommufdToken: bigint;
  readonly hwptIndex: number;
  /** As it stands in memory. */
  readonly ser: VfioPciSer;
}

/** Vectors below are exceptions of the processor. */
const MSI_VECTOR_FIRST = 32;
const MSI_VECTOR_LAST = 255;

/**
 * @param data - address of the record; untrusted
 * @param field - how to name the place in errors
 * @throws {HandoverError}
 */
export function decodeVfioDevice(
  incoming: IncomingMemory,
  data: bigint,
  field: string,
): DecodedVfioDevice {
  const name = (member: string) => `${field} vfio_pci_ser.${member}`;
  const pa = Number(data);
  incoming.claimRecord(pa, vfio_pci_ser.sizeBytes, `${field} data`);
  const ser = vfio_pci_ser.read(incoming.memory, pa);
  const has = (flag: number) => (ser.flags & flag) !== 0;
  if (
    (ser.flags & ~VFIO_PCI_FLAGS_ALL) !== 0 ||
    (has(VFIO_PCI_MSI_UNREAD) && !has(VFIO_PCI_MSI_ENABLED))
  )
    throw new HandoverError(name("flags"), `${hex(ser.flags)} are not known together`);
  const isVector = ser.msi_vector >= MSI_VECTOR_FIRST && ser.msi_vector <= MSI_VECTOR_LAST;
  if (has(VFIO_PCI_MSI_ENABLED) ? !isVector : ser.msi_vector !== 0)
    throw new HandoverError(name("msi_vector"), `${ser.msi_vector} does not go with the flags`);
  if (ser.reserved !== 0) throw new HandoverError(name("reserved"), "is not 0");
  return {
    pa,
    segment: ser.segment,
    bdf: ser.bdf,
    isNoiommu: has(VFIO_PCI_NOIOMMU),
    hasUnreadInterrupt: has(VFIO_PCI_MSI_UNREAD),
    iommufdToken: ser.iommufd_token,
    hwptIndex: ser.hwpt_index,
    ser,
  };
}

/**
 * Checks what the record says of other parts.
 *
 * @param iommufds - the decoder of iommufds
 * @param attached - the domain that the IOMMU's part of the handover names for the function; null for none
 * @throws {HandoverError}
 */
export function checkVfioLinks(
  data: DecodedVfioDevice,
  session: DecodedSessionView,
  field: string,
  iommufds: FileDecoder,
  attached: number | null,
): void {
  const member = (name: string) => `${field} vfio_pci_ser.${name}`;
  const iommufd = session.dataOf(data.iommufdToken, iommufds);
  if (iommufd === null)
    throw new HandoverError(
      member("iommufd_token"),
      `the session has no iommufd ${hex(data.iommufdToken)}`,
    );
  const hwpt = (iommufd as DecodedIommufd).hwpts[data.hwptIndex];
  if (hwpt === undefined || hwpt.domainId !== attached)
    throw new HandoverError(
      member("hwpt_index"),
      `${data.hwptIndex} is not the HWPT that the device is attached to`,
    );
}
