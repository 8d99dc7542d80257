/**
 * Config space as the user of a device sees it.
 *
 * Reads show the hardware, except where the user has a copy of its own: the BARs (a guest may size and move
 * them; the real ones stay where the kernel put them), the interrupt line, the INTx disable bit.
 * Writes reach the hardware only for: memory space, bus master, parity and SERR of the command register,
 * cache line size, latency timer, and function level reset. MSI belongs to the kernel (VFIO_DEVICE_SET_IRQS). All
 * other writes go nowhere, as on read-only registers.
 * Source: Linux 7.3 drivers/vfio/pci/vfio_pci_config.c init_pci_cap_basic_perm(), vfio_exp_config_write()
 * @module
 */
import {
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_MEM_FLAGS,
  PCI_CACHE_LINE_SIZE,
  PCI_CAP_ID_EXP,
  PCI_CFG_SPACE_EXP_SIZE,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_COMMAND_PARITY,
  PCI_COMMAND_SERR,
  PCI_EXP_DEVCAP,
  PCI_EXP_DEVCAP_FLR,
  PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL_BCR_FLR,
  PCI_INTERRUPT_LINE,
  PCI_STD_NUM_BARS,
} from "../../abi/pci.ts";
import type { PciFunction } from "../pci/function.ts";

const CONVENTIONAL_CFG_SIZE = 256;
const PCI_LATENCY_TIMER = PCI_CACHE_LINE_SIZE + 1;
/** Bits of the command register that a user may change, besides bus mastering. */
const COMMAND_WRITABLE = PCI_COMMAND_MEMORY | PCI_COMMAND_PARITY | PCI_COMMAND_SERR;
const BARS_END = PCI_BASE_ADDRESS_0 + 4 * PCI_STD_NUM_BARS;

export class ConfigSpace {
  readonly sizeBytes: number;
  readonly #pci: PciFunction;
  readonly #reset: () => void;
  /** The user's BARs, which begin as the real ones, and which bits of each can be set. */
  readonly #bars: Uint32Array;
  readonly #barBits = new Uint32Array(PCI_STD_NUM_BARS);
  #memoryEnabled: boolean;
  /** Null: the user has not set it. */
  #interruptLine: number | null = null;
  #intxDisable = 0;

  /** @param reset - what a function level reset that the user starts does */
  constructor(pci: PciFunction, reset: () => void) {
    this.#pci = pci;
    this.#reset = reset;
    this.sizeBytes =
      pci.capability(PCI_CAP_ID_EXP) !== 0 ? PCI_CFG_SPACE_EXP_SIZE : CONVENTIONAL_CFG_SIZE;
    this.#bars = Uint32Array.from(pci.rawBars);
    for (const bar of pci.bars) {
      this.#barBits[bar.index] = ~(((bar.sizeBytes - 1) % 2 ** 32) | PCI_BASE_ADDRESS_MEM_FLAGS);
      if (bar.is64) {
        // The upper half of an address that is aligned to the size.
        const sizeHigh = Math.floor((bar.sizeBytes - 1) / 2 ** 32);
        this.#barBits[bar.index + 1] = ~sizeHigh;
      }
    }
    this.#memoryEnabled = (pci.configRead(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) !== 0;
  }

  /** Whether the function decodes accesses to its BARs: nobody changes that but by {@link write}. */
  get memoryEnabled(): boolean {
    return this.#memoryEnabled;
  }

  /** @param offset - a multiple of `size`, within the space */
  read(offset: number, size: 1 | 2 | 4): number {
    let dword = 0;
    const aligned = offset - (offset % 4);
    if (aligned >= PCI_BASE_ADDRESS_0 && aligned < BARS_END)
      dword = this.#bars[(aligned - PCI_BASE_ADDRESS_0) / 4];
    else {
      dword = this.#pci.configRead(aligned, 4);
      if (aligned === PCI_COMMAND) dword = (dword & ~PCI_COMMAND_INTX_DISABLE) | this.#intxDisable;
      if (aligned === PCI_INTERRUPT_LINE && this.#interruptLine !== null)
        dword = (dword & ~0xff) | this.#interruptLine;
    }
    const value = dword >>> (8 * (offset % 4));
    return size === 4 ? value : value & (size === 2 ? 0xffff : 0xff);
  }

  /** @param offset - a multiple of `size`, within the space */
  write(offset: number, size: 1 | 2 | 4, value: number): void {
    let commandMask = 0;
    let command = 0;
    let resets = false;
    const exp = this.#pci.capability(PCI_CAP_ID_EXP);
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      const byte = (value >>> (8 * i)) & 0xff;
      if (at >= PCI_BASE_ADDRESS_0 && at < BARS_END) this.#writeBarByte(at, byte);
      else if (at === PCI_COMMAND || at === PCI_COMMAND + 1) {
        commandMask |= 0xff << (8 * (at - PCI_COMMAND));
        command |= byte << (8 * (at - PCI_COMMAND));
      } else if (at === PCI_CACHE_LINE_SIZE || at === PCI_LATENCY_TIMER)
        this.#pci.configWrite(at, 1, byte);
      else if (at === PCI_INTERRUPT_LINE) this.#interruptLine = byte;
      else if (exp !== 0 && at === exp + PCI_EXP_DEVCTL + 1)
        resets = (byte & (PCI_EXP_DEVCTL_BCR_FLR >> 8)) !== 0;
    }
    if (commandMask !== 0) this.#writeCommand(command, commandMask);
    if (resets && (this.#pci.configRead(exp + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR) !== 0)
      this.#reset();
  }

  #writeBarByte(at: number, byte: number): void {
    const index = (at - PCI_BASE_ADDRESS_0) >> 2;
    const shift = 8 * (at % 4);
    const bits = (0xff << shift) & this.#barBits[index];
    this.#bars[index] = (this.#bars[index] & ~bits) | ((byte << shift) & bits);
  }

  #writeCommand(command: number, mask: number): void {
    if ((mask & PCI_COMMAND_INTX_DISABLE) !== 0)
      this.#intxDisable = command & PCI_COMMAND_INTX_DISABLE;
    const writable = COMMAND_WRITABLE & mask;
    const changesMaster = (mask & PCI_COMMAND_MASTER) !== 0;
    const master = (command & PCI_COMMAND_MASTER) !== 0;
    // DMA ends before, and begins after, everything else that the write asks for.
    if (changesMaster && !master) this.#pci.setBusMaster(false);
    const old = this.#pci.configRead(PCI_COMMAND, 2);
    const changed = (old & ~writable) | (command & writable);
    this.#pci.configWrite(PCI_COMMAND, 2, changed);
    this.#memoryEnabled = (changed & PCI_COMMAND_MEMORY) !== 0;
    if (changesMaster && master) this.#pci.setBusMaster(true);
  }
}
