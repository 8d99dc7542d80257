/**
 * An endpoint: a device model behind a type 0 header with memory BARs, MSI and function level reset.
 *
 * Source: PCI Local Bus 3.0 §6.2, §6.8.1; PCI Express Base 5.0 §6.6.2 (FLR), §7.5.3
 * Layout: capabilities where QEMU's e1000e has them: MSI at 0xd0 (64-bit, one vector), PCI Express at 0xe0.
 * Differs from the 82574L, which has no FLR: all our functions have it, so that a VFIO user can reset them.
 * Not modelled: I/O and expansion ROM BARs, MSI-X, power management, INTx (a function without MSI interrupts nobody).
 * @module
 */
import {
  MSI_DATA_VECTOR_MASK,
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_MEM_PREFETCH,
  PCI_BASE_ADDRESS_MEM_TYPE_64,
  PCI_CAP_ID_MSI,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_REVISION,
  PCI_DEVICE_ID,
  PCI_EXP_DEVCAP_FLR,
  PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL_BCR_FLR,
  PCI_EXP_DEVSTA,
  PCI_EXP_TYPE_ENDPOINT,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_NORMAL,
  PCI_INTERRUPT_LINE,
  PCI_INTERRUPT_PIN,
  PCI_MSI_ADDRESS_HI,
  PCI_MSI_ADDRESS_LO,
  PCI_MSI_DATA_64,
  PCI_MSI_FLAGS,
  PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_ENABLE,
  PCI_MSI_FLAGS_MASKBIT,
  PCI_MSI_MASK_64,
  PCI_MSI_PENDING_64,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_SUBSYSTEM_ID,
  PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID,
} from "../../../abi/pci.ts";
import { assert } from "../../../base/assert.ts";
import type { DmaPort } from "../hardware.ts";
import type { BarSpec, DeviceModel, DeviceModelFactory } from "./device-model.ts";
import { EXP_CAPABILITY, type FabricBus, FabricFunction } from "./fabric-function.ts";
import { RequesterDma, type UpstreamPort } from "./requester-dma.ts";

const MSI_CAPABILITY = 0xd0;
/** With mask and pending registers it is 24 bytes long and has to start earlier. */
const MSI_MASKABLE_CAPABILITY = EXP_CAPABILITY - 24;

/** How an endpoint's config space differs from the usual. */
export interface EndpointOptions {
  /** MSI with a mask bit per vector, which QEMU's devices of this kind lack. Default false. */
  readonly msiMaskable?: boolean;
}

interface Bar {
  readonly spec: BarSpec;
  address: number;
}

export class PciEndpoint extends FabricFunction {
  readonly model: DeviceModel;
  readonly #bars: Bar[] = [];
  readonly #dma: RequesterDma;
  readonly #msiMaskable: boolean;
  /** Offset of its MSI capability. */
  readonly #msi: number;
  #msiPending = false;

  constructor(
    bus: FabricBus,
    devfn: number,
    upstream: UpstreamPort,
    factory: DeviceModelFactory,
    options: EndpointOptions,
  ) {
    super(bus, devfn);
    this.#msiMaskable = options.msiMaskable ?? false;
    this.#msi = this.#msiMaskable ? MSI_MASKABLE_CAPABILITY : MSI_CAPABILITY;
    this.#dma = new RequesterDma(upstream, this);
    const port: DmaPort = {
      read: (address, target) => this.#dma.read(address, target),
      write: (address, bytes) => this.#dma.write(address, bytes),
      signalMsi: () => this.#signalMsi(),
    };
    this.model = factory(port);
    this.#defineHeader();
    for (const spec of this.model.bars) this.#defineBar(spec);
    this.#defineMsi();
    this.defineExpress(PCI_EXP_TYPE_ENDPOINT, PCI_EXP_DEVCAP_FLR);
    const devctl = EXP_CAPABILITY + PCI_EXP_DEVCTL;
    this.config.define(devctl, 2, 0, PCI_EXP_DEVCTL_BCR_FLR);
    // Transactions Pending is never set: a model's read has its completion when it returns.
    this.config.define(EXP_CAPABILITY + PCI_EXP_DEVSTA, 2, 0);
    this.model.reset();
  }

  /** Whether requests of this function reach memory. */
  get canMaster(): boolean {
    return this.busMaster && this.bus.forwardsUpstream;
  }

