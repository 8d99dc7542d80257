/**
 * The Intel 82574L Ethernet controller, as far as a driver with legacy descriptors sees it.
 *
 * Why: one driver runs on this model and on QEMU's e1000e; here we decide when DMA happens and can count it.
 * Source: Intel 82574L Datasheet rev. 3.4 §7.1 (receive), §7.2 (transmit), §7.4 (interrupts), §10 (registers);
 *   behaviour where the datasheet leaves a choice as in QEMU's hw/net/e1000e_core.c
 * Invariants:
 *   - a received frame is in memory before its descriptor says DD, the descriptor before RDH moves, all of it before
 *     ICR and the MSI
 *   - a frame whose DMA fails is counted, and no descriptor is lost: the ring goes on where it was
 *   - nothing that a driver writes can make it fail, only make it idle
 * Not modelled: queue 1, RSS, extended and packet-split descriptors (RFCTL.EXSTEN reads 0; a transmit descriptor with
 *   DEXT is dropped and counted), checksum offloads, VLAN, wake-up, PHY (MDIC), interrupt delays and throttling,
 *   flash (BAR 1), I/O (BAR 2), MSI-X (BAR 3), receive descriptors with a null buffer (they are used, not skipped).
 *   ICR is cleared by every read, as it is without MSI-X.
 * @module
 */
import * as reg from "../../../../abi/e1000e.ts";
import type { DmaPort } from "../../hardware.ts";
import type { BarSpec, DeviceIdentity, DeviceModel } from "../device-model.ts";
import { putCrc32 } from "./crc32.ts";

/** What became of a frame that arrived from the wire. */
export type ReceiveResult = "delivered" | "missed" | "filtered" | "dmaFailed" | "linkDown";

/** The other end of the cable, for frames that the device sends. */
export interface EthernetWire {
  /** When it takes the next frame, on the clock of `step`. */
  readonly readyNs: number;
  /** A frame without FCS; `frame` is valid during the call only. */
  transmit(frame: Uint8Array, nowNs: number): void;
  /** A descriptor or a frame could not be read, or its report not be written. */
  dmaFailed(): void;
}

export interface E1000eOptions {
  /** Its permanent address: 6 bytes. */
  readonly macAddress: Uint8Array;
  readonly wire: EthernetWire;
}

const LARGEST_FRAME = 16 * 1024;

/** Registers that keep what is written and do nothing else. */
const PLAIN: ReadonlySet<number> = new Set([
  reg.E1000_CTRL_EXT,
  reg.E1000_ITR,
  reg.E1000_RCTL,
  reg.E1000_TCTL,
  reg.E1000_TIPG,
  reg.E1000_RDBAH,
  reg.E1000_RDTR,
  reg.E1000_RXDCTL,
  reg.E1000_RADV,
  reg.E1000_TDBAH,
  reg.E1000_TIDV,
  reg.E1000_TXDCTL,
  reg.E1000_TADV,
  reg.E1000_TARC0,
]);

const STATISTICS: ReadonlySet<number> = new Set([
  reg.E1000_MPC,
  reg.E1000_GPRC,
  reg.E1000_GPTC,
  reg.E1000_RNBC,
  reg.E1000_TPR,
  reg.E1000_TPT,
]);

export class E1000e implements DeviceModel {
  readonly identity: DeviceIdentity = {
    vendorId: reg.E1000E_VENDOR_ID,
    deviceId: reg.E1000E_DEVICE_ID,
    classCode: 0x020000,
    revisionId: 0,
    subsystemVendorId: reg.E1000E_VENDOR_ID,
    subsystemId: 0,
  };
  readonly bars: readonly BarSpec[] = [
    { index: 0, sizeBytes: reg.E1000E_BAR0_BYTES, kind: "memory32", isPrefetchable: false },
  ];

  readonly #dma: DmaPort;
  readonly #options: E1000eOptions;
  /** By offset / 4. */
  readonly #registers = new Uint32Array(reg.E1000E_BAR0_BYTES / 4);
  /** Causes for which an MSI was sent and that are still pending. */
  #signalled = 0;
  readonly #descriptor = new Uint8Array(reg.E1000_DESCRIPTOR_BYTES);
  readonly #word = new Uint8Array(4);
  /** The frame that is being put together for transmission. */
  readonly #txFrame = new Uint8Array(LARGEST_FRAME);
  #txBytes = 0;
  /** A transmit DMA failed: waits for the driver's next doorbell. */
  #txStalled = false;
  /** Received frame and FCS, when the FCS is kept. */
  readonly #rxFrame = new Uint8Array(LARGEST_FRAME);
  #dmaFailures = 0;
  #txDropped = 0;

