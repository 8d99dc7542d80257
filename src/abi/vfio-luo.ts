/**
 * What a VFIO PCI device hands to the next kernel: which function it is, whose it is, and its interrupt.
 *
 * One record (kho-record.ts) for each device. The function itself (BARs, bridges) is the PCI root's part of the handover, and
 * where its DMA goes is the IOMMU core's. Upstream's "vfio-pci-v1" is {u32 domain; u16 bdf} and carries no
 * interrupts, so this is another format under another name.
 * Source: ours; Linux list, VFIO live update series v5, for the idea.
 * @module
 */
import { struct, token64, u16, u32, type ValueOf } from "./struct.ts";

export const VFIO_PCI_LUO_COMPATIBLE = "holdfast-vfio-pci-v1";

/** Its DMA is not translated: `hwpt_index` names a no-IOMMU HWPT. */
export const VFIO_PCI_NOIOMMU = 1 << 0;
/** MSI was enabled, with vector `msi_vector`. */
export const VFIO_PCI_MSI_ENABLED = 1 << 1;
/** An interrupt had been signalled to the VMM's eventfd, and the VMM had not read it. */
export const VFIO_PCI_MSI_UNREAD = 1 << 2;
export const VFIO_PCI_FLAGS_ALL = VFIO_PCI_NOIOMMU | VFIO_PCI_MSI_ENABLED | VFIO_PCI_MSI_UNREAD;

export const vfio_pci_ser = struct("vfio_pci_ser", {
  segment: u32,
  bdf: u16,
  vendor_id: u16,
  device_id: u16,
  flags: u16,
  /** 32 to 255 with MSI enabled, else 0. */
  msi_vector: u32,
  /** The iommufd that it is bound to, as a file of the same session. */
  iommufd_token: token64,
  /** The HWPT that it is attached to: which of those that the iommufd hands over. */
  hwpt_index: u32,
  reserved: u32,
});
export type VfioPciSer = ValueOf<typeof vfio_pci_ser>;