  override configWrite(offset: number, size: 1 | 2 | 4, value: number): void {
    this.config.write(offset, size, value);
    const devctl = EXP_CAPABILITY + PCI_EXP_DEVCTL;
    if ((this.config.read(devctl, 2) & PCI_EXP_DEVCTL_BCR_FLR) !== 0) {
      this.reset();
      return;
    }
    for (const bar of this.#bars) bar.address = this.#barAddress(bar.spec);
    this.#sendPendingMsi();
  }

  override memoryRead(address: number, size: 1 | 2 | 4): number | null {
    if (!this.memoryEnabled) return null;
    for (const { spec, address: start } of this.#bars)
      if (address >= start && address + size <= start + spec.sizeBytes)
        return this.model.barRead(spec.index, address - start, size);
    return null;
  }

  override memoryWrite(address: number, size: 1 | 2 | 4, value: number): boolean {
    if (!this.memoryEnabled) return false;
    for (const { spec, address: start } of this.#bars)
      if (address >= start && address + size <= start + spec.sizeBytes) {
        this.model.barWrite(spec.index, address - start, size, value);
        return true;
      }
    return false;
  }

  /** Function level reset: config space and the model, at once. */
  override reset(): void {
    this.config.reset();
    this.#msiPending = false;
    for (const bar of this.#bars) bar.address = this.#barAddress(bar.spec);
    this.model.reset();
  }

  #defineHeader(): void {
    const config = this.config;
    const id = this.model.identity;
    config.define(PCI_VENDOR_ID, 2, id.vendorId);
    config.define(PCI_DEVICE_ID, 2, id.deviceId);
    config.define(PCI_STATUS, 2, PCI_STATUS_CAP_LIST);
    config.define(PCI_CLASS_REVISION, 4, ((id.classCode << 8) | id.revisionId) >>> 0);
    config.define(PCI_HEADER_TYPE, 1, PCI_HEADER_TYPE_NORMAL);
    config.define(PCI_SUBSYSTEM_VENDOR_ID, 2, id.subsystemVendorId);
    config.define(PCI_SUBSYSTEM_ID, 2, id.subsystemId);
    config.define(PCI_CAPABILITY_LIST, 1, this.#msi);
    config.define(PCI_INTERRUPT_LINE, 1, 0, 0xff);
    config.define(PCI_INTERRUPT_PIN, 1, 1);
  }

  #defineBar(spec: BarSpec): void {
    const { index, sizeBytes, kind } = spec;
    assert(
      sizeBytes >= 16 && Number.isInteger(Math.log2(sizeBytes)),
      `BAR ${index} of ${sizeBytes} bytes`,
    );
    const flags =
      (kind === "memory64" ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0) |
      (spec.isPrefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0);
    // Only address bits at or above the size are writable: that is the sizing protocol.
    const low = sizeBytes >= 2 ** 32 ? 0 : (2 ** 32 - sizeBytes) >>> 0;
    this.config.define(PCI_BASE_ADDRESS_0 + 4 * index, 4, flags, low);
    if (kind === "memory64") {
      const high = (2 ** 32 - Math.max(1, sizeBytes / 2 ** 32)) >>> 0;
      this.config.define(PCI_BASE_ADDRESS_0 + 4 * index + 4, 4, 0, high);
    }
    this.#bars.push({ spec, address: 0 });
  }

  #barAddress(spec: BarSpec): number {
    const at = PCI_BASE_ADDRESS_0 + 4 * spec.index;
    const low = this.config.read(at, 4) - (this.config.read(at, 4) % 16);
    return spec.kind === "memory64" ? low + this.config.read(at + 4, 4) * 2 ** 32 : low;
  }

  #defineMsi(): void {
    const config = this.config;
    config.define(this.#msi, 2, PCI_CAP_ID_MSI | (EXP_CAPABILITY << 8));
    const flags = PCI_MSI_FLAGS_64BIT | (this.#msiMaskable ? PCI_MSI_FLAGS_MASKBIT : 0);
    config.define(this.#msi + PCI_MSI_FLAGS, 2, flags, PCI_MSI_FLAGS_ENABLE);
    config.define(this.#msi + PCI_MSI_ADDRESS_LO, 4, 0, 0xfffffffc);
    config.define(this.#msi + PCI_MSI_ADDRESS_HI, 4, 0, 0xffffffff);
    config.define(this.#msi + PCI_MSI_DATA_64, 2, 0, 0xffff);
    if (this.#msiMaskable) config.define(this.#msi + PCI_MSI_MASK_64, 4, 0, 1);
  }

  #signalMsi(): void {
    const config = this.config;
    if ((config.read(this.#msi + PCI_MSI_FLAGS, 2) & PCI_MSI_FLAGS_ENABLE) === 0) return;
    if (this.#msiMaskable && (config.read(this.#msi + PCI_MSI_MASK_64, 4) & 1) !== 0) {
      this.#msiPending = true;
      config.set(this.#msi + PCI_MSI_PENDING_64, 4, 1);
      return;
    }
    const address =
      config.read(this.#msi + PCI_MSI_ADDRESS_LO, 4) +
      config.read(this.#msi + PCI_MSI_ADDRESS_HI, 4) * 2 ** 32;
    const data = config.read(this.#msi + PCI_MSI_DATA_64, 2);
    this.#dma.write(address, Uint8Array.of(data & MSI_DATA_VECTOR_MASK, data >>> 8, 0, 0));
  }

  /** An interrupt that was signalled while its vector was masked goes out when it no longer is. */
  #sendPendingMsi(): void {
    if (!this.#msiPending) return;
    if ((this.config.read(this.#msi + PCI_MSI_MASK_64, 4) & 1) !== 0) return;
    this.#msiPending = false;
    this.config.clear(this.#msi + PCI_MSI_PENDING_64, 4, 1);
    this.#signalMsi();
  }
}