  constructor(dma: DmaPort, options: E1000eOptions) {
    this.#dma = dma;
    this.#options = options;
    this.reset();
  }

  /** DMA requests that did not get through, since power-on. */
  get dmaFailures(): number {
    return this.#dmaFailures;
  }

  /** Transmit descriptors that were dropped: of an unknown kind, or of a frame above 16 KiB. */
  get txDropped(): number {
    return this.#txDropped;
  }

  /** Whether the driver has set the link up and enabled reception. */
  get isReceiving(): boolean {
    return (
      (this.#get(reg.E1000_CTRL) & reg.E1000_CTRL_SLU) !== 0 &&
      (this.#get(reg.E1000_RCTL) & reg.E1000_RCTL_EN) !== 0
    );
  }

  get macAddress(): Uint8Array {
    return this.#options.macAddress;
  }

  reset(): void {
    this.#registers.fill(0);
    this.#signalled = 0;
    this.#txBytes = 0;
    this.#txStalled = false;
    this.#set(reg.E1000_CTRL, reg.E1000_CTRL_FD | reg.E1000_CTRL_SLU | reg.E1000_CTRL_SPD_1000);
    this.#set(reg.E1000_RXDCTL, reg.E1000_RXDCTL_WTHRESH_1);
    this.#set(reg.E1000_TARC0, 3 | reg.E1000_TARC_ENABLE);
    const mac = this.#options.macAddress;
    this.#set(reg.E1000_RAL0, mac[0] | (mac[1] << 8) | (mac[2] << 16) | (mac[3] << 24));
    this.#set(reg.E1000_RAH0, mac[4] | (mac[5] << 8) | reg.E1000_RAH_AV);
  }

  barRead(_bar: number, offset: number, size: 1 | 2 | 4): number {
    // Registers are 32 bits wide; a narrower read takes its part, with the side effects of the whole.
    const value = this.#read(canonical(offset - (offset % 4)));
    return size === 4 ? value : (value >>> (8 * (offset % 4))) & (size === 2 ? 0xffff : 0xff);
  }

  barWrite(_bar: number, offset: number, size: 1 | 2 | 4, value: number): void {
    if (size === 4) this.#write(canonical(offset), value >>> 0);
  }

  /** Transmits at most one descriptor. */
  step(nowNs: number): boolean {
    if (this.nextDueNs() > nowNs) return false;
    this.#transmit(nowNs);
    return this.nextDueNs() <= nowNs;
  }

  nextDueNs(): number {
    return this.#canTransmit() ? this.#options.wire.readyNs : Number.POSITIVE_INFINITY;
  }

  /**
   * A frame arrives from the wire.
   *
   * @param frame - destination address first, without FCS; shorter ones count as padded to 60 bytes
   */
  receive(frame: Uint8Array): ReceiveResult {
    if (!this.isReceiving) return "linkDown";
    if (!this.#accepts(frame)) return "filtered";
    const bytes = this.#asStored(frame);
    const size = this.#bufferBytes();
    const ring = this.#ring(reg.E1000_RDLEN, reg.E1000_RDH, reg.E1000_RDT);
    const needed = Math.ceil(bytes.length / size);
    if (needed > ring.ready || !this.#mayMaster()) {
      this.#count(reg.E1000_MPC);
      this.#raise(reg.E1000_ICR_RXO);
      return "missed";
    }
    if (!this.#storeFrame(bytes, size, ring)) {
      this.#dmaFailures++;
      return "dmaFailed";
    }
    this.#count(reg.E1000_GPRC);
    this.#count(reg.E1000_TPR);
    const threshold =
      ring.count >> (1 + ((this.#get(reg.E1000_RCTL) >>> reg.E1000_RCTL_RDMTS_SHIFT) & 3));
    this.#raise(
      reg.E1000_ICR_RXT0 | (ring.ready - needed === threshold ? reg.E1000_ICR_RXDMT0 : 0),
    );
    return "delivered";
  }

  #storeFrame(bytes: Uint8Array, bufferBytes: number, ring: Ring): boolean {
    const base = this.#address(reg.E1000_RDBAL);
    let index = ring.head;
    for (let done = 0; done < bytes.length; done += bufferBytes) {
      const at = base + index * reg.E1000_DESCRIPTOR_BYTES;
      if (!this.#dma.read(at, this.#descriptor)) return false;
      const buffer = le64(this.#descriptor, reg.E1000_RXD_BUFFER);
      const part = bytes.length <= bufferBytes ? bytes : bytes.subarray(done, done + bufferBytes);
      if (!this.#dma.write(buffer, part)) return false;
      index = (index + 1) % ring.count;
    }
    // Only now that all of the frame is in memory, in ring order, and DD in each descriptor's last store.
    index = ring.head;
    for (let done = 0; done < bytes.length; done += bufferBytes) {
      const at = base + index * reg.E1000_DESCRIPTOR_BYTES;
      const isLast = done + bufferBytes >= bytes.length;
      const length = Math.min(bufferBytes, bytes.length - done);
      const status = reg.E1000_RXD_STAT_DD | (isLast ? reg.E1000_RXD_STAT_EOP : 0);
      if (!this.#writeWord(at + reg.E1000_RXD_LENGTH, length)) return false;
      if (!this.#writeWord(at + reg.E1000_RXD_STATUS, status)) return false;
      index = (index + 1) % ring.count;
      this.#set(reg.E1000_RDH, index);
    }
    return true;
  }

  /** The frame as it goes to memory: padded, and with its FCS unless that is stripped. */
  #asStored(frame: Uint8Array): Uint8Array {
    const stripsFcs = (this.#get(reg.E1000_RCTL) & reg.E1000_RCTL_SECRC) !== 0;
    if (stripsFcs && frame.length >= reg.E1000_MIN_FRAME_BYTES) return frame;
    const length = Math.max(frame.length, reg.E1000_MIN_FRAME_BYTES);
    const stored = this.#rxFrame.fill(0, frame.length, length);
    stored.set(frame);
    if (stripsFcs) return stored.subarray(0, length);
    putCrc32(stored, length);
    return stored.subarray(0, length + reg.ETHERNET_FCS_BYTES);
  }

  #accepts(frame: Uint8Array): boolean {
    const rctl = this.#get(reg.E1000_RCTL);
    const isLong = frame.length > reg.E1000_MAX_FRAME_BYTES;
    if (frame.length < 14 || frame.length > LARGEST_FRAME - reg.ETHERNET_FCS_BYTES) return false;
    if (isLong && (rctl & reg.E1000_RCTL_LPE) === 0) return false;
    const low = (frame[0] | (frame[1] << 8) | (frame[2] << 16) | (frame[3] << 24)) >>> 0;
    const high = frame[4] | (frame[5] << 8);
    if (low === 0xffffffff && high === 0xffff) {
      if ((rctl & reg.E1000_RCTL_BAM) !== 0) return true;
    } else if ((rctl & ((frame[0] & 1) !== 0 ? reg.E1000_RCTL_MPE : reg.E1000_RCTL_UPE)) !== 0)
      return true;
    for (let i = 0; i < reg.E1000_RA_COUNT; i++) {
      const rah = this.#get(reg.E1000_RAH0 + 8 * i);
      if ((rah & reg.E1000_RAH_AV) === 0 || (rah & 0xffff) !== high) continue;
      if (this.#get(reg.E1000_RAL0 + 8 * i) === low) return true;
    }
    if ((frame[0] & 1) === 0) return false;
    // 12 bits of the address's last 16, from bit 4, 3, 2 or 0 on.
    const offset = (rctl >>> reg.E1000_RCTL_MO_SHIFT) & 3;
    const hash = (high >>> (offset === 3 ? 0 : 4 - offset)) & 0xfff;
    return ((this.#get(reg.E1000_MTA + 4 * (hash >>> 5)) >>> (hash & 31)) & 1) !== 0;
  }

  #bufferBytes(): number {
    const rctl = this.#get(reg.E1000_RCTL);
    const flexible = (rctl >>> reg.E1000_RCTL_FLXBUF_SHIFT) & 0xf;
    if (flexible !== 0) return flexible * 1024;
    const size = 2048 >>> ((rctl >>> reg.E1000_RCTL_BSIZE_SHIFT) & 3);
    // With BSEX the first of the four is reserved.
    return (rctl & reg.E1000_RCTL_BSEX) !== 0 && size !== 2048 ? size * 16 : size;
  }

  #canTransmit(): boolean {
    return (
      !this.#txStalled &&
      (this.#get(reg.E1000_TCTL) & reg.E1000_TCTL_EN) !== 0 &&
      (this.#get(reg.E1000_TARC0) & reg.E1000_TARC_ENABLE) !== 0 &&
      this.#mayMaster() &&
      this.#ring(reg.E1000_TDLEN, reg.E1000_TDH, reg.E1000_TDT).ready > 0
    );
  }

  #transmit(nowNs: number): void {
    const ring = this.#ring(reg.E1000_TDLEN, reg.E1000_TDH, reg.E1000_TDT);
    const at = this.#address(reg.E1000_TDBAL) + ring.head * reg.E1000_DESCRIPTOR_BYTES;
    const descriptor = this.#descriptor;
    if (!this.#dma.read(at, descriptor)) {
      this.#stall();
      return;
    }
    const command = descriptor[reg.E1000_TXD_COMMAND];
    const length = descriptor[reg.E1000_TXD_LENGTH] | (descriptor[reg.E1000_TXD_LENGTH + 1] << 8);
    if ((command & reg.E1000_TXD_CMD_DEXT) !== 0 || this.#txBytes + length > LARGEST_FRAME) {
      this.#txDropped++;
      this.#txBytes = 0;
    } else {
      const target = this.#txFrame.subarray(this.#txBytes, this.#txBytes + length);
      if (!this.#dma.read(le64(descriptor, reg.E1000_TXD_BUFFER), target)) {
        this.#stall();
        return;
      }
      this.#txBytes += length;
      if ((command & reg.E1000_TXD_CMD_EOP) !== 0) this.#send(nowNs);
    }
    const reports = (command & reg.E1000_TXD_CMD_RS) !== 0;
    if (reports && !this.#writeWord(at + reg.E1000_TXD_STATUS, reg.E1000_TXD_STAT_DD)) {
      // The frame is gone; only its report is lost.
      this.#failTransmit();
    }
    this.#set(reg.E1000_TDH, (ring.head + 1) % ring.count);
    this.#raise((reports ? reg.E1000_ICR_TXDW : 0) | (ring.ready === 1 ? reg.E1000_ICR_TXQE : 0));
  }

  #send(nowNs: number): void {
    const length = this.#txBytes;
    this.#txBytes = 0;
    if (length === 0) return;
    const pads = (this.#get(reg.E1000_TCTL) & reg.E1000_TCTL_PSP) !== 0;
    const padded = pads ? Math.max(length, reg.E1000_MIN_FRAME_BYTES) : length;
    this.#txFrame.fill(0, length, padded);
    this.#count(reg.E1000_GPTC);
    this.#count(reg.E1000_TPT);
    this.#options.wire.transmit(this.#txFrame.subarray(0, padded), nowNs);
  }

  #stall(): void {
    this.#failTransmit();
    this.#txStalled = true;
  }

  #failTransmit(): void {
    this.#dmaFailures++;
    this.#options.wire.dmaFailed();
  }

  #read(offset: number): number {
    if (offset === reg.E1000_ICR) {
      const causes = this.#pendingCauses();
      this.#set(reg.E1000_ICR, 0);
      this.#update();
      return causes;
    }
    if (offset === reg.E1000_ICS) return this.#pendingCauses();
    if (offset === reg.E1000_STATUS) return this.#status();
    const value = this.#get(offset);
    if (STATISTICS.has(offset)) this.#set(offset, 0);
    return value;
  }

  #write(offset: number, value: number): void {
    switch (offset) {
      case reg.E1000_CTRL:
        this.#writeCtrl(value);
        return;
      case reg.E1000_EERD:
        this.#readNvm(value);
        return;
      case reg.E1000_ICR:
        this.#set(reg.E1000_ICR, this.#get(reg.E1000_ICR) & ~value);
        this.#update();
        return;
      case reg.E1000_ICS:
        this.#raise(value);
        return;
      case reg.E1000_IMS:
        this.#set(reg.E1000_IMS, this.#get(reg.E1000_IMS) | value);
        this.#update();
        return;
      case reg.E1000_IMC:
        this.#set(reg.E1000_IMS, this.#get(reg.E1000_IMS) & ~value);
        this.#update();
        return;
      case reg.E1000_RDBAL:
      case reg.E1000_TDBAL:
        this.#set(offset, value & ~0xf);
        return;
      case reg.E1000_RDLEN:
      case reg.E1000_TDLEN:
        this.#set(offset, value & reg.E1000_RING_LENGTH_MASK);
        return;
      case reg.E1000_RDH:
      case reg.E1000_RDT:
      case reg.E1000_TDH:
        this.#set(offset, value & 0xffff);
        return;
      case reg.E1000_TDT:
        this.#set(offset, value & 0xffff);
        this.#txStalled = false;
        return;
    }
    const isAddress = offset >= reg.E1000_RAL0 && offset < reg.E1000_RAL0 + 8 * reg.E1000_RA_COUNT;
    const isTable = offset >= reg.E1000_MTA && offset < reg.E1000_MTA + 4 * reg.E1000_MTA_COUNT;
    if (PLAIN.has(offset) || isAddress || isTable) this.#set(offset, value);
  }

  #writeCtrl(value: number): void {
    if ((value & reg.E1000_CTRL_RST) !== 0) {
      this.reset();
      return;
    }
    const changed = this.#get(reg.E1000_CTRL) ^ value;
    this.#set(reg.E1000_CTRL, value);
    if ((changed & reg.E1000_CTRL_SLU) !== 0) this.#raise(reg.E1000_ICR_LSC);
  }

  #status(): number {
    const ctrl = this.#get(reg.E1000_CTRL);
    return (
      reg.E1000_STATUS_FD |
      reg.E1000_STATUS_SPEED_1000 |
      ((ctrl & reg.E1000_CTRL_SLU) !== 0 ? reg.E1000_STATUS_LU : 0) |
      ((ctrl & reg.E1000_CTRL_GIO_MASTER_DISABLE) === 0 ? reg.E1000_STATUS_GIO_MASTER_ENABLE : 0)
    );
  }

  #readNvm(value: number): void {
    const word = (value >>> reg.E1000_EERD_ADDR_SHIFT) & 0x3fff;
    const known = word < reg.E1000_NVM_WORDS && (value & reg.E1000_EERD_START) !== 0;
    const data = known ? this.#nvmWord(word) : 0;
    this.#set(
      reg.E1000_EERD,
      (known ? reg.E1000_EERD_DONE : 0) |
        (word << reg.E1000_EERD_ADDR_SHIFT) |
        (data << reg.E1000_EERD_DATA_SHIFT),
    );
  }

  /** Words 0 to 2: the MAC address; the last one makes the sum right; all others are empty. */
  #nvmWord(word: number): number {
    const mac = this.#options.macAddress;
    if (word < 3) return mac[2 * word] | (mac[2 * word + 1] << 8);
    if (word !== reg.E1000_NVM_CHECKSUM_WORD) return 0;
    let sum = 0;
    for (let i = 0; i < reg.E1000_NVM_CHECKSUM_WORD; i++) sum += this.#nvmWord(i);
    return (reg.E1000_NVM_SUM - sum) & 0xffff;
  }

  #pendingCauses(): number {
    const causes = this.#get(reg.E1000_ICR);
    return causes === 0 ? 0 : (causes | reg.E1000_ICR_INT_ASSERTED) >>> 0;
  }

  #raise(causes: number): void {
    this.#set(reg.E1000_ICR, this.#get(reg.E1000_ICR) | (causes & ~reg.E1000_ICR_INT_ASSERTED));
    this.#update();
  }

  /** An MSI for each cause that becomes pending and unmasked; none while it stays so. */
  #update(): void {
    const pending = this.#get(reg.E1000_ICR) & this.#get(reg.E1000_IMS);
    const fresh = pending & ~this.#signalled;
    this.#signalled = pending;
    if (fresh !== 0) this.#dma.signalMsi();
  }

  #mayMaster(): boolean {
    return (this.#get(reg.E1000_CTRL) & reg.E1000_CTRL_GIO_MASTER_DISABLE) === 0;
  }

  #ring(lengthRegister: number, headRegister: number, tailRegister: number): Ring {
    const count = this.#get(lengthRegister) / reg.E1000_DESCRIPTOR_BYTES;
    const head = this.#get(headRegister);
    const tail = this.#get(tailRegister);
    // Outside the ring: a driver's mistake, and nothing to work with.
    const isSane = head < count && tail < count;
    return { count, head, ready: isSane ? (tail - head + count) % count : 0 };
  }

  #address(lowRegister: number): number {
    return this.#get(lowRegister) + this.#get(lowRegister + 4) * 2 ** 32;
  }

  #writeWord(address: number, value: number): boolean {
    const word = this.#word;
    word[0] = value;
    word[1] = value >>> 8;
    word[2] = value >>> 16;
    word[3] = value >>> 24;
    return this.#dma.write(address, word);
  }

  /** Counts up to all ones and stays there. */
  #count(offset: number): void {
    if (this.#get(offset) !== 0xffffffff) this.#registers[offset >>> 2]++;
  }

  #get(offset: number): number {
    return this.#registers[offset >>> 2];
  }

  #set(offset: number, value: number): void {
    this.#registers[offset >>> 2] = value;
  }
}

interface Ring {
  /** Descriptors in the ring. */
  readonly count: number;
  readonly head: number;
  /** Descriptors that are the device's: from head to before tail. */
  readonly ready: number;
}

function canonical(offset: number): number {
  return reg.E1000_ALIASES[offset] ?? offset;
}

function le64(bytes: Uint8Array, at: number): number {
  return le32(bytes, at) + le32(bytes, at + 4) * 2 ** 32;
}

function le32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}
